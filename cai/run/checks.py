"""What the executor makes sure of: the plan fits the stage kinds before, the ledger balances after."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from pydantic import ValidationError

from cai.clients.key_hosts import check_key_hosts
from cai.errors import PrerequisiteError, Problem, SpecError, StepFailed, did_you_mean
from cai.plan import Plan, Step
from cai.planning.derivation import differences
from cai.stages import KINDS
from cai.stages.base import Context, Ledger, Outcome, StageSpec
from cai.stages.fetch import API


class StageWork(Protocol):
    """A row of the table of stage kinds: the spec's type and the work."""

    @property
    def spec(self) -> type[StageSpec]:
        """The spec's type."""
        ...

    @property
    def run(self) -> Callable[[Any, Context], Outcome]:
        """The work."""
        ...


def checked_specs(plan: Plan, kinds: Mapping[str, StageWork]) -> dict[str, StageSpec]:
    """Every step's spec, validated, and every key derived anew: a plan's file is not believed.

    Raises:
        SpecError: with every problem found.
    """
    problems: list[Problem] = []
    specs: dict[str, StageSpec] = {}
    for step in plan.steps:
        where = f"plan: {step.name}"
        if step.kind not in kinds:
            problems.append(Problem(where, f"unknown kind {step.kind!r}", did_you_mean(step.kind, kinds)))
            continue
        if step.ingredients.key() != step.key:
            problems.append(Problem(where, "its key is not that of its ingredients", "make the plan again"))
        for name in step.needs():
            if name not in specs:
                problems.append(Problem(where, f"reads '{name}', which is no earlier step", did_you_mean(name, specs)))
        try:
            specs[step.name] = kinds[step.kind].spec.variant(step.spec).model_validate(step.spec)
        except ValidationError as error:
            for detail in error.errors():
                field = ".".join(map(str, ("spec", *detail["loc"])))
                problems.append(Problem(f"{where}.{field}", detail["msg"], "make the plan again"))
    # Kinds of a caller's own have engines and inputs that this program's planning does not know.
    if not problems and kinds is KINDS:
        problems += differences(plan, specs)
    if problems:
        raise SpecError(problems)
    return specs


def servers_of(plan: Plan, step: Step) -> dict[str, dict[str, Any]]:
    """Where a step's endpoints are and how they are asked, by role: as the plan says, whatever an artifact holds.

    An artifact stands for the model wherever it is served, so what it holds of an address may be of another night.
    """
    servers: dict[str, dict[str, Any]] = {}
    for entry in step.inputs:
        if place := server_of(plan.step(entry.step)):
            servers[entry.place] = {**place, **step.resources.get("servers", {}).get(entry.place, {})}
    return servers


def server_of(step: Step) -> dict[str, Any]:
    """Where the model is that a step fetches, as its plan says; empty where it is not served elsewhere."""
    source = str(step.spec.get("source", ""))
    if step.kind != "fetch" or not source.startswith(API):
        return {}
    place = {name: step.spec.get(name, "") for name in ("url", "logprobs", "dialect")}
    return {"model": source.removeprefix(API), **place}


def check_key_destinations(plan: Plan, step_names: Iterable[str]) -> None:
    """Every key that these steps ask an endpoint with may be sent there, before hours of other work.

    Raises:
        PrerequisiteError: naming the variable and the server, and how to allow it.
    """
    names = set(step_names)
    urls_by_variable: dict[str, list[str]] = {}
    for step in plan.steps:
        variables = step.resources.get("api_keys", {}) if step.name in names else {}
        for place, server in servers_of(plan, step).items():
            if variable := variables.get(place):
                urls_by_variable.setdefault(variable, []).extend((server["url"], *server.get("replicas", ())))
    for variable, destinations in urls_by_variable.items():
        check_key_hosts(variable, destinations)


def check_keys(plan: Plan, step_names: Iterable[str], environment: Mapping[str, str] = os.environ) -> None:
    """Every key that these steps ask an endpoint with is in the environment, before hours of other work.

    Raises:
        PrerequisiteError: naming the variables that are not set, never a value.
    """
    names = set(step_names)
    steps_by_variable: dict[str, list[str]] = {}
    for step in plan.steps:
        for variable in step.resources.get("api_keys", {}).values():
            if variable and step.name in names and not environment.get(variable):
                steps_by_variable.setdefault(variable, []).append(step.name)
    if steps_by_variable:
        message = "; ".join(
            f"{name} is not set; export {name}, for {', '.join(steps)}" for name, steps in steps_by_variable.items()
        )
        raise PrerequisiteError(f"{message}; then run the same command again")


def check_ledger(spec: StageSpec, ledger: Ledger) -> None:
    """Every row must be accounted for, and not too many dropped."""
    dropped = sum(ledger.dropped.values())
    reasons = ", ".join(f"{reason} {count}" for reason, count in ledger.dropped.items()) or "none"
    if ledger.rows_in != ledger.rows_out + dropped:
        raise StepFailed(
            f"the ledger does not balance: {ledger.rows_in} rows in, {ledger.rows_out} out, "
            f"{dropped} dropped ({reasons})"
        )
    limit: float | None = getattr(spec, "max_drop_rate", None)
    if limit is not None and dropped > limit * ledger.rows_in:
        raise StepFailed(
            f"dropped {dropped} of {ledger.rows_in} rows ({dropped / ledger.rows_in:.1%}), more than max_drop_rate "
            f"{limit:.1%}: {reasons}"
        )
