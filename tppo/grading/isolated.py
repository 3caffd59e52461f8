"""A reward function that nobody has to trust: called in worker processes with hard limits of time and memory.

The function is the same as one in this process, ``function(prompt, text)`` (`tppo.grading.reward.Reward`), named by
``FILE.py:NAME`` or ``module:NAME``. Prompts and scores travel as JSON. What it may not do there, and what guards the
run from it, is listed in `tppo.grading.pool`: it may read files and start no process, open no socket, write no file;
what it prints is lost. As no user but root may start threads there, a function that needs any is to be called in this
process. Its imports happen once, before workers are forked, and count towards the memory.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from tppo.environment import in_one_line
from tppo.errors import ConfigError, RewardError
from tppo.files import sha256_of_file
from tppo.grading.pool import Result, SandboxError, WorkerPool
from tppo.grading.reward import Reward, as_score
from tppo.types import Prompt

_EXPECTED = "a function of (prompt, text) that can be imported"
PATIENCE = 8
"""Calls that may all come to nothing before the run stops."""


def place_of(name: str, field: str = "reward") -> tuple[Path | None, str, str]:
    """(file, module, function) that a name leads to, without importing anything; one of file and module is there.

    Raises ConfigError where the name has another form, or its file is not there.
    """
    where, _, function = name.rpartition(":")
    forms = "FILE.py:FUNCTION or module:FUNCTION"
    if not where or not function.isidentifier():
        raise ConfigError(field, name, forms)
    if not where.endswith(".py"):
        if not all(part.isidentifier() for part in where.split(".")):
            raise ConfigError(field, name, forms)
        return None, where, function
    try:
        there = Path(where).is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(field, name, forms, f"there is no file {where}")
    return Path(where), "", function


def source_of(name: str, field: str = "reward") -> Path | None:
    """The file with the function's code, found without importing it; None where it has none. Raises as `place_of`."""
    file, module, _ = place_of(name, field)
    search: list[str] | None = None
    for part in range(module.count(".") + 1 if module else 0):
        found = _spec(".".join(module.split(".")[: part + 1]), search)
        if found is None:
            return None
        search = list(found.submodule_search_locations or ())
        file = Path(found.origin) if found.has_location and found.origin else None
    return file


def _spec(module: str, search: list[str] | None) -> ModuleSpec | None:
    """Where a module is, by every finder of this process; `importlib.util.find_spec` would import what is above it."""
    specs = (finder.find_spec(module, search) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    return next((spec for spec in specs if spec is not None), None)


def digest_of(name: str, field: str = "reward") -> str:
    """SHA-256 of the file with the function's code; empty where it has none. Raises ConfigError."""
    file = source_of(name, field)
    try:
        return "" if file is None else sha256_of_file(file)
    except OSError as error:
        raise ConfigError(field, name, "a file that can be read", in_one_line(error)) from None


def load(name: str, field: str = "reward") -> Reward:
    """The function, imported into this process. Raises ConfigError when it cannot be, or takes other arguments."""
    place_of(name, field)
    try:
        return _import(name)
    except (Exception, SystemExit) as error:  # what is imported may raise anything
        raise ConfigError(field, name, _EXPECTED, in_one_line(error)) from error


def _import(name: str) -> Reward:
    file, module, function = place_of(name)
    found: Reward = getattr(importlib.import_module(module) if file is None else _module(file), function)
    inspect.signature(found).bind(None, "")
    return found


def _module(file: Path) -> ModuleType:
    """The module in a file, under a name that hides no other. It finds modules in its folder, after all others."""
    name = f"_tppo_reward_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses look for it
    if (folder := str(file.absolute().parent)) not in sys.path:
        sys.path.append(folder)
    spec.loader.exec_module(module)
    return module


class IsolatedReward:
    """A reward in processes of its own (see the module). A call that ends its process, or is ended for its time or
    memory, scores zero and is counted in ``counts``; one that raises, or returns no finite number, is a RewardError,
    and so is a function that has never come to a score in its first calls.

    Raises ConfigError on ``field`` when the function cannot be imported there. Call from any thread; close it at the
    end. In a process that was forked since it raises SandboxError.

    name: ``FILE.py:FUNCTION`` or ``module:FUNCTION``.
    workers: processes.
    seconds: wall-time limit of one verdict [s].
    memory: address space of a worker [bytes].
    """

    def __init__(
        self, name: str, *, workers: int = 1, seconds: float = 10.0, memory: int = 2**30, field: str = "reward"
    ) -> None:
        place_of(name, field)
        self.name, self._lock = name, threading.Lock()
        self._counts = dict.fromkeys(("ok", "timeout", "memory", "died"), 0)
        here, limits = "tppo.grading.isolated", {"workers": workers, "seconds": seconds, "memory": memory}
        try:
            self._pool = WorkerPool(f"{here}:_judge", **limits, warm_up=f"{here}:_keep", arguments=(name,))  # type: ignore[arg-type]
        except SandboxError as error:
            raise ConfigError(field, name, _EXPECTED, error.problem or str(error)) from error

    @property
    def counts(self) -> dict[str, int]:
        """How many calls came to each end: "ok" is a score; "timeout", "memory", "died" scored zero."""
        with self._lock:
            return dict(self._counts)

    @property
    def slowest(self) -> float:
        """The longest verdict so far [s]."""
        return self._pool.slowest

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        """The score, later; the future holds RewardError where the function is at fault."""
        score: Future[float] = Future()
        score.set_running_or_notify_cancel()

        def judged(done: Future[Result]) -> None:
            try:
                score.set_result(self._score(done))
            except Exception as error:
                score.set_exception(error)

        call = self._pool.submit(prompt.id, prompt.tokens, prompt.truth, prompt.source, text)
        call.add_done_callback(judged)
        return score

    def _score(self, done: Future[Result]) -> float:
        if done.cancelled():
            raise SandboxError("the pool was closed")
        result = done.result()
        if result.verdict == "error":
            remedy = "; a function that is trusted may be called in the run's own process" * (
                result.detail.startswith("PermissionError")
            )
            raise RewardError(f"{self.name} failed: {result.detail.rstrip(': ')}{remedy}")
        with self._lock:
            self._counts[result.verdict] += 1
            failed = sum(self._counts.values())
            if not self._counts["ok"] and failed >= PATIENCE:
                raise RewardError(
                    f"{self.name} came to no score in {failed} calls, of which this one ended with {result.verdict} "
                    f"({result.detail}); look at its limits of time and memory"
                )
        return float(result.value) if result.verdict == "ok" else 0.0

    def __call__(self, prompt: Prompt, text: str) -> float:
        """The score."""
        return self.submit(prompt, text).result()

    def close(self) -> None:
        """End the workers. May be called twice."""
        self._pool.close()


_function: Callable[[Prompt, str], Any] | None = None
"""In a worker: what `_keep` imported before it was forked."""


def _keep(name: str) -> None:
    global _function
    _function = _import(name)


def _judge(prompt_id: str, tokens: list[int], truth: str, source: str, text: str) -> float:
    assert _function is not None
    return as_score(_function(Prompt(prompt_id, tuple(tokens), truth, source), text))
