"""The processes of a `WorkerPool`: a template that imports the function once, and the workers forked from it.

This file runs in the template process, so it imports the standard library alone. Arguments and values travel as JSON:
nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any

REFUSED = re.compile(
    r"os\.(fork|forkpty|posix_spawn|spawn|exec|system|kill|killpg|remove|rename|rmdir|mkdir|link|symlink|truncate)"
    r"|os\.(chmod|chown)|pty\.spawn|subprocess\.Popen|resource\.(setrlimit|prlimit)|signal\.pthread_kill"
    r"|socket\.__new__|ctypes\.(dlopen|dlsym)"
)
"""Audit events that raise PermissionError in a worker."""


def send(sock: socket.socket, message: Any) -> None:
    data = json.dumps(message).encode()
    sock.sendall(struct.pack("!Q", len(data)) + data)


def receive(sock: socket.socket, deadline: float | None = None, most: int = 2**40) -> Any:
    """One message. Raises TimeoutError after ``deadline`` (time.monotonic), EOFError at the end, ValueError if long."""

    def exactly(count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            sock.settimeout(None if deadline is None else max(deadline - time.monotonic(), 1e-3))
            part = sock.recv(min(count - len(parts), 2**20))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    (length,) = struct.unpack("!Q", exactly(8))
    if length > most:
        raise ValueError(f"a reply of {length} bytes")
    return json.loads(exactly(length))


def _named(name: str) -> Callable[..., Any]:
    module, _, attribute = name.partition(":")
    found = getattr(importlib.import_module(module), attribute)
    if not callable(found):
        raise TypeError(f"{name} is not callable")
    return found


def template() -> None:
    """Main function of the template: import, warm up, then fork and kill on request until the pool is gone."""
    import ctypes
    import gc

    control = socket.socket(fileno=int(sys.argv[2]))
    function, warm_up, memory, arguments = sys.argv[3], sys.argv[4], int(sys.argv[5]), sys.argv[6:]
    sys.dont_write_bytecode = True
    try:
        call = _named(function)
        if warm_up:
            _named(warm_up)(*arguments)
        prctl = ctypes.CDLL(None).prctl
        if (used := _address_space()) > memory:
            raise MemoryError(f"its imports take {used >> 20} MiB of address space, the limit is {memory >> 20} MiB")
    except BaseException as error:  # what is imported may raise anything, an exit too
        send(control, f"{type(error).__name__}: {error}")
        return
    gc.freeze()
    send(control, "")
    while True:
        message, fds, _, _ = socket.recv_fds(control, 9, 1)
        if len(message) < 9:
            return  # The end: workers get SIGKILL when this process is gone.
        operation, pid = struct.unpack("!cq", message)
        if operation == b"F":
            child = os.fork()
            if child == 0:
                control.close()
                prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
                _worker(socket.socket(fileno=fds[0]), call, memory)
            os.close(fds[0])
            send(control, child)
        else:
            ended, status = os.waitpid(pid, os.WNOHANG)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            if not ended:
                _, status = os.waitpid(pid, 0)
            send(control, os.waitstatus_to_exitcode(status))


def _address_space() -> int:
    """Of this process [bytes]."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if REFUSED.fullmatch(event):
        raise PermissionError(f"{event} is refused here")
    if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
        raise PermissionError("writing files is refused here")


def _worker(sock: socket.socket, call: Callable[..., Any], memory: int) -> None:
    """Main function of a worker: limits first, then call after call. Never returns."""
    import resource

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        limits = {"AS": memory, "FSIZE": 0, "CORE": 0, "NPROC": 0}
        for name, most in limits.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
        sys.addaudithook(_audit)
        send(sock, "ready")
        while True:
            try:
                send(sock, ["ok", call(*receive(sock)), ""])
            except EOFError:
                break
            except MemoryError:
                send(sock, ["memory", None, "MemoryError"])
            except SystemExit as error:  # as where it is not caught: the process ends
                os._exit(error.code if isinstance(error.code, int) else int(error.code is not None))
            except BaseException as error:
                send(sock, ["error", None, f"{type(error).__name__}: {error}"[:500]])
    finally:
        os._exit(1)
