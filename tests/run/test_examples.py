"""``plan --examples``: two prompts of every stage, rendered by the stages themselves, before anything runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.commands.planning import plan_verb
from cai.errors import SpecError
from cai.files.library import Library, shipped_root
from cai.planning.resolver import resolve_data
from cai.run.examples import MOST_SHOWN, plan_examples
from cai.terminal.examples_view import examples_markdown, examples_text
from tests.support.small_experiment import raw_experiment


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setenv("CAI_HOME", str(tmp_path / "home"))
    return raw_experiment(tmp_path, monkeypatch)


def examples(raw):
    library = Library((Path.cwd(), shipped_root()))
    return {each.step: each for each in plan_examples(resolve_data(raw, library), library)}


def test_every_stage_that_asks_or_trains_shows_two_prompts(raw):
    shown = examples(raw)
    assert list(shown) == ["respond", "revise", "sft", "sample", "judge", "reward", "rl", "evaluate"]
    assert {step: len(each.prompts) for step, each in shown.items()} == dict.fromkeys(shown, 2)
    assert not [each.problem for each in shown.values() if each.problem]


def test_the_first_rows_of_the_data_are_rendered_as_the_model_reads_them(raw):
    first, second = examples(raw)["respond"].prompts
    assert first.model == "base"
    assert first.text.startswith("<|im_start|>user\nquestion ")
    assert first.text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert first.text != second.text


def test_what_earlier_steps_would_write_is_a_marked_placeholder(raw):
    shown = examples(raw)
    critique, revision = shown["revise"].prompts
    assert "Assistant: ⟨answer 1 of respond⟩" in critique.text
    assert critique.text.endswith("Critique:")
    assert "Critique: ⟨answer 1 of revise⟩" in revision.text
    assert revision.text.endswith("Revision:")
    assert "⟪⟨answer " in shown["sft"].prompts[0].text
    assert shown["sft"].prompts[0].text.rstrip().endswith("<|im_end|>⟫")
    assert "⟨answer " in shown["judge"].prompts[0].text
    assert {prompt.model for prompt in shown["evaluate"].prompts} == {"base", "rl"}


def test_data_that_is_not_here_is_a_placeholder_too(raw):
    raw["data"]["asked"] = {"path": f"hf:a/b@{'0' * 40}:x.jsonl", "makes": "prompts", "splits": {"sl": 1, "rl": 1}}
    assert "user\n⟨prompt 1 of asked.sl⟩<|im_end|>" in examples(raw)["respond"].prompts[0].text


def test_data_of_a_mirror_is_shown(raw, tmp_path, monkeypatch):
    file = tmp_path / "mirror" / "a" / "b" / "x.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text('{"prompt": "from the mirror"}\n')
    monkeypatch.setenv("CAI_DATA", str(tmp_path / "mirror"))
    raw["data"]["asked"] = {"path": f"hf:a/b@{'0' * 40}:x.jsonl", "makes": "prompts"}
    raw["stages"] = {"respond": {"model": "base", "prompts": "asked"}}
    (prompt,) = examples(raw)["respond"].prompts
    assert "user\nfrom the mirror<|im_end|>" in prompt.text


def test_a_server_that_renders_turns_itself_is_shown_what_it_is_given(raw):
    raw["models"]["far"] = {"source": "api:some/model", "url": "http://127.0.0.1:9/v1"}
    raw["stages"]["respond"] |= {"model": "far", "system": "Be brief."}
    prompt = examples(raw)["respond"].prompts[0]
    assert prompt.messages
    assert prompt.text.startswith("[system] Be brief.\n[user] question ")


def test_long_prompts_are_cut_and_counted(raw):
    Path("prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": f"{i} {'x' * 9000}", "topic": "t"}) + "\n" for i in range(9))
    )
    shown = examples(raw)
    prompt = shown["respond"].prompts[0]
    assert len(prompt.text) == MOST_SHOWN < 9000 < prompt.characters
    assert f"... ({prompt.characters - MOST_SHOWN:,} more characters)" in examples_text(list(shown.values()))


def test_rows_that_a_template_cannot_render_are_told(raw):
    calls = [{"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}]
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": calls}]
    turns += [{"role": "tool", "content": "r", "tool_call_id": "c"}]
    Path("prompts.jsonl").write_text("".join(json.dumps({"messages": turns, "n": i}) + "\n" for i in range(2)))
    raw["data"]["asked"]["splits"] = {"sl": 1, "rl": 1}
    raw["data"]["asked"]["splits"] = {"all": 1.0}
    raw["stages"] = {"respond": {"model": "base", "prompts": "asked"}}
    (each,) = examples(raw).values()
    assert not each.prompts
    assert "this template has no tool turns" in each.problem
    assert "no prompt can be rendered: " in examples_text([each])


def test_nothing_of_it_is_kept(raw, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    examples(raw)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("format", ["text", "md", "json"])
def test_the_plan_shows_them_in_every_format(raw, capsys, format):
    import yaml

    Path("experiments").mkdir()
    Path("experiments/mine.yaml").write_text(yaml.safe_dump(raw))
    assert plan_verb(["experiment=mine", "--examples", "--format", format]) == 0
    shown = capsys.readouterr().out
    if format == "json":
        data = json.loads(shown)
        assert len(data["examples"]["revise"]) == 2
        assert data["examples"]["respond"][0]["text"].startswith("<|im_start|>user\n")
    else:
        assert "⟨answer 1 of respond⟩" in shown
        assert "question " in shown


def test_only_one_experiment_has_examples(raw):
    for wrong in (["-m", "--examples", "seed=0,1"], ["--pilot", "3", "--examples"]):
        with pytest.raises(SpecError, match="--"):
            plan_verb(wrong)


def test_a_prompt_closes_no_block_of_markdown(raw):
    Path("prompts.jsonl").write_text('{"prompt": "```\\n</details>\\n# no head"}\n{"prompt": "b"}\n')
    raw["data"]["asked"]["splits"] = {"all": 1.0}
    raw["stages"] = {"respond": {"model": "base", "prompts": "asked"}}
    lines = examples_markdown(list(examples(raw).values())).split("\n")
    assert "      ```" in lines
    assert "# no head" not in lines
