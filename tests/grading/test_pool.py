"""The worker pool: every way a call can go wrong costs at most its limit, is counted, and the rest goes on."""

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tppo.errors import ConfigError
from tppo.grading import pool as sandbox
from tppo.grading.pool import SandboxError, WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is for Linux")
LIMIT = 1.0  # [s]
SLACK = 2.0  # What a busy machine may add to noticing and killing [s].


def act(what: str, argument: str | float = "") -> object:
    """What the workers run: one deed by name."""
    match what:
        case "echo":
            return argument
        case "loop":
            while True:
                pass
        case "sleep":
            time.sleep(float(argument))
            return os.getpid()
        case "memory":
            return len("x" * 2**34)
        case "grow":
            kept = []
            while True:
                kept.append(bytearray(2**24))
        case "raise":
            raise ValueError(argument)
        case "exit":
            sys.exit(0)
        case "_exit":
            os._exit(3)
        case "crash":
            return ctypes.string_at(0)
        case "recurse":
            return act("recurse")
        case "fork":
            return os.fork()
        case "system":
            return os.system("true")
        case "spawn":
            return subprocess.run(["true"], check=False).returncode
        case "posix_spawn":
            return os.posix_spawn("/bin/true", ["true"], {})
        case "kill":
            os.kill(os.getppid(), 9)
        case "connect":
            return str(socket.socket())
        case "write":
            return Path(str(argument)).write_text("written")
        case "remove":
            Path(str(argument)).unlink()
        case "stdin":
            return sys.stdin.read()
        case "object":
            return {1, 2}
        case "flood":
            return "x" * (sandbox.MAX_REPLY + 1)
    return os.getpid()


@pytest.fixture(scope="module")
def on_path() -> Iterator[str]:
    """Name of ``act`` for a process that has this folder on its path."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield f"{Path(__file__).stem}:act"
    sys.path.remove(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def pool(on_path: str) -> Iterator[WorkerPool]:
    with WorkerPool(on_path, seconds=LIMIT, memory=2**29) as pool:
        yield pool


@pytest.fixture(scope="module")
def patient(on_path: str) -> Iterator[WorkerPool]:
    """With time for what must end by itself: on a busy machine half a GiB is not filled in a second."""
    with WorkerPool(on_path, seconds=60, memory=2**29) as pool:
        yield pool


def test_results_come_in_the_order_of_the_calls(pool: WorkerPool) -> None:
    results = pool.map(("echo", i) for i in range(50))
    assert [r.value for r in results] == list(range(50))
    assert {r.verdict for r in results} == {"ok"}


@pytest.mark.parametrize(
    ("deed", "verdict", "detail"),
    [
        ("memory", "memory", "MemoryError"),
        ("grow", "memory", "MemoryError"),
        ("raise", "error", "ValueError: "),
        ("exit", "died", "exit code 0"),
        ("_exit", "died", "exit code 3"),
        ("crash", "died", "signal 11"),
        ("recurse", "error", "RecursionError"),
        ("fork", "error", "PermissionError: os.fork"),
        ("system", "error", "PermissionError: os.system"),
        ("spawn", "error", "PermissionError: subprocess.Popen"),
        ("posix_spawn", "error", "PermissionError: os.posix_spawn"),
        ("kill", "error", "PermissionError: os.kill"),
        ("connect", "error", "PermissionError: socket"),
        ("object", "error", "TypeError"),
        ("flood", "died", "broken reply"),
    ],
)
def test_each_failure_has_its_verdict_and_the_pool_goes_on(
    patient: WorkerPool, deed: str, verdict: str, detail: str
) -> None:
    before = patient.counts.get(verdict, 0)
    first, failed, last = patient.map([("echo", 1), (deed,), ("echo", 2)])
    assert (first.value, failed.value, last.value) == (1, None, 2)
    assert failed.verdict == verdict
    assert failed.detail.startswith(detail)
    assert patient.counts[verdict] == before + 1


def test_a_loop_ends_at_the_limit_and_the_pool_goes_on(pool: WorkerPool) -> None:
    first, failed, last = pool.map([("echo", 1), ("loop",), ("echo", 2)])
    assert (first.value, failed.value, last.value) == (1, None, 2)
    assert failed.verdict == "timeout"
    assert failed.detail.startswith("more than 1 s")
    assert failed.seconds < LIMIT + SLACK


def test_files_are_neither_written_nor_removed(pool: WorkerPool, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("as it was")
    assert [r.verdict for r in pool.map([("write", str(kept)), ("remove", str(kept))])] == ["error", "error"]
    assert kept.read_text() == "as it was"


def test_standard_input_is_empty(pool: WorkerPool) -> None:
    assert pool.submit("stdin").result().value == ""


@pytest.mark.parametrize("text", ["", "a\0b", "\ud800 lone", "∫ 𝔸 \u202e", "{" * 10**6], ids=lambda t: repr(t[:8]))
def test_any_text_arrives_as_it_was_sent(pool: WorkerPool, text: str) -> None:
    assert pool.submit("echo", text).result().value == text


def test_workers_share_the_calls(on_path: str) -> None:
    with WorkerPool(on_path, workers=2, seconds=30.0) as two:
        pids = {r.value for r in two.map([("sleep", 0.3)] * 4)}
    assert len(pids) == 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_is_replaced_after_its_share_of_calls(on_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "CALLS_PER_WORKER", 2)
    with WorkerPool(on_path) as pool:
        a, b, c, d = (r.value for r in pool.map([("pid",)] * 4))
    assert a == b != c == d


def test_the_pool_survives_the_death_of_its_template(on_path: str) -> None:
    with WorkerPool(on_path, seconds=30.0) as pool:
        pid = pool.submit("pid").result().value
        pool._template.process.kill()
        pool._template.process.wait()
        # The worker dies with the template, at once or in the midst of the first call.
        verdicts = [r.verdict for r in pool.map([("echo", 1)] * 3)]
        assert verdicts[1:] == ["ok", "ok"]
        assert pool.submit("pid").result().value != pid


def test_closing_cancels_what_waits_and_ends_every_process(on_path: str) -> None:
    pool = WorkerPool(on_path, seconds=LIMIT)
    worker = pool.submit("pid").result().value
    running = pool.submit("loop")
    while not running.running():
        time.sleep(0.01)
    waiting = pool.submit("echo", 1)
    pool.close()
    pool.close()
    assert running.result().verdict == "timeout"
    assert waiting.cancelled()
    assert pool._template.process.poll() is not None
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    with pytest.raises(SandboxError, match="closed"):
        pool.submit("echo", 1)


@pytest.mark.parametrize("name", ["no_such_module:f", "os:no_such_function", "os:sep", "os"])
def test_a_function_that_cannot_be_imported_is_named(name: str) -> None:
    with pytest.raises(SandboxError, match=f"cannot run {name}: "):
        WorkerPool(name)


@pytest.mark.parametrize("bad", [{"workers": 0}, {"seconds": 0.0}, {"seconds": float("nan")}, {"memory": 1}])
def test_limits_that_cannot_work_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        WorkerPool("os:getpid", **bad)


def test_a_forked_process_is_refused_at_once(on_path: str) -> None:
    """The threads of the pool do not exist there, so a call would wait for ever."""
    code = f"""
import os, sys, warnings
warnings.simplefilter("ignore")
from tppo.grading.pool import SandboxError, WorkerPool
with WorkerPool("{on_path}") as pool:
    if not (child := os.fork()):
        try:
            pool.submit("echo", 1)
        except SandboxError as error:
            pool.close()
            with WorkerPool("{on_path}") as own:
                os._exit(0 if "fork" in str(error) and own.submit("echo", 2).result().value == 2 else 1)
        os._exit(2)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert pool.submit("echo", 3).result().value == 3
sys.exit(status)
"""
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[2])])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=60, check=False)
    assert done.returncode == 0
