"""Local launcher with real processes: servers, failures, and every way to die; nothing may be left behind."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from cai.errors import StepFailed
from cai.launchers.base import Command, Ready
from cai.launchers.local import LocalRunner
from cai.launchers.settings import Local
from cai.launchers.tail import tail

PYTHON = (sys.executable, "-I", "-S", "-u")
SERVER = """
import socket, sys, time
time.sleep(float(sys.argv[2]))
s = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
end = time.monotonic() + float(sys.argv[3])
while (left := end - time.monotonic()) > 0:
    s.settimeout(left)
    try:
        s.accept()[0].close()
    except TimeoutError:
        pass
print("CUDA error: device lost", flush=True)
sys.exit(3)
"""
# A daemon of the worst kind: its own session, its parent gone, deaf to SIGTERM.
DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "w").write(str(os.getpid()))
    time.sleep(300)
while not os.path.exists(sys.argv[1]) or not open(sys.argv[1]).read():
    time.sleep(0.01)
time.sleep(float(sys.argv[2]))
sys.exit(int(sys.argv[3]))
"""
# Tells which signals came, and ends by SIGTERM alone.
POLITE = """
import signal, sys, time
def told(number, frame):
    print(sys.argv[1], "got", signal.Signals(number).name, time.monotonic(), flush=True)
    if number == signal.SIGTERM:
        time.sleep(0.2)
        print(sys.argv[1], "ends", time.monotonic(), flush=True)
        sys.exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, told)
print(sys.argv[1], "is up", flush=True)
while True:
    time.sleep(1)
"""
# A whole program around the runner; its argument is the folder of the scripts.
DRIVER = """
import os, signal, sys, time
from pathlib import Path
from cai.run.stopping import sigterm_raises
from cai.launchers.base import Command, Ready
from cai.launchers.local import LocalRunner
from cai.launchers.settings import Local
here, port, token, mode = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
python = (sys.executable, "-I", "-S", "-u")
env = {"CAI_TEST": token}
runner = LocalRunner(Local(grace=0.6))
with sigterm_raises():
    try:
        server = runner.start(
            Command("critic", (*python, str(here / "server.py"), str(port), "0", "300"), env, ready=Ready(port, 30)),
            here / "server.log",
        )
        server.wait_ready()
        runner.start(Command("server", (*python, str(here / "polite.py"), "server"), env), here / "polite.log")
        if mode == "fork" and (child := os.fork()) == 0:
            (here / "child.pid").write_text(str(os.getpid()))
            time.sleep(300)
        daemon = (*python, str(here / "daemon.py"), str(here / "daemon.pid"), "300", "0")
        runner.run(Command("actor", daemon, env), here / "actor.log", [server])
    finally:
        runner.close()
        print("closed", flush=True)
"""

pytestmark = pytest.mark.long


def alive(token: str) -> dict[int, str]:
    """Processes other than this one that carry the token, by pid."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes()
                if token.encode() in line + (entry / "environ").read_bytes():
                    found[int(entry.name)] = line.replace(b"\0", b" ").decode()
    return found


def until(true: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def text_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


class Bench:
    """Scripts, a port, and a runner whose processes all carry a token."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.token, self.port = folder, uuid.uuid4().hex, free_port()
        for name, text in {"server": SERVER, "daemon": DAEMON, "polite": POLITE}.items():
            (folder / f"{name}.py").write_text(text)
        self.runner = LocalRunner(Local(grace=0.6))
        self.log = folder / "logs" / "command.log"

    def command(self, *argv: str, role: str = "train", **more: object) -> Command:
        return Command(role, argv, {"CAI_TEST": self.token}, **more)  # type: ignore[arg-type]

    def bash(self, script: str, **more: object) -> Command:
        return self.command("bash", "-c", script, **more)

    def script(self, name: str, *words: object, **more: object) -> Command:
        return self.command(*PYTHON, str(self.folder / f"{name}.py"), *map(str, words), **more)

    def server(self, delay: float = 0.0, life: float = 300.0, role: str = "server", timeout: float = 10.0) -> Command:
        return self.script(
            "server", self.port, delay, life, role=role, background=True, ready=Ready(self.port, timeout)
        )

    def guards(self) -> list[int]:
        return [pid for pid, line in alive(self.token).items() if "guard.py" in line]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
        bench.runner.close()
        assert alive(bench.token) == {}
    finally:
        for pid in alive(bench.token):
            os.kill(pid, signal.SIGKILL)


def test_a_command_runs_to_its_end_and_logs_what_it_was(bench: Bench):
    bench.runner.run(bench.bash("echo 'out'; echo err >&2; cat; pwd", cwd=str(bench.folder)), bench.log)
    lines = bench.log.read_text().splitlines()
    assert lines[0].startswith("# 20")
    assert lines[1] == """$ bash -c 'echo '"'"'out'"'"'; echo err >&2; cat; pwd'"""
    assert lines[2:] == ["out", "err", str(bench.folder)]


def test_a_second_attempt_appends_to_the_log_and_shows_its_own_tail_only(bench: Bench):
    bench.runner.run(bench.bash("echo first"), bench.log)
    with pytest.raises(StepFailed) as hit:
        bench.runner.run(bench.bash("exit 4"), bench.log)
    assert str(hit.value) == f"train (bash) exited with code 4; log {bench.log}:\n  (it wrote nothing)"
    assert bench.log.read_text().count("$ bash -c") == 2
    assert "\nfirst\n" in bench.log.read_text()


def test_a_failure_names_script_code_and_log_and_shows_a_harmless_tail(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NGC_API_KEY", "nvapi-do-not-tell")
    script = bench.folder / "train_gpt_sft.py"
    script.write_text(
        "import os, sys\n"
        "print('\\n'.join(f'line {i}' for i in range(100)))\n"
        "print('step 1\\rstep 2\\rstep 3\\r')\n"
        "print('\\x1b[31mred\\x1b[0m \\x07bell', 'x' * 5000)\n"
        "print('key', os.environ['NGC_API_KEY'])\n"
        "sys.exit(2)\n"
    )
    with pytest.raises(StepFailed) as hit:
        bench.runner.run(bench.command(*PYTHON, str(script)), bench.log)
    first, *shown = str(hit.value).splitlines()
    assert first == f"train (train_gpt_sft.py) exited with code 2; log {bench.log}:"
    assert shown[:2] == ["  line 83", "  line 84"]
    assert shown[-3] == "  step 3"
    assert shown[-2].startswith("  red ␇bell xxx")
    assert shown[-2].endswith("xxx...")
    assert len(shown[-2]) == 242
    assert shown[-1] == "  key ***"
    assert len(shown) == 20


def test_the_log_holds_nothing_of_the_environment_and_a_tail_reads_only_the_end(tmp_path: Path, bench: Bench):
    bench.runner.run(bench.bash("true"), bench.log)
    assert bench.token not in bench.log.read_text()
    big = tmp_path / "big.log"
    big.write_bytes(b"a line\n" * 1_000_000 + b"\xff\xfe the last\n")
    began = time.perf_counter()
    assert tail(big, lines=2) == "  a line\n  �� the last"
    assert time.perf_counter() - began < 0.5
    assert tail(big, start=10**12, lines=1) == "  �� the last"
    assert tail(tmp_path / "none") == "(the log cannot be read: No such file or directory)"


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("kill -9 $$", r"was killed by SIGKILL \(.*memory.*dmesg"),
        ("exit 137", r"exited with code 137 \(SIGKILL\) \(.*memory"),
        ("kill -SEGV $$", "was killed by SIGSEGV;"),
        ("kill -PIPE $$; exit 0", "was killed by SIGPIPE;"),
        ("no-such-program-here", r"exited with code 127 \(.*not found\).*\n.*no-such-program-here"),
    ],
)
def test_signals_have_names_and_hints(bench: Bench, script: str, told: str):
    with pytest.raises(StepFailed, match=told):
        bench.runner.run(bench.bash(script), bench.log)


def test_what_cannot_start_says_why(bench: Bench):
    with pytest.raises(StepFailed, match=r"^train: 'srun-of-nowhere' is not on the PATH.*name the right one"):
        bench.runner.run(bench.command("srun-of-nowhere", "x"), bench.log)
    with pytest.raises(StepFailed, match=r"^train: '/opt/nowhere/python' is no executable file"):
        bench.runner.run(bench.command("/opt/nowhere/python"), bench.log)
    with pytest.raises(StepFailed, match="its folder /nowhere does not exist"):
        bench.runner.run(bench.bash("true", cwd="/nowhere"), bench.log)
    garbage = bench.folder / "garbage"
    garbage.write_bytes(b"\x01\x02\x03")
    garbage.chmod(0o755)
    with pytest.raises(StepFailed, match=r"cannot start ./garbage: Exec format error"):
        bench.runner.run(bench.command("./garbage", cwd=str(bench.folder)), bench.log)
    with pytest.raises(StepFailed, match="cannot be started: Argument list too long"):
        bench.runner.run(bench.bash("x" * 3_000_000), bench.log)
    bench.log.with_name("file").write_text("")
    with pytest.raises(StepFailed, match="cannot be written"):
        bench.runner.run(bench.bash("true"), bench.log.with_name("file") / "a.log")


def test_a_server_gets_ready_and_others_learn_its_address(bench: Bench):
    server = bench.runner.start(bench.server(delay=0.3, role="critic"), bench.log)
    server.wait_ready()
    assert (server.host, server.port) == ("127.0.0.1", bench.port)
    server.check()
    out = bench.log.with_name("actor.log")
    actor = bench.bash("echo $CRITIC; sleep 0.6", role="actor", addresses={"CRITIC": "critic"})
    bench.runner.run(actor, out, [server])
    assert out.read_text().splitlines()[-1] == "127.0.0.1"
    server.stop()
    server.stop()
    with pytest.raises(StepFailed, match="was killed by SIGTERM"):
        server.check()
    with pytest.raises(StepFailed, match="actor: CRITIC wants the address of 'critic', which does not run"):
        bench.runner.run(actor, out)


def test_another_may_say_where_a_command_is_reached(bench: Bench):
    runner = LocalRunner(Local(), host_of=lambda c: "localhost" if c.ready else "")
    try:
        server = runner.start(bench.server(), bench.log)
        server.wait_ready()
        assert server.host == "localhost"
        runner.run(bench.bash("echo at-$AT", addresses={"AT": "server"}), bench.log.with_name("w.log"))
        assert bench.log.with_name("w.log").read_text().splitlines()[-1] == "at-localhost"
    finally:
        runner.close()


def test_a_server_that_never_opens_its_port_fails_in_time_with_its_log(bench: Bench):
    hangs = bench.bash("echo loading weights; sleep 300", role="server", ready=Ready(bench.port, 0.5))
    server = bench.runner.start(hangs, bench.log)
    began = time.monotonic()
    with pytest.raises(StepFailed, match=rf"port {bench.port} on this machine within 0.5 s.*\n.*loading weights"):
        server.wait_ready()
    assert time.monotonic() - began < 5


def test_a_server_that_dies_while_it_is_waited_for_fails_at_once(bench: Bench):
    dies = bench.bash("echo no GPU; sleep 0.3; exit 0", role="server", ready=Ready(bench.port, 60))
    server = bench.runner.start(dies, bench.log)
    began = time.monotonic()
    with pytest.raises(StepFailed, match=rf"exited with code 0 before it opened port {bench.port}.*\n.*no GPU"):
        server.wait_ready()
    assert time.monotonic() - began < 10


def test_a_server_without_a_port_is_ready_when_it_runs(bench: Bench):
    server = bench.runner.start(bench.bash("sleep 300", role="server"), bench.log)
    server.wait_ready()
    assert server.port == 0


def test_a_server_that_dies_stops_the_command_beside_it(bench: Bench):
    server = bench.runner.start(bench.server(life=1.0), bench.log)
    server.wait_ready()
    began = time.monotonic()
    with pytest.raises(StepFailed, match=r"^server \(server.py\) exited with code 3; .*\n(.*\n)*  CUDA error"):
        bench.runner.run(bench.script("polite", "train"), bench.log.with_name("train.log"), [server])
    assert time.monotonic() - began < 5
    assert "train got SIGTERM" in bench.log.with_name("train.log").read_text()


def test_when_a_command_fails_because_its_server_died_the_server_is_blamed(bench: Bench):
    server = bench.runner.start(bench.server(life=0.4), bench.log)
    server.wait_ready()
    follows = f"exec 2>/dev/null; while (echo > /dev/tcp/127.0.0.1/{bench.port}); do :; done; exit 1"
    with pytest.raises(StepFailed, match=r"^server \(server.py\) exited with code 3"):
        bench.runner.run(bench.bash(follows), bench.log.with_name("train.log"), [server])


def test_a_server_outlives_the_thread_that_started_it(bench: Bench):
    with ThreadPoolExecutor(1) as pool:
        server = pool.submit(bench.runner.start, bench.server(), bench.log).result()
    time.sleep(0.2)
    server.wait_ready()
    server.check()


def test_a_taken_port_is_told_before_anything_starts(bench: Bench):
    with (
        socket.create_server(("127.0.0.1", bench.port)),
        pytest.raises(StepFailed, match=rf"port {bench.port} on this machine is taken by another process; stop that"),
    ):
        bench.runner.start(bench.server(), bench.log)
    assert not bench.log.exists()


def test_what_a_command_leaves_behind_is_taken_down_and_its_code_kept(bench: Bench):
    pid = bench.folder / "pid"
    with pytest.raises(StepFailed, match="exited with code 5"):
        bench.runner.run(bench.script("daemon", pid, 0, 5), bench.log)
    assert pid.read_text()
    assert alive(bench.token) == {}
    pid.unlink()
    bench.runner.start(bench.script("daemon", pid, 0, 0, role="server"), bench.log)
    until(lambda: text_of(pid) and not alive(bench.token))


def test_stopping_is_gentle_first_and_reaches_stopped_and_deaf_processes(bench: Bench):
    polite = bench.runner.start(bench.script("polite", "it", role="server"), bench.log)
    until(lambda: "is up" in text_of(bench.log))
    frozen = next(pid for pid, line in alive(bench.token).items() if "polite.py" in line and "guard.py" not in line)
    os.kill(frozen, signal.SIGSTOP)
    polite.stop()
    log = bench.log.read_text()
    assert log.count("got SIGTERM") == 1
    assert "it ends" in log
    assert alive(bench.token) == {}
    deaf_log = bench.log.with_name("deaf.log")
    deaf = bench.runner.start(bench.bash("trap '' TERM; echo up; while :; do sleep 0.05; done"), deaf_log)
    until(lambda: "\nup" in text_of(deaf_log))
    began = time.monotonic()
    deaf.stop()
    assert 0.5 < time.monotonic() - began < 3
    assert alive(bench.token) == {}


def test_close_stops_the_newest_first_and_can_be_repeated(bench: Bench):
    for name in ("critic", "server", "server-1"):
        bench.runner.start(bench.script("polite", name, role=name), bench.log)
        until(lambda name=name: f"{name} is up" in text_of(bench.log))
    bench.runner.close()
    assert alive(bench.token) == {}
    bench.runner.close()
    when = {
        tuple(line.split()[:2]): float(line.split()[-1])
        for line in bench.log.read_text().splitlines()[3:]
        if line.split()[1:2] in (["got"], ["ends"])
    }
    assert max(when["server", "got"], when["server-1", "got"]) < min(when["server", "ends"], when["server-1", "ends"])
    assert max(when["server", "ends"], when["server-1", "ends"]) < when["critic", "got"]


def test_ctrl_c_while_closing_has_told_everyone_before_it_goes_on(bench: Bench):
    bench.runner.start(bench.script("polite", "critic", role="critic"), bench.log)
    pid = bench.folder / "pid"
    bench.runner.start(bench.script("daemon", pid, 300, 0, role="server"), bench.log.with_name("server.log"))
    until(lambda: text_of(pid) and "is up" in text_of(bench.log))
    threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        bench.runner.close()
    until(lambda: not alive(bench.token))


def test_killing_a_guard_loses_the_command_but_leaves_nothing(bench: Bench):
    pid = bench.folder / "pid"
    server = bench.runner.start(bench.script("daemon", pid, 300, 0, role="server"), bench.log)
    until(lambda: text_of(pid))
    (guard,) = bench.guards()
    os.kill(guard, signal.SIGKILL)
    with pytest.raises(StepFailed, match="was lost: the guard process"):
        bench.runner.run(bench.bash("sleep 300"), bench.log.with_name("train.log"), [server])
    server.stop()
    assert alive(bench.token) == {}


def drive(bench: Bench, mode: str = "") -> subprocess.Popen[str]:
    """A driver in a session of its own, with a critic, a server, an actor and the actor's daemon running."""
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(bench.folder), str(bench.port), bench.token, mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    up = (bench.folder / "daemon.pid", bench.folder / "polite.log")
    until(lambda: driver.poll() is not None or (text_of(up[0]) and "is up" in text_of(up[1])), 20)
    assert driver.poll() is None, driver.communicate()
    return driver


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_unwind_the_driver_and_take_all_down(bench: Bench, number: signal.Signals):
    driver = drive(bench)
    sessions = {pid: os.getsid(pid) for pid in alive(bench.token)}
    assert [pid for pid, session in sessions.items() if session == driver.pid] == [driver.pid]
    # The driver, three guards, their commands, and the session that the actor's daemon made.
    assert len(set(sessions.values())) == 8
    # To the whole foreground group, as a terminal does.
    os.killpg(driver.pid, number)
    out, err = driver.communicate(timeout=20)
    assert alive(bench.token) == {}
    assert out == "closed\n"
    assert ("KeyboardInterrupt" if number == signal.SIGINT else "_Terminated") in err
    log = (bench.folder / "polite.log").read_text()
    assert "got SIGTERM" in log
    assert "got SIGINT" not in log


@pytest.mark.parametrize("mode", ["", "fork"])
def test_kill_9_of_the_driver_leaves_nothing(bench: Bench, mode: str):
    driver = drive(bench, mode)
    assert len(alive(bench.token)) >= 8
    driver.kill()
    driver.wait()
    # A forked child of the driver (a data loader) holds the guards' pipes open and must not hold up their work.
    child = {int((bench.folder / "child.pid").read_text())} if mode == "fork" else set()
    until(lambda: set(alive(bench.token)) == child)
    assert "server ends" in (bench.folder / "polite.log").read_text()
    for pid in child:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(bench.token))
    driver.communicate()


def test_an_impatient_user_ends_the_driver_early_and_the_guards_finish_the_work(bench: Bench):
    driver = drive(bench)
    while driver.poll() is None:
        driver.send_signal(signal.SIGINT)
        time.sleep(0.1)
    driver.communicate()
    until(lambda: not alive(bench.token))
    assert "server ends" in (bench.folder / "polite.log").read_text()


def test_kill_9_of_driver_and_guards_still_ends_the_commands(bench: Bench):
    driver = drive(bench)
    guards = bench.guards()
    assert len(guards) == 3
    os.kill(driver.pid, signal.SIGSTOP)
    for pid in [*guards, driver.pid]:
        os.kill(pid, signal.SIGKILL)
    driver.communicate()
    # Only what hid from its parent lives on, which nobody is left to find.
    daemon = int((bench.folder / "daemon.pid").read_text())
    until(lambda: set(alive(bench.token)) == {daemon})
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not alive(bench.token))


def test_a_guard_that_is_told_to_end_takes_its_command_along(bench: Bench):
    pid = bench.folder / "pid"
    server = bench.runner.start(bench.script("daemon", pid, 300, 0, role="server"), bench.log)
    until(lambda: text_of(pid))
    (guard,) = bench.guards()
    os.kill(guard, signal.SIGTERM)
    until(lambda: not alive(bench.token))
    with pytest.raises(StepFailed, match="was killed by SIGTERM"):
        server.check()
