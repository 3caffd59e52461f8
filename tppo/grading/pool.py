"""A named function in worker processes with hard limits of time and memory, for judging text that nobody trusts.

A small single-threaded *template* process imports the function once and warms it up; workers are forked from it, so a
killed worker is replaced in milliseconds. Arguments and values travel as JSON: nothing is ever unpickled.

Guarded: wall time (SIGKILL of the worker's process group), address space, file growth and core dumps (rlimits),
standard streams (``/dev/null``), and, by an audit hook that cannot be removed, Python's ways to fork, execute, signal,
open sockets, load shared libraries, write or delete files and raise limits. As root ``RLIMIT_NPROC`` does not bind, so
the hook is what stops forks. All of a worker dies with its parent.
Not guarded: machine code. There is no seccomp, no namespace and no other user id, so a text that takes over the
interpreter itself can read files and get round the hook; a child that also leaves the process group would outlive its
worker. Limits count wall time: on an overloaded machine an honest call can run out of it. Linux only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import queue
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tppo.errors import ConfigError, TPPOError
from tppo.grading.worker import receive

Verdict = Literal["ok", "timeout", "memory", "died", "error"]
Argument = str | float | None | Sequence[int]
MAX_REPLY = 16 * 2**20
"""Longest reply a worker may send [bytes]; a longer one counts as "died"."""
CALLS_PER_WORKER = 500
"""A worker is replaced after so many calls, so that caches and damage do not pile up."""
START_SECONDS = 120.0
"""How long the template may take to import and warm up [s]."""


class SandboxError(TPPOError, RuntimeError):
    """The pool itself cannot work: the function cannot be imported, or the pool is closed or another process's.

    problem: what importing it raised.
    """

    def __init__(self, message: str, problem: str = "") -> None:
        self.problem = problem
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Result:
    """What one call came to."""

    value: Any
    """What the function returned, None unless the verdict is "ok"."""
    verdict: Verdict
    """How the call ended."""
    seconds: float
    """Wall time from sending the arguments to the verdict [s]."""
    detail: str = ""
    """The exception or the signal, for messages."""


class _Template:
    """The process that workers are forked from (`tppo.grading.worker.template`).

    It alone kills and reaps them, so a process id is never killed after it has passed to another process.
    """

    def __init__(self, function: str, warm_up: str, memory: int, arguments: Sequence[str]) -> None:
        self.control, theirs = socket.socketpair()
        boot = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        boot += "from tppo.grading.worker import template; template()"
        job = [str(theirs.fileno()), function, warm_up, str(memory), *arguments]
        threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot, json.dumps([str(Path(p).resolve()) for p in sys.path]), *job],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            env={**os.environ, **threads, "PYTHONHASHSEED": "0"},
        )
        theirs.close()
        try:
            problem = receive(self.control, time.monotonic() + START_SECONDS)
        except (OSError, EOFError) as error:
            problem = f"the process that imports it ended, or took {START_SECONDS:g} s: {type(error).__name__}"
        if problem:
            self.close()
            raise SandboxError(f"cannot run {function}: {problem}", problem)

    def fork(self) -> tuple[int, socket.socket]:
        """A fresh worker: its process id and the socket to it. Raises OSError or EOFError when the template is gone."""
        ours, theirs = socket.socketpair()
        try:
            self.control.settimeout(START_SECONDS)
            socket.send_fds(self.control, [struct.pack("!cq", b"F", 0)], [theirs.fileno()])
            pid = int(receive(self.control, time.monotonic() + START_SECONDS))
            receive(ours, time.monotonic() + START_SECONDS)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return pid, ours

    def kill(self, pid: int) -> int:
        """Kill a worker's process group; how it had ended [a negative signal number or an exit code]."""
        self.control.sendall(struct.pack("!cq", b"K", pid))
        return int(receive(self.control, time.monotonic() + START_SECONDS))

    def close(self) -> None:
        self.control.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class WorkerPool:
    """Runs ``function(*args)`` in ``workers`` processes; one that dies or hangs is replaced and the rest goes on.

    Raises ConfigError on a bad limit and SandboxError when the function cannot be imported.

    function: ``"module:name"`` of an importable function.
    warm_up: likewise, called once in the template with these arguments; optional.
    seconds: wall-time limit of a call [s].
    memory: address space of a worker [bytes], the imports included.

    >>> with WorkerPool("operator:truediv", seconds=5.0) as pool:
    ...     [(r.value, r.verdict) for r in pool.map([(1, 4), (1, 0)])]
    [(0.25, 'ok'), (None, 'error')]
    """

    def __init__(
        self,
        function: str,
        *,
        workers: int = 1,
        seconds: float = 3.0,
        memory: int = 2**30,
        warm_up: str = "",
        arguments: Sequence[str] = (),
    ) -> None:
        if workers < 1:
            raise ConfigError("workers", workers, "at least 1")
        if not 0 < seconds < float("inf"):
            raise ConfigError("seconds", seconds, "a finite number of seconds above 0")
        if memory < 2**26:
            raise ConfigError("memory", memory, "at least 64 MiB, in bytes", "the worker's imports need that much")
        self.function, self.seconds = function, seconds
        self.slowest = 0.0
        """The longest call so far [s]."""
        self._counts: Counter[str] = Counter()
        self._lock = threading.RLock()
        self._closed = False
        self._owner = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Future[Result], bytes | None]] = queue.SimpleQueue()
        self._start = functools.partial(_Template, function, warm_up, memory, tuple(arguments))
        self._template = self._start()
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()
        atexit.register(self.close)

    @property
    def counts(self) -> dict[str, int]:
        """How many calls came to each verdict."""
        with self._lock:
            return dict(self._counts)

    def submit(self, *args: Argument) -> Future[Result]:
        """Queue one call. The future never holds an exception of the function, only SandboxError if the pool fails."""
        if os.getpid() != self._owner:  # Asked before the lock, which a thread that is not here may have held.
            raise SandboxError(
                f"the pool of {self.function} belongs to process {self._owner}, and its threads do not exist in this "
                "fork: make a new one here"
            )
        future: Future[Result] = Future()
        data = json.dumps(args).encode()
        with self._lock:
            if self._closed:
                raise SandboxError("the pool is closed")
            self._jobs.put((future, struct.pack("!Q", len(data)) + data))
        return future

    def map(self, calls: Iterable[tuple[Argument, ...]]) -> list[Result]:
        """The results of many calls, in their order."""
        return [future.result() for future in [self.submit(*args) for args in calls]]

    def close(self) -> None:
        """Cancel what has not begun, let running calls reach their verdict, end all processes. May be called twice.

        In a process that was forked after the pool was made this does nothing: the workers are its parent's.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            with contextlib.suppress(queue.Empty):
                while True:
                    self._jobs.get_nowait()[0].cancel()
            for _ in self._threads:
                self._jobs.put((Future(), None))
        for thread in self._threads:
            thread.join()
        self._template.close()
        atexit.unregister(self.close)

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _fork(self) -> tuple[int, socket.socket]:
        """A worker, after a restart of the template if that died. Call with the lock held."""
        try:
            return self._template.fork()
        except (OSError, EOFError):
            self._template.process.kill()
            self._template.close()
            self._template = self._start()
            return self._template.fork()

    def _serve(self) -> None:
        """One thread a worker: take a job, talk to the worker, replace it when it must be."""
        worker: tuple[int, socket.socket] | None = None
        calls = 0
        while True:
            future, data = self._jobs.get()
            if data is None:
                break
            if not future.set_running_or_notify_cancel():
                continue
            try:
                if worker is None:
                    with self._lock:
                        worker, calls = self._fork(), 0
                result = self._call(worker[1], data)
                calls += 1
                if result.verdict in ("timeout", "memory", "died") or calls >= CALLS_PER_WORKER:
                    status = self._end(worker)
                    worker = None
                    if result.verdict == "died":
                        how = f"signal {-status}" if status < 0 else f"exit code {status}"
                        result = Result(None, "died", result.seconds, result.detail or how)
                with self._lock:
                    self._counts[result.verdict] += 1
                    self.slowest = max(self.slowest, result.seconds)
                future.set_result(result)
            except BaseException as error:  # A waiting caller must hear of everything.
                if worker is not None:
                    self._end(worker)
                    worker = None
                future.set_exception(SandboxError(f"the pool of {self.function} failed: {error!r}"))
        if worker is not None:
            self._end(worker)

    def _end(self, worker: tuple[int, socket.socket]) -> int:
        worker[1].close()
        with self._lock:
            try:
                return self._template.kill(worker[0])
            except (OSError, EOFError):
                return -signal.SIGKILL  # The template is gone, and its workers died with it.

    def _call(self, sock: socket.socket, data: bytes) -> Result:
        start = time.monotonic()

        def result(value: Any, verdict: Verdict, detail: str = "") -> Result:
            return Result(value, verdict, time.monotonic() - start, detail)

        try:
            sock.settimeout(self.seconds)
            sock.sendall(data)
            verdict, value, detail = receive(sock, start + self.seconds, MAX_REPLY)
            if verdict not in ("ok", "memory", "error"):
                raise ValueError("a verdict that no worker gives")
            return result(value, verdict, str(detail))
        except TimeoutError:
            return result(None, "timeout", f"more than {self.seconds:g} s")
        except (OSError, EOFError):
            return result(None, "died")
        except (ValueError, TypeError, RecursionError) as error:
            return result(None, "died", f"broken reply: {error}")
