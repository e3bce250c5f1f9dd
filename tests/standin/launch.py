"""How every script of the stand-in starts: faults, Hydra in struct mode, world size and ranks, as upstream does it.

Faults, for tests only: ``STANDIN_FAIL=SCRIPT:WHEN[,SCRIPT:WHEN]`` where SCRIPT is a script's file name without ``.py``
and WHEN is one of

- ``start``          exit 1 before anything, with a message on standard error
- ``die-after=N``    SIGKILL itself after N steps or requests
- ``exit-after=N``   exit 1 after N steps or requests
- ``no-port``        load, then never open the port
- ``hang-after=N``   stop answering or stepping after N
- ``errors``, ``errors=N``  answer 500 to all, or to the first N, requests
- ``stubborn``       ignore SIGTERM and SIGINT
- ``in-last=N``      SIGKILL itself while the N-th ``-last`` checkpoint is being written
- ``two-lasts=N``    ... when the N-th is whole and the one before is not yet removed
- ``before-nemo``    ... after the last checkpoint of training, before the finished model

With ``STANDIN_MARKS=FOLDER`` a fault happens once: it leaves a file there. ``STANDIN_STEP_SECONDS`` slows each step and
request, ``STANDIN_LOAD_SECONDS`` the loading of a server's model.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

_RESOLVERS: dict[str, Callable[[int, int], int]] = {
    "multiply": lambda x, y: x * y,
    "int_div": lambda x, y: x // y,
    "subtract": lambda x, y: x - y,
}


def say(text: str) -> None:
    """A line of the log."""
    print(text, flush=True)


class Fault:
    """The fault that the environment asks of one script."""

    def __init__(self, script: str) -> None:
        self._script = script
        asked = [w.split(":", 1) for w in os.environ.get("STANDIN_FAIL", "").split(",") if w]
        when = next((w for s, w in asked if s == script), "")
        self.kind, _, number = when.partition("=")
        self.number = int(number) if number else 0
        self._count = 0
        marks = os.environ.get("STANDIN_MARKS", "")
        self._mark = Path(marks) / f"{script}.{when}" if marks and when else None
        if self._mark and self._mark.exists():
            self.kind = ""
        if self.kind == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    def start(self) -> None:
        if self.kind == "start":
            self._happen()
            sys.exit(f"{self._script}: asked to fail at the start")

    def port(self) -> None:
        """Called when a server is about to open its port."""
        time.sleep(float(os.environ.get("STANDIN_LOAD_SECONDS", "0")))
        if self.kind == "no-port":
            self._happen()
            while True:
                time.sleep(60)

    def answer_error(self) -> bool:
        """Whether this request gets a 500."""
        if self.kind != "errors":
            return False
        self._count += 1
        if self.number and self._count >= self.number:
            self._happen()
            self.kind = "" if self._count > self.number else self.kind
        return self.kind == "errors"

    def tick(self) -> None:
        """Called after each step and each request."""
        time.sleep(float(os.environ.get("STANDIN_STEP_SECONDS", "0")))
        if self.kind not in ("die-after", "exit-after", "hang-after"):
            return
        self._count += 1
        if self._count < self.number:
            return
        if not self._happen():
            self.kind = ""
            return
        if self.kind == "hang-after":
            while True:
                time.sleep(60)
        if self.kind == "exit-after":
            print(f"{self._script}: asked to fail after {self.number}", file=sys.stderr, flush=True)
            os._exit(1)
        os.kill(os.getpid(), signal.SIGKILL)

    def at(self, place: str) -> None:
        """Called at the places of saving at which a script can be asked to be killed."""
        if self.kind == place:
            self._count += 1
            if self._count >= max(self.number, 1) and self._happen():
                os.kill(os.getpid(), signal.SIGKILL)

    def _happen(self) -> bool:
        """Leave the mark; False when another process of the same script has done so: it happens once."""
        if self._mark is None:
            return True
        self._mark.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._mark.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


Main = Callable[[DictConfig, Fault], None]


def script(file: str, config: str) -> Callable[[Main], Callable[[], None]]:
    """Runs ``main(cfg, fault)`` under Hydra with ``conf/CONFIG.yaml`` beside ``file``, in the current directory."""
    path = Path(file).resolve()

    def wrap(main: Main) -> Callable[[], None]:
        def task(cfg: DictConfig) -> None:
            if rank() == 0:
                main(cfg, fault)
            else:
                # Other ranks share the work upstream; here they check what they were given and leave it to rank 0.
                check_tasks(cfg)

        def run() -> None:
            fault.start()
            # Here, not on import: tests import these modules, and this belongs to a script's own process.
            os.environ["OMP_NUM_THREADS"] = "1"
            for name, function in _RESOLVERS.items():
                OmegaConf.register_new_resolver(name, function)
            # As NeMo's own runner: no output folder, no change of directory, no log file of Hydra's.
            at = max((i for i, word in enumerate(sys.argv) if "=" in word and word[0] != "-"), default=len(sys.argv))
            sys.argv[at + 1 : at + 1] = ["hydra.run.dir=.", "hydra.output_subdir=null", "hydra/job_logging=disabled"]
            hydra.main(version_base="1.3", config_path=str(path.parent / "conf"), config_name=config)(task)()

        fault = Fault(path.stem)
        return run

    return wrap


def rank() -> int:
    """This process's rank: of the srun that started it, else 0."""
    return int(os.environ.get("SLURM_PROCID", "0")) if "SLURM_NTASKS" in os.environ else 0


def check_tasks(cfg: DictConfig) -> None:
    """What Lightning demands of srun.

    Raises:
        ValueError: when srun's tasks a node or nodes are not the trainer's devices and num_nodes.
    """
    if "SLURM_NTASKS" not in os.environ:
        return
    tasks, nodes = os.environ.get("SLURM_NTASKS_PER_NODE"), os.environ.get("SLURM_NNODES")
    if tasks is not None and int(tasks) != cfg.trainer.devices:
        raise ValueError(f"trainer.devices={cfg.trainer.devices} does not match srun's --ntasks-per-node={tasks}")
    if nodes is not None and int(nodes) != cfg.trainer.num_nodes:
        raise ValueError(f"trainer.num_nodes={cfg.trainer.num_nodes} does not match srun's --nodes={nodes}")


def data_parallel(cfg: DictConfig, model: Any, sizes: dict[str, tuple[int, int]]) -> int:
    """The data-parallel size; asserts that each of ``sizes`` (name: global, micro batch) fits it."""
    check_tasks(cfg)
    world = cfg.trainer.devices * cfg.trainer.num_nodes
    tensor, pipeline = model.get("tensor_model_parallel_size", 1), model.get("pipeline_model_parallel_size", 1)
    context = model.get("context_parallel_size", 1)
    assert world % (tensor * pipeline * context) == 0, (
        f"world size ({world}) is not divisible by tensor_model_parallel_size ({tensor}) x "
        f"pipeline_model_parallel_size ({pipeline}) x context_parallel_size ({context})"
    )
    data = world // (tensor * pipeline * context)
    for name, (whole, micro) in sizes.items():
        assert whole % (micro * data) == 0, (
            f"{name}: global batch size ({whole}) is not divisible by micro batch size ({micro}) x "
            f"data parallel size ({data})"
        )
    return data


def local_ranks(cfg: DictConfig) -> None:
    """Without srun the trainer itself starts a process a device; they outlive its SIGKILL, 120 s at most."""
    if "SLURM_NTASKS" in os.environ:
        return
    idle = "import time; time.sleep(120)"
    for number in range(1, min(int(cfg.trainer.devices), 3)):
        child = subprocess.Popen([sys.executable, "-S", "-c", idle, "standin-rank", str(number)])
        atexit.register(child.kill)
    # Killed by a signal that leaves no time for this, they stay behind, as upstream's do.
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def merged(checkpoint: dict[str, Any], model: DictConfig) -> DictConfig:
    """The checkpoint's config with what the script was given on top."""
    base = OmegaConf.create({k: v for k, v in checkpoint.items() if k not in ("target", "nemo_version")})
    if (drop := model.get("overwrite_base_config", {}).get("data", {}).get("data_prefix")) and "data" in base:
        base.data.pop("data_prefix", None)
        assert isinstance(drop, bool), "the overwrite config can only contain boolean values"
    whole = OmegaConf.merge(base, model)
    whole.pop("overwrite_base_config", None)
    return whole


def check_model(model: DictConfig, headed: bool = False) -> None:
    """What upstream's classes refuse when they build a model; ``headed`` ones have a reward head.

    Raises:
        RuntimeError: sequence parallelism under a reward head, a row-parallel layer whose input is whole.
        ValueError: recomputation that Megatron-Core does not have, or no positive seed.
    """
    if headed and model.get("sequence_parallel", False):
        raise RuntimeError("To enable `sequence_parallel`, `input_is_parallel` must be `True`")
    key = "activations_checkpoint"
    granularity, method, layers = (model.get(f"{key}_{name}") for name in ("granularity", "method", "num_layers"))
    if granularity == "selective" and layers is not None:
        raise ValueError("When using recompute_granularity: selective recompute_num_layers must be None.")
    if granularity == "full" and (method is None or layers is None):
        raise ValueError("Using recompute_granularity: full needs recompute_method and recompute_num_layers")
    if model.get("seed", 1234) <= 0:
        raise ValueError(f"Seed ({model.seed}) should be a positive integer.")
