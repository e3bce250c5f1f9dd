"""What the embedded engine is told, and what it will use on this machine: decided while planning, without torch."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import Field

from cai.errors import PrerequisiteError
from cai.identity import ADDED, RUNTIME
from cai.models.passport import Passport
from cai.settings import Settings

PACKAGES = ("torch", "transformers", "safetensors", "gguf")
"""What the engine imports when it works: the extra ``embedded``, without what benchmarks compare it with."""


class Device(str, Enum):
    """Where tensors live. ``auto``: CUDA where torch was built for it and a GPU is present, else the CPU."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class Generator(str, Enum):
    """Who generates text. ``auto``: openvino-genai on the CPU where it is installed and can read the model, else our
    loop on transformers."""

    AUTO = "auto"
    OPENVINO = "openvino"
    TRANSFORMERS = "transformers"


class GenerationPrecision(str, Enum):
    """Arithmetic of generation. ``auto``: bfloat16 on CUDA and on processors that have it, else float32."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ScoringPrecision(str, Enum):
    """Arithmetic of the log-probabilities that judges read. ``auto``: as in generation. The last product, from which
    the probabilities are taken, is in float32 whatever this says."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    AUTO = "auto"


class EmbeddedSettings(Settings):
    """Torch and transformers on this machine.

    Batch sizes count: they decide which rows share a matrix product, and so the last digits of its result.
    """

    device: Device = Device.AUTO
    generator: Generator = Generator.AUTO
    generation_precision: GenerationPrecision = GenerationPrecision.AUTO
    generation_batch: Annotated[int, Field(ge=1, description="rows that generate side by side")] = 64
    scoring_precision: Annotated[
        ScoringPrecision, ADDED(ScoringPrecision.FLOAT32), Field(description="of what judges read of a model")
    ] = ScoringPrecision.FLOAT32
    scoring_batch_tokens: Annotated[int, Field(ge=256, description="tokens, padding included, scored at once")] = 4096
    kv_cache_gb: Annotated[int, Field(ge=1, description="GiB of keys and values that openvino-genai may hold")] = 1
    threads: Annotated[int, Field(ge=0, description="processor threads; 0 uses all"), RUNTIME] = 0


@dataclass(frozen=True, slots=True)
class Chosen:
    """The settings with every ``auto`` decided."""

    device: Device
    generator: Generator
    precision: GenerationPrecision
    scoring: ScoringPrecision


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where training runs: ``cpu`` or ``cuda``, and how many processor threads it may have; 0 is all."""

    device: str = "cpu"
    threads: int = 0


@cache
def installed(package: str) -> str:
    """The version of an installed package, empty when there is none; imports nothing."""
    try:
        facts = distribution(package).read_text("METADATA") or ""
    except PackageNotFoundError:
        return ""
    # ``version()`` would read the whole file as an e-mail, which takes longer than all the rest of planning's look-ups.
    match = re.search(r"^Version: *(\S+)", facts, re.MULTILINE)
    return match[1] if match else ""


def check_installed() -> None:
    """Whatever the engine is about to import can be imported; imports nothing itself.

    Raises:
        PrerequisiteError: naming the packages that are missing and what brings them.
    """
    if missing := [package for package in PACKAGES if not _importable(package)]:
        raise PrerequisiteError(
            f"engine.kind: embedded needs packages that are not installed here ({', '.join(missing)}); "
            "pip install 'constitution-as-code[embedded]'"
        )


def _importable(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except (ImportError, ValueError):
        return False


def _has_cuda() -> bool:
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    return not hidden and not installed("torch").endswith("+cpu") and Path("/dev/nvidiactl").exists()


def _cpu_has_bfloat16() -> bool:
    """Whether the processor multiplies bfloat16 itself; where that is not told (not Linux), no."""
    try:
        cpu_info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in cpu_info or "amx_bf16" in cpu_info


def choose(settings: EmbeddedSettings, model: Passport | None = None) -> Chosen:
    """Decide every ``auto`` from what is installed, and for a ``model`` from what its generator can read.

    Raises:
        PrerequisiteError: when openvino is asked for by name but is not installed, or cannot serve the device.
    """
    device = settings.device
    if device is Device.AUTO:
        device = Device.CUDA if _has_cuda() else Device.CPU
    generator = settings.generator
    if generator is Generator.OPENVINO:
        if device is Device.CUDA:
            raise PrerequisiteError(
                "engine.generator: openvino does not run on CUDA; set generator=transformers or device=cpu"
            )
        if not installed("openvino-genai"):
            raise PrerequisiteError(
                "engine.generator: openvino-genai is not installed; "
                "pip install 'constitution-as-code[openvino]' or set generator=transformers"
            )
    if generator is Generator.AUTO:
        readable = model is None or not model.unknown_to_openvino()
        here = device is Device.CPU and readable and installed("openvino-genai")
        generator = Generator.OPENVINO if here else Generator.TRANSFORMERS
    precision, scoring = settings.generation_precision, settings.scoring_precision
    if precision is GenerationPrecision.AUTO or scoring is ScoringPrecision.AUTO:
        quick = device is Device.CUDA or _cpu_has_bfloat16()
        if precision is GenerationPrecision.AUTO:
            precision = GenerationPrecision.BFLOAT16 if quick else GenerationPrecision.FLOAT32
        if scoring is ScoringPrecision.AUTO:
            scoring = ScoringPrecision.BFLOAT16 if quick else ScoringPrecision.FLOAT32
    return Chosen(device, generator, precision, scoring)


def describe(settings: EmbeddedSettings) -> dict[str, str]:
    """What this machine will use, for the plan and the identity of results; imports nothing heavy.

    Raises:
        PrerequisiteError: as ``choose``.
    """
    chosen = choose(settings)
    package = "openvino-genai" if chosen.generator is Generator.OPENVINO else "transformers"
    return {
        "generator": f"{package} {installed(package)}",
        "device": chosen.device.value,
        "precision": chosen.precision.value,
        "scoring": chosen.scoring.value,
        "torch": installed("torch"),
        "transformers": installed("transformers"),
        "machine": platform.machine(),
    }
