"""The templates that come with the program, by the digests of their texts: these render in the program itself.

Named here and not taken from a folder, because a checkout's folder is where others' changes come to be reviewed. A test
says when a file and its line are not the same; until then it renders as any other does, in a process of its own.
"""

from __future__ import annotations

SHIPPED = frozenset(
    {
        "8330d50d63b687b2bbe6170b433a2eda3ddc53ed0936bba9c09b620ec320aff8",  # adherence
        "9d512f8f5ad6ebf3eae7c6dcb086314a316f35cc919210de8c3d70bc4ade7d37",  # chatml
        "474d14f87c75191ede5de52e0ff65309d3dd5492322146bd506a9803ad422d7b",  # chatml_tools
        "ccf4510a36ac5b1214869dcc157928759fc069cd58149b46120ff34e75aacc8e",  # comparison
        "f309d7d139200e5ffa7a6b46726006ebbbe08c76e2b7955aaa3184a6694915ac",  # comparison_set
        "393afeca536b29651c253a651b512e487483360d6f779eeeb801e89529e150dd",  # comparison_text
        "9e8cee9bd517b0fba5eb8454f0aaf969cf55a530757ff78fde26be53913319ae",  # critique
        "1ad7922d7dad441c1d1d696db927e262e2845114c554b2c7a69db5cf2dedf925",  # critique_chat
        "64e764f73b9c15ea004de478c4b1e98ca5f4f57d3aabfb315e598d23d3ab6a4e",  # grade
        "4ec755c8df72127195bee320fee7125377e017919216feee70dbb3e1c4563bd7",  # human_assistant
        "ad96abbbe596249e147cf11c7fd45b532ac3a1e2a2a8766f848db9c13f47d883",  # judge_contrast
        "10007b86ee5eb054ecd55552cb4208719b7a7f227c8860a0c31636b349493cee",  # llama3
        "594ea6f8b2e91d0ede4f2caff2e7ff27d2ce827e3587232690389d98a5602e9c",  # llama3_tools
        "88f2539f90381f85ac0e9938dbde5461b13a326fb0f02aac734c91a945d54c61",  # mistral_instruct
        "0502c5a036a4fa3c7c5ec81d9f9c3f7f1b7891920d6a65583eb19c0aa0b8b75f",  # mistral_tools
        "f8ab0e25cd7d42055dea93589a0f68125969d2b72eb05090c71a7c8a3e4cbd84",  # nemo_extra_id
        "faca9046d87deb1df53a5c590093a54f511654d4f5d55287c46c254849eb4790",  # revision
        "509fcb5772fd63133de15aa15ac2229389058a9beb1ad5108da4e2283ab569d1",  # revision_chat
        "37b6f7a1390871f8858c2ca2518c8630599f455a131aec33b9d3b8d66a090d78",  # smollm2
    }
)
"""SHA-256 of the texts, in hexadecimal digits."""
