"""Settings that a whole process shares, put back after a reward has changed them.

A reward that is called in this process runs beside generation, in the same interpreter. What it leaves behind there
changes the run, or ends it far from the cause: another default dtype, a lower recursion limit, a closed stream. So what
Python and torch let one read and set is compared around every call, which takes microseconds. Global random generators
are left alone: sampling and data order draw from counters (`tppo.types.Sampling`), and a reward may use them.

What a reward does while its call lasts, to file descriptors, or in machine code is not undone: that takes a process of
its own (`tppo.grading.isolated`).
"""

from __future__ import annotations

import gc
import io
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from tppo.environment import in_one_line, warn
from tppo.errors import RewardError
from tppo.types import Prompt

T = TypeVar("T")
_STREAMS = ("stdin", "stdout", "stderr")


@dataclass(frozen=True)
class Setting:
    """One thing that all of a process shares. ``put`` undoes a change, given what ``get`` said before."""

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], object]


def guarded(call: Callable[[Prompt, str], T]) -> Callable[[Prompt, str], T]:
    """The same function, after which the process's settings are as before; each that was changed is told once.

    Raises RewardError where one cannot be put back, and whatever the function raises.
    """
    told = set[str]()
    gets = [setting.get for setting in SETTINGS]

    def judged(prompt: Prompt, text: str) -> T:
        before = [get() for get in gets]
        try:
            return call(prompt, text)
        finally:
            after = [get() for get in gets]
            if after != before:
                for setting, was, now in zip(SETTINGS, before, after, strict=True):
                    if now != was:
                        _undo(setting, was, prompt, told)

    return judged


def _undo(setting: Setting, was: Any, prompt: Prompt, told: set[str]) -> None:
    remedy = "let the function undo it, or run it in a process of its own"
    changed = f"the reward function changed {setting.name}, which the whole process shares, on prompt {prompt.id!r}"
    try:
        setting.put(was)
    except Exception as error:
        raise RewardError(f"{changed}, and it cannot be put back ({in_one_line(error)}): {remedy}") from error
    if setting.name not in told:
        told.add(setting.name)
        warn(f"{changed}; it was put back: {remedy}")


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _streams() -> list[tuple[Any, bool]]:
    """The standard streams, and whether each is closed."""
    return [(stream, getattr(stream, "closed", False)) for stream in (sys.stdin, sys.stdout, sys.stderr)]


def _put_streams(was: list[tuple[Any, bool]]) -> None:
    """The same objects, and a closed one opened again, as others hold it too."""
    for number, (stream, closed) in enumerate(was):
        setattr(sys, _STREAMS[number], stream)
        if getattr(stream, "closed", False) and not closed:
            raw = io.FileIO(number, "w" if number else "r", closefd=False)
            buffer = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
            options = {"encoding": stream.encoding, "errors": stream.errors, "line_buffering": number > 0}
            io.TextIOWrapper.__init__(stream, buffer, **options)


def _raising() -> list[Any]:
    """Filters that make an error of a warning: in any thread, and the loop's own work warns too."""
    return [item for item in warnings.filters if item[0] == "error"]


def _put_raising(was: list[Any]) -> None:
    kept: Any = [item for item in warnings.filters if item[0] != "error" or item in was]
    warnings.filters[:] = [*(item for item in was if item not in kept), *kept]  # type: ignore[index]


SETTINGS = (
    Setting("the standard streams", _streams, _put_streams),  # first: what is told of the others goes there
    Setting("the working directory", _folder, lambda was: os.chdir(was or "")),
    Setting("which warnings raise", _raising, _put_raising),
    Setting("Python's recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("the interval between threads", sys.getswitchinterval, sys.setswitchinterval),
    Setting("garbage collection", gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting(
        "torch's deterministic algorithms",
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
)
"""All of them are read and set in the thread that calls the reward."""
