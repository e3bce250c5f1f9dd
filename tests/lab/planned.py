"""The commands of the shipped experiments as the lab looks at them, and the lock that says which it has looked at.

``validated.json`` is written by ``make nemo-lab`` when all of it has passed: a digest for every command whose
configuration upstream's classes were built from, for upstream's own configs, and for the data files that upstream's
classes have read. A planned command that is not in it fails an ordinary test, so that a lab which was skipped hides
no change.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from cai.commands.planning import compile_plan
from cai.engines import engine_of
from cai.engines.base import Places
from cai.engines.nemo_aligner.commands import Compiled, commands
from cai.plan import Plan

EXPERIMENTS = ("mistral_rl_cai", "paper_rl_cai")
LOCK = Path(__file__).with_name("validated.json")
WHEELS = Path(__file__).with_name("nemo-wheels.txt")
VERSIONS = Path(__file__).parents[2] / "constraints-nemo.txt"
PACKAGES = ("megatron-core", "nemo-aligner", "nemo-toolkit", "nvidia-pytriton")
CONFIGS = (
    "gpt_ppo_actor.yaml",
    "gpt_ppo_critic.yaml",
    "gpt_sft.yaml",
    "megatron_gpt_inference.yaml",
    "training_rm.yaml",
)
STORE = Path("/store")
_KEY = re.compile(r"-[0-9a-f]{16}\b")


def pins() -> dict[str, str]:
    """The versions of upstream's own packages in the lock of the extra ``nemo``."""
    lines = (line.strip() for line in VERSIONS.read_text(encoding="utf-8").splitlines())
    every = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {name: every[name] for name in PACKAGES}


@cache
def plan_of(experiment: str) -> Plan:
    """A shipped experiment's plan, nothing scaled."""
    return compile_plan([f"experiment={experiment}"])


def planned(experiment: str) -> dict[str, Compiled]:
    """``step.role`` -> command, those that read one of upstream's configs; of equal servers the first of a model."""
    plan = plan_of(experiment)
    _, settings = engine_of(plan.engine)
    made = {}
    for step in plan.steps:
        for compiled in commands(settings, plan, step, Places(STORE, "plan.json")):
            if compiled.config and not compiled.command.role.startswith("server-"):
                model = compiled.setting.rpartition(".")[2] if compiled.model else ""
                made[f"{step.name}.{compiled.command.role}{'.' * bool(model)}{model}"] = compiled
    return made


def command_digest(compiled: Compiled) -> str:
    """A command by what upstream reads of it; the keys of the store's artifacts are no part of that."""
    words = [_KEY.sub("-KEY", word) for word in compiled.command.argv]
    return digest([compiled.config, words, dict(compiled.command.env)])


def config_digest(path: Path) -> str:
    """An upstream config by its content, without comments."""
    return digest(yaml.safe_load(path.read_text(encoding="utf-8")))


def digest(data: Any) -> str:
    """The first 16 digits of a SHA-256."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_lock() -> Mapping[str, Any]:
    """The lock as the last green lab left it."""
    lock = json.loads(LOCK.read_text(encoding="utf-8"))
    assert isinstance(lock, dict)
    return lock
