"""What the checks of a plan look at: every step's commands, upstream's configs, and what has been found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cai.engines.base import Places
from cai.engines.nemo_aligner import upstream
from cai.engines.nemo_aligner.commands import Compiled, commands
from cai.engines.nemo_aligner.methods import TRAINED_BY, Trainer
from cai.engines.nemo_aligner.settings import NemoAlignerSettings
from cai.errors import Problem
from cai.files.home import cai_home
from cai.plan import Plan, Step


@dataclass
class PlanSurvey:
    """One check of one plan, while it lasts. ``compiled`` and ``effective`` are by step, in the commands' order."""

    settings: NemoAlignerSettings
    plan: Plan
    where: Callable[[str], str]
    places: Places
    compiled: dict[str, tuple[Compiled, ...]]
    configs: upstream.Configs
    problems: list[Problem] = field(default_factory=list)
    notes: dict[str, list[str]] = field(default_factory=dict)
    _effective: dict[int, upstream.Effective] = field(default_factory=dict)

    def wrong(self, path: str, message: str, following: str) -> None:
        """Add a problem at a field of the experiment."""
        self.problems.append(Problem(self.where(path), message, following))

    def note(self, step: str, text: str) -> None:
        """Add a note under a step, once."""
        notes = self.notes.setdefault(step, [])
        if text not in notes:
            notes.append(text)

    def steps(self, *kinds: str) -> Iterator[Step]:
        """The steps of some kinds that this engine does."""
        return (step for step in self.plan.steps if step.kind in kinds and not step.engine)

    def trained(self, *methods: Trainer) -> Iterator[Step]:
        """The steps that train, by any method or by some."""
        chosen = {trainer.method.stage for trainer in methods or TRAINED_BY.values()}
        return self.steps(*chosen)

    def layout_path(self, setting: str) -> str:
        """Where a layout is written: at its own name, or at ``default`` where only that is there."""
        head, name, *tail = setting.removeprefix("engine.").split(".")
        layout_names = set(self.settings.steps if head == "steps" else self.settings.servers)
        used = "default" if name not in layout_names and "default" in layout_names else name
        return ".".join(("engine", head, used, *tail))

    def effective(self, compiled: Compiled) -> upstream.Effective:
        """The values of a command's config with its overrides."""
        if id(compiled) not in self._effective:
            config = self.configs.files.get(compiled.config)
            self._effective[id(compiled)] = upstream.Effective(compiled.overrides, config)
        return self._effective[id(compiled)]

    def role(self, step: Step, role: str) -> Compiled | None:
        """A step's command of that role."""
        return next((c for c in self.compiled[step.name] if c.command.role == role), None)

    def above(self, step: Step, *roles: str) -> Iterator[Step]:
        """What feeds the rows of these inputs, near ones first: through mixes, judges and samples, not models."""
        visited: set[str] = set()
        names = [name for role in roles for name in step.sources(role)]
        while names:
            name = names.pop(0)
            if name in visited:
                continue
            visited.add(name)
            source_step = self.plan.step(name)
            yield source_step
            for role in ("sources", "candidates", "responses", "prompts", "data"):
                names += source_step.sources(role)

    def origin(self, model: str) -> Step | None:
        """The fetched model that a model step goes back to."""
        step = self.plan.step(model)
        while step.kind != "fetch":
            name = step.source("model")
            if name is None:
                return None
            step = self.plan.step(name)
        return step


def survey_plan(settings: NemoAlignerSettings, plan: Plan, where: Callable[[str], str]) -> PlanSurvey:
    """Compile every step's commands, and read the configs that they need."""
    places = Places(cai_home() / "store")
    # Steps of other engines are none of this one's: they only feed its own.
    compiled = {step.name: () if step.engine else commands(settings, plan, step, places) for step in plan.steps}
    config_names = {c.config for step_commands in compiled.values() for c in step_commands if c.config}
    return PlanSurvey(settings, plan, where, places, compiled, upstream.find(settings, config_names))
