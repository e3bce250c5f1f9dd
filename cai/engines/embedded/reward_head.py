"""A reward model's head, and its folder as transformers' sequence classification reads it.

That class takes the reward at the last token that is not padding. Where the padding token is one that answers end with,
as in many models, it would look before the end: the folder names another one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from cai.errors import PrerequisiteError
from cai.identity import parse_json

SCORE = "score.weight"
"""The head's tensor [1, hidden] in transformers' sequence classification."""

HEAD_FILE = "reward_head.safetensors"
"""Where reward models of before kept their head [hidden]."""

CLASSES = {
    "llama": "LlamaForSequenceClassification",
    "mistral": "MistralForSequenceClassification",
    "qwen2": "Qwen2ForSequenceClassification",
    "qwen3": "Qwen3ForSequenceClassification",
}


@dataclass(frozen=True, slots=True)
class RewardHead:
    """The head [hidden] of a reward model; ``padding`` is the token that pads, with its id, if one is free."""

    weight: Tensor
    padding: tuple[str, int] | None

    def config(self, family: str) -> dict[str, Any]:
        """What the folder's configuration says of it."""
        return {
            "architectures": [CLASSES[family]],
            "num_labels": 1,
            "id2label": {"0": "reward"},
            "label2id": {"reward": 0},
            "pad_token_id": self.padding[1] if self.padding else None,
        }

    def mark_padding(self, folder: Path) -> None:
        """Let the folder's tokenizer pad with that token too."""
        path = folder / "tokenizer_config.json"
        if self.padding and path.is_file():
            fields = {**parse_json(path.read_text(encoding="utf-8")), "pad_token": self.padding[0]}
            path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def free_padding(tokenizer: Any, ends: set[int]) -> tuple[str, int] | None:
    """A special token for padding that no text ends with, ``ends`` being the tokens that texts end with; None if none.

    The tokenizer's own where that is free, else the unknown token, else the first free special one.
    """
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, *sorted(tokenizer.added_tokens_decoder)]
    free = next((id for id in candidates if id is not None and id not in ends), None)
    return None if free is None else (str(tokenizer.convert_ids_to_tokens(free)), int(free))


def load_head(folder: Path, device: str) -> Tensor:
    """The head [hidden] of a reward model's folder, float32.

    Raises:
        PrerequisiteError: when the folder is no reward model.
    """
    if (folder / HEAD_FILE).exists():
        return load_file(str(folder / HEAD_FILE))["weight"].float().to(device)
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(str(path), framework="pt") as file:
            if SCORE in file.keys():  # noqa: SIM118 - safe_open is no mapping
                head: Tensor = file.get_tensor(SCORE)
                if head.shape[0] != 1:
                    raise PrerequisiteError(f"{folder}: {SCORE} has {head.shape[0]} rows; a reward model has one")
                return head[0].float().to(device)
    raise PrerequisiteError(f"{folder}: no {SCORE}; name the artifact of a reward stage")
