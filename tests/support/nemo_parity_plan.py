"""What a plan says, and what the guide would have made of the same data, by short words.

``reading.read("override rl.actor model.optim.lr")`` is the value that the planned command has. No value of the table's
column "plan" is typed by hand: all come from the plan, from its commands, or from the body that the client sends to a
real server for it.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cai.chat import ChatTemplate, Message
from cai.clients.base import Request
from cai.clients.nemo_generate import NemoGenerateClient
from cai.data.nemo_tokens import open_tokenizer
from cai.engines import engine_of
from cai.engines.base import Places
from cai.engines.nemo_aligner.commands import Compiled, commands
from cai.engines.nemo_aligner.overrides import Env, literal
from cai.engines.nemo_aligner.schedule import SCHED, LearningRateCurve, updates_of
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.engines.nemo_aligner.survey import survey_plan
from cai.plan import Plan, Step, by_role
from cai.stages.base import Sampled
from tests.support.generate_server import Fake, serving
from tests.support.small_tokenizers import quickstart_spm

STORE = Path("/store")
NOTHING = "-"
"""The plan has nothing in a flag's place."""
RATE = "{:.1e}"
SAMPLED = {
    "respond": ("sampling",),
    "revise": ("critique_sampling", "revision_sampling"),
    "sample": ("sampling",),
    "evaluate": ("sampling",),
}
"""By kind of step, the fields that say how a server of this engine draws."""
Values = Mapping[str, Any]
GuideValues = Mapping[str, Values]
"""By a command's place, then by key."""


class Lost(LookupError):
    """A place that the plan does not have."""


class Reading:
    """One plan, read by the words of ``docs/nemo_parity.yaml``.

    ``guide`` and ``upstream`` are by the place of a command: what the guide's command comes to, and what upstream's
    YAML says by itself.
    """

    def __init__(self, plan: Plan, guide: GuideValues, upstream: GuideValues) -> None:
        self.plan = plan
        self._guide = guide
        self._upstream = upstream
        settings = engine_of(plan.engine)[1]
        assert isinstance(settings, NemoAlignerSettings)
        self.settings = settings
        self._places = Places(STORE, "plan.json")

    def read(self, words: str) -> Any:
        """The value at a place.

        Raises:
            Lost: when the plan has no such place.
        """
        reader, *arguments = words.split()
        try:
            return READERS[reader](self, *arguments)
        except (KeyError, IndexError, ValueError, TypeError, AttributeError, StopIteration) as error:
            raise Lost(f"the plan has no '{words}' ({type(error).__name__}: {error})") from error

    @cached_property
    def commands(self) -> dict[str, Compiled]:
        """``step.role`` -> command; of equal servers the first, by ``step.server.model``."""
        by_role = {}
        for step in self.plan.steps:
            for compiled in commands(self.settings, self.plan, step, self._places):
                role = compiled.command.role
                if not role.startswith("server-"):
                    model = compiled.setting.rpartition(".")[2] if compiled.model else ""
                    by_role[f"{step.name}.{role}{'.' * bool(model)}{model}"] = compiled
        return by_role

    def overrides(self, command: str) -> dict[str, Any]:
        """The values of a planned command, by key, as the table shows them."""
        return {override.key: self.shown(override.value) for override in self.commands[command].overrides}

    def shown(self, value: Any) -> Any:
        """A value whose paths in the store are written ``STEP/...``."""
        match value:
            case Env():
                return literal(value)
            case list() | tuple():
                return [self.shown(item) for item in value]
            case Mapping():
                return {key: self.shown(item) for key, item in value.items()}
            case str() if value.startswith(f"{STORE}/"):
                for step in self.plan.steps:
                    for folder in (self._places.work(step), self._places.artifact(step)):
                        if value.startswith(f"{folder}/"):
                            return f"{step.name}/{value.removeprefix(f'{folder}/')}"
        return value

    def hub(self, step: str) -> list[Mapping[str, str]]:
        """The files of the hub that a data step reads."""
        files: list[Mapping[str, str]] = self.plan.step(step).spec["identity"]["hub"]
        return files

    def template(self, step: str) -> ChatTemplate:
        """The chat template of a step's prompts."""
        frozen = self.plan.step(step).resources["template"]
        return ChatTemplate.from_text(frozen["name"], frozen["text"])

    @cached_property
    def bodies(self) -> dict[str, Values]:
        """What a client sends to a server, as it arrived: by step, and by ``step.field`` where a step draws twice."""
        import sentencepiece

        by_step: dict[str, Values] = {}
        with tempfile.TemporaryDirectory() as folder:
            tokenizer = Path(folder) / "tokenizer.model"
            tokenizer.write_bytes(quickstart_spm())
            server = Fake(sentencepiece.SentencePieceProcessor(model_proto=quickstart_spm()), {"": "Yes."})
            with serving(server) as url:
                client = NemoGenerateClient([url], open_tokenizer(tokenizer))
                for step in self.plan.steps:
                    for field in SAMPLED.get(step.kind, ()):
                        list(client.generate([self._request(step, field)]))
                        by_step[step.name if field == "sampling" else f"{step.name}.{field}"] = server.calls[-1]
                client.close()
        return by_step

    def _request(self, step: Step, field: str) -> Request:
        chat = self.template(step.name)
        sampling = Sampled.model_validate(step.spec[field]).sampling(chat.stops)
        return Request("row", chat.prompt((Message("user", "Is it safe?"),)), sampling)

    # ---- learning rates ----------------------------------------------------------------------------------------------

    def updates(self, command: str) -> int:
        """Optimizer steps of a planned trainer."""
        name = command.partition(".")[0]
        return updates_of(survey_plan(self.settings, self.plan, str), self.plan.step(name), self.commands[command])

    def curve(self, command: str) -> LearningRateCurve:
        """The learning rates of a planned trainer."""
        values = {**self._upstream[f"override {command}"], **self.overrides(command)}
        return _curve(values, self.updates(command))

    def guide_rows(self, command: str) -> int:
        """Rows that the guide's trainer can have at most: its scripts drop the last partial batch of the prompts.

        A fifth of the AI's pairs is for validation; Anthropic's pairs for training all train.
        """
        if command == "sft.train":
            return self._kept("request respond") + self._expected("helpful_sft")
        return round(0.8 * self._kept("request sample")) + self._expected("helpful_pairs")

    def guide_lost(self, *place: str) -> int:
        """Red-team prompts that the guide's script drops, as the last of them fill no batch."""
        return self._expected("red_team.sl") - self._kept(" ".join(place))

    def _kept(self, place: str) -> int:
        values = self._guide[place]
        return _whole(self._expected("red_team.sl"), values.get("--batch_size") or values["--batch-size"])

    def _expected(self, step: str) -> int:
        """Rows of a data source before it is split."""
        return int(self.plan.step(step).spec["source"]["expect"])

    def guide_rollouts(self, command: str) -> int:
        """Prompts that the guide's PPO answers: whole iterations alone."""
        return _whole(self.guide_rows(command), self._guide["override rl.actor"]["model.ppo.num_rollout_samples"])

    def guide_updates(self, command: str) -> int:
        """Optimizer steps of the guide's trainer at most."""
        values = self._guide[f"override {command}"]
        if command.startswith("rl."):
            return self.guide_rollouts(command) // int(values["model.global_batch_size"])
        batch = values.get("model.global_batch_size") or values["model.data.train_ds.global_batch_size"]
        return self.guide_rows(command) // int(batch)

    def guide_curve(self, command: str, data_parallel: int = 1) -> LearningRateCurve:
        """The guide's learning rates. PPO's are laid out for ``data_parallel`` times the updates that its prompts make.

        Source: NeMo-Aligner v0.7.0, examples/nlp/gpt/train_gpt_ppo_actor.py (the loader that stands in for training).
        """
        values = self._guide[f"override {command}"]
        curve = _curve(values, self.guide_updates(command))
        if command != "rl.actor":
            return curve
        share = int(values["model.global_batch_size"]) // data_parallel
        return replace(curve, total=-(-self.guide_rows(command) // share))


def _whole(rows: int, batch: int) -> int:
    return rows // batch * batch


def _curve(values: Values, updates: int) -> LearningRateCurve:
    total = values.get(f"{SCHED}.max_steps") or max(0, int(values.get("trainer.ppo.max_steps", 0))) or updates
    warmup, constant = (int(values[f"{SCHED}.{name}_steps"]) for name in ("warmup", "constant"))
    return LearningRateCurve(updates, total, values["model.optim.lr"], values[f"{SCHED}.min_lr"], warmup, constant)


# ---- the words -------------------------------------------------------------------------------------------------------


def _override(reading: Reading, command: str, key: str) -> Any:
    return reading.overrides(command)[key.removeprefix("++")]


def _argument(reading: Reading, command: str, flag: str) -> Any:
    argv = reading.commands[command].command.argv
    return reading.shown(argv[argv.index(flag) + 1])


def _field(reading: Reading, path: str) -> Any:
    """A field of the experiment: defaults included, as the plan has them."""
    head, name, *rest = path.split(".")
    plan = reading.plan
    value: Any
    if head == "engine":
        value, rest = reading.settings.model_dump(mode="json"), [name, *rest]
    elif head == "data":
        value = next(s.spec["source"] for s in plan.steps if s.kind == "read" and s.name.partition(".")[0] == name)
    else:
        value = plan.step(name).spec
    for part in rest:
        value = value[int(part)] if isinstance(value, list | tuple) else value[part]
    return reading.shown(value)


def _input(reading: Reading, step: str, role: str, *number: str) -> Any:
    names = by_role(reading.plan.step(step).inputs)[role]
    return names[int(number[0])] if number and isinstance(names, list) else names


def _hub(reading: Reading, step: str, what: str) -> Any:
    files = reading.hub(step)
    parts = [file["file"].rpartition("/") for file in files]
    values = {
        "name": [file["name"] for file in files],
        "revision": [file["revision"] for file in files],
        "folders": [folder for folder, _, _ in parts],
        "files": [name for _, _, name in parts],
    }[what]
    distinct = list(dict.fromkeys(values))
    return distinct[0] if len(distinct) == 1 else distinct


def _template(reading: Reading, step: str, part: str) -> str:
    """The parts of a template as upstream's scripts are given them, by rendering it with a placeholder."""
    chat, user, system = reading.template(step), Message("user", "{MESSAGE}"), Message("system", "{MESSAGE}")
    whole = chat.prompt((user,))
    opened = chat.prompt((system, user)).partition("{MESSAGE}")[0]
    return {
        "name": chat.name,
        "question": whole.replace("{MESSAGE}", "{question}"),
        "user": whole.removeprefix(f"{opened}\n"),
        "system": chat.prompt((system, user)).removesuffix(whole.removeprefix(f"{opened}\n")),
        "assistant": chat.answer((user,), "{MESSAGE}").removesuffix(chat.header.answer_end),
        "end": chat.header.answer_end,
    }[part]


def _request(reading: Reading, step: str, flag: str) -> Any:
    return reading.bodies[step][flag.removeprefix("--")]


def _unsent(reading: Reading, step: str, flag: str) -> bool:
    """False, which is the server's own value, for a switch that is not in the body."""
    return bool(reading.bodies[step].get(flag, False))


def _calls(reading: Reading, step: str) -> int:
    estimate = reading.plan.step(step).estimate
    assert estimate.calls is not None
    assert estimate.rows is not None
    return estimate.calls // estimate.rows


def _rows_of(reading: Reading, step: str) -> str:
    return reading.plan.step(step).name


def _method(reading: Reading, step: str) -> Values:
    method: Values = reading.plan.step(step).spec["training"]
    return method


def _prompts(reading: Reading, step: str) -> int:
    """Prompts that PPO can draw: all but those that are held back for validation."""
    held = reading.overrides(f"{step}.actor")["model.ppo.num_val_samples"]
    rows = reading.plan.step(step).estimate.rows
    assert rows is not None
    return rows - int(held)


READERS: dict[str, Callable[..., Any]] = {
    "override": _override,
    "argument": _argument,
    "field": _field,
    "input": _input,
    "hub": _hub,
    "template": _template,
    "request": _request,
    "unsent": _unsent,
    "seed": lambda reading, step: reading.plan.step(step).seed,
    "rows_of": _rows_of,
    "constitution": lambda reading, step: reading.plan.step(step).resources["constitution"]["name"],
    "principles": lambda reading, step: len(reading.plan.step(step).resources["constitution"]["principles"]),
    "estimate": lambda reading, step, what: reading.plan.step(step).estimate.to_json()[what],
    "calls": _calls,
    "rollouts": lambda reading, step: _method(reading, step)["iterations"] * _method(reading, step)["rollouts"],
    "prompts": _prompts,
    "updates": Reading.updates,
    "rate": lambda reading, command: RATE.format(reading.curve(command).mean),
    "guide_lost": Reading.guide_lost,
    "guide_prompts": Reading.guide_rows,
    "guide_rollouts": Reading.guide_rollouts,
    "guide_updates": Reading.guide_updates,
    "guide_rate": lambda reading, command, *size: RATE.format(reading.guide_curve(command, *map(int, size)).mean),
    "nothing": lambda reading: NOTHING,
}
PLACE = re.compile(r"\{(" + "|".join(READERS) + r")( [^{}]*)?\}")
"""A place within words."""
