"""A real Slurm of two nodes on this one machine, for tests.

One keeper process starts munged, slurmctld and two slurmd in a temporary folder with free ports. It is the reaper of
everything they start, jobs included, so whatever ends it (the fixture, a failed test, kill -9 of pytest, which closes
its standard input) leaves no process behind. Nothing outside the folder is touched: the key, the sockets and the
configuration are its own, so several clusters can run at once.

``python tests/support/slurm_cluster.py`` starts one by hand: it prints the SLURM_CONF to export and stays until Ctrl-D.
"""

from __future__ import annotations

import ctypes
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

NODES = ("n1", "n2")
GPUS = 8
CPUS = 16
TOOLS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

# select/cons_tres hands out CPUs, memory and GPUs, so a job that asks for too much waits as it would on a cluster. The
# scheduler's settings only make it quick: heterogeneous jobs are started by backfill alone, every second, and
# cred_expire is also how long a requeued job has to wait (120 s by default). MpiDefault, proctrack and task plugins
# are the ones that need neither cgroups nor PMIx. MinJobAge keeps ended jobs known, as polling expects.
CONF = """\
ClusterName=cai
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,bf_hetjob_immediate,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
MinJobAge=7200
InactiveLimit=0
KillWait=3
CompleteWait=0
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes={names} Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
PartitionName=cpu Nodes={names} MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def missing() -> str:
    """Why no cluster can be started here; empty where one can."""
    path = _path()
    lacking = [tool for tool in TOOLS if shutil.which(tool, path=path) is None]
    if lacking:
        return f"Slurm's tests need {', '.join(lacking)}: apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "Slurm's tests need root, which slurmd needs to start jobs"
    return ""


@dataclass
class Cluster:
    """A running cluster. ``env`` is what its commands need (put it into the environment); ``nodes`` their names."""

    env: dict[str, str]
    folder: Path
    nodes: tuple[str, ...]
    _keeper: subprocess.Popen[str] = field(repr=False)

    def stop_controller(self) -> None:
        """Take slurmctld down; nodes and running jobs stay."""
        self._ask("stop")

    def start_controller(self) -> None:
        """Bring slurmctld back with the state that it had; returns when it answers."""
        self._ask("start")

    def restart_controller(self) -> None:
        """``stop_controller`` and ``start_controller``."""
        self._ask("stop")
        self._ask("start")

    def command(self, *argv: str, timeout: float = 60.0) -> str:
        """Standard output of one of Slurm's commands; an error with its own words when it fails."""
        done = subprocess.run(
            argv, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=timeout, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip() or done.stdout.strip()}")
        return done.stdout

    def wait(self, what: str, holds: Callable[[], bool], timeout: float = 30.0) -> None:
        """Return when ``holds()``; fail with the queue and the controller's last words after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > end:
                queue = self.command("squeue", "--states=all")
                raise AssertionError(f"not in {timeout:g} s: {what}\n{queue}\n{_tail(self.folder / 'slurmctld.log')}")
            time.sleep(0.05)

    def clear(self) -> None:
        """Cancel every job and wait until none is left on a node: a test's own clean slate."""
        self.command("scancel", "--user=root")
        self.wait("an empty queue", lambda: not self.command("squeue", "--noheader").strip())

    def _ask(self, word: str) -> None:
        assert self._keeper.stdin is not None
        assert self._keeper.stdout is not None
        self._keeper.stdin.write(word + "\n")
        self._keeper.stdin.flush()
        answer = self._keeper.stdout.readline().strip()
        if answer != "done":
            raise RuntimeError(f"the test cluster could not {word} its controller: {answer or 'it is gone'}")


@pytest.fixture(scope="session")
def slurm(pytestconfig: pytest.Config) -> Cluster:
    """A two-node Slurm for the whole session; tests that need one are skipped, with the reason, where it cannot be.

    All tests share one cluster, which is taken down when pytest ends.
    """
    reason = missing()
    if reason:
        pytest.skip(reason)
    if _CLUSTER not in pytestconfig.stash:
        pytestconfig.stash[_CLUSTER] = _start(pytestconfig.add_cleanup)
    return pytestconfig.stash[_CLUSTER]


_CLUSTER = pytest.StashKey[Cluster]()


def _start(at_end: Callable[[Callable[[], None]], None]) -> Cluster:
    keeper = subprocess.Popen(
        [sys.executable, os.path.abspath(__file__)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert keeper.stdin is not None
    assert keeper.stdout is not None
    written, read = keeper.stdin, keeper.stdout

    def end() -> None:
        written.close()
        keeper.wait(60)
        read.close()

    at_end(end)
    answer = read.readline()
    if not answer.startswith("{"):
        pytest.fail(f"the test cluster did not come up: {answer}{read.read()}")
    said = json.loads(answer)
    return Cluster(env=said["env"], folder=Path(said["folder"]), nodes=NODES, _keeper=keeper)


# What follows runs in the keeper.


class _Keeper:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self.controller: subprocess.Popen[bytes] | None = None
        self._daemons: set[int] = set()
        self._asking = threading.Lock()

    def up(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        (self.folder / "state").mkdir()
        (self.folder / "gres.conf").write_text(f"Name=gpu {_pretend_gpus(self.folder)}\n")
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname().split(".")[0]
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.{number} Port={port} CPUs={CPUS} "
            f"RealMemory={1000 * CPUS} Gres=gpu:{GPUS} State=UNKNOWN"
            for number, (name, port) in enumerate(zip(NODES, ports[1:], strict=True), 1)
        ]
        conf = CONF.format(host=host, ctld=ports[0], folder=self.folder, nodes="\n".join(nodes), names=",".join(NODES))
        (self.folder / "slurm.conf").write_text(conf)
        munge = [f"--{name}={self.folder}/munge.{end}" for name, end in MUNGE]
        self._start(["munged", "--foreground", "--force", "--num-threads=2", *munge], "munged.out")
        _until("munged", lambda: (self.folder / "munge.socket").exists())
        self.start()
        for name in NODES:
            (self.folder / f"spool-{name}").mkdir()
            self._start(["slurmd", "-D", "-N", name], f"slurmd-{name}.out")
        threading.Thread(target=self._stir, daemon=True).start()
        _until("idle nodes", lambda: self._ask("sinfo", "-h", "-N", "-p", "gpu", "-o", "%T").split() == ["idle"] * 2)

    def start(self) -> None:
        self.controller = self._start(["slurmctld", "-D"], "slurmctld.out")
        _until("slurmctld", lambda: "is UP" in self._ask("scontrol", "ping"))

    def stop(self) -> None:
        if self.controller is not None:
            self.controller.terminate()
            self.controller.wait(30)

    def _stir(self) -> None:
        # Backfill, which alone starts heterogeneous jobs, sleeps while nothing in the cluster changes, so a requeued
        # one would wait for ever when its delay is over. No real cluster is that quiet.
        while True:
            time.sleep(1)
            self._bury()
            if self.controller is not None and self.controller.poll() is None:
                self._ask("scontrol", "update", "PartitionName=cpu", "State=UP")

    def _bury(self) -> None:
        # The adopted, which nobody else waits for.
        with self._asking:
            for pid in set(_children().get(os.getpid(), [])) - self._daemons:
                os.waitpid(pid, os.WNOHANG)

    def _start(self, argv: Sequence[str], out: str) -> subprocess.Popen[bytes]:
        with (self.folder / out).open("ab") as log, self._asking:
            process = subprocess.Popen(
                argv, env={**os.environ, **self.env}, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            self._daemons.add(process.pid)
        return process

    def _ask(self, *argv: str) -> str:
        with self._asking:
            return subprocess.run(
                argv, env={**os.environ, **self.env}, capture_output=True, text=True, timeout=30, check=False
            ).stdout


MUNGE = (("key-file", "key"), ("socket", "socket"), ("pid-file", "pid"), ("log-file", "log"), ("seed-file", "seed"))


def _pretend_gpus(folder: Path) -> str:
    # slurmd wants device files. Copies of /dev/null do; where none can be made, GPUs are counted but not numbered.
    try:
        for gpu in range(GPUS):
            os.mknod(folder / f"gpu{gpu}", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    except PermissionError:
        return f"Count={GPUS}"
    return f"File={folder}/gpu[0-{GPUS - 1}]"


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _until(what: str, holds: Callable[[], bool], timeout: float = 30.0) -> None:
    end = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"no {what} in {timeout:g} s")
        time.sleep(0.05)


def _tail(path: Path, lines: int = 15) -> str:
    if not path.exists():
        return ""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _children() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            found.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    return found


def _descendants() -> list[int]:
    children = _children()
    found: list[int] = []
    queue = [os.getpid()]
    while queue:
        below = children.get(queue.pop(), [])
        found += below
        queue += below
    return found


def _take_down() -> None:
    # Orphans become children of this process, so killing until none is left reaches all of them.
    end = time.monotonic() + 20
    while _descendants() and time.monotonic() < end:
        for pid in _descendants():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            break
        time.sleep(0.02)


def main() -> int:
    """Keep a cluster until standard input closes; ``stop`` and ``start`` on it are about the controller."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(1))
    ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    folder = Path(tempfile.mkdtemp(prefix="cai-slurm-"))
    folder.chmod(0o755)
    keeper = _Keeper(folder)
    try:
        try:
            keeper.up()
        except TimeoutError as error:
            logs = "\n".join(f"{path.name}:\n{_tail(path)}" for path in sorted(folder.glob("*.[lo][ou][gt]")))
            print(f"{error}\n{logs}", flush=True)
            return 1
        print(json.dumps({"env": {"SLURM_CONF": keeper.env["SLURM_CONF"]}, "folder": str(folder)}), flush=True)
        for line in sys.stdin:
            {"stop": keeper.stop, "start": keeper.start}[line.strip()]()
            print("done", flush=True)
        return 0
    finally:
        _take_down()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
