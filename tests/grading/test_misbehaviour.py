"""Rewards in this process that misbehave: the culprit is named, and what the process shares is put back."""

from __future__ import annotations

import asyncio
import fractions
import gc
import io
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.helpers import response, small_token_mdp
from tppo.errors import RewardError
from tppo.grading import guard
from tppo.grading.grader import Grader
from tppo.grading.guard import guarded
from tppo.grading.reward import as_score
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.types import Prompt

PROMPT = Prompt("p7", (1,))


def grade(reward: Any, count: int = 1) -> list[float | None]:
    rows = [response(uid, [1], reward=None) for uid in range(count)]
    Grader(reward, str, seconds=20, ranks=Ranks()).grade(rows)
    return [row.reward for row in rows]


class Submits:
    """A reward with workers of its own, which does what it is told when it is asked."""

    def __init__(self, do: Callable[[], Any]) -> None:
        self.do = do

    def __call__(self, prompt: Prompt, text: str) -> float:
        raise AssertionError("submit is there to be used")

    def submit(self, prompt: Prompt, text: str) -> Any:
        return self.do()


def raising(error: BaseException) -> Callable[..., Any]:
    def do(*args: Any, **options: Any) -> Any:
        raise error

    return do


def of(value: Any = None, error: BaseException | None = None) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value) if error is None else future.set_exception(error)
    return future


def cancelled() -> Future[Any]:
    future: Future[Any] = Future()
    future.cancel()
    return future


class Unmade(Future[float]):
    """A future whose base class was never made."""

    def __init__(self) -> None:
        pass


class Odd(Exception):
    """An error that cannot even say what it is."""

    def __str__(self) -> str:
        return "two\nlines, and \ud800"


ERRORS = [
    KeyboardInterrupt(), SystemExit(3), GeneratorExit(), BaseException("base"), asyncio.CancelledError(),
    CancelledError(), StopIteration(), MemoryError(), RecursionError("deep"), TimeoutError("late"), Odd(),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_whatever_a_reward_raises_is_its_own_fault(error: BaseException) -> None:
    """In the reward's thread nothing is the user's interrupt, and nothing is a time-out."""
    for reward in (raising(error), Submits(lambda: of(error=error))):
        with pytest.raises(RewardError, match=rf"prompt 'p0', response 0: {type(error).__name__}") as caught:
            grade(reward)
        assert "\n" not in str(caught.value)
        str(caught.value).encode()
    if not isinstance(error, KeyboardInterrupt):
        with pytest.raises(RewardError, match=rf"prompt 'p0', response 0: {type(error).__name__}"):
            grade(Submits(raising(error)))


def test_an_interrupt_of_the_thread_that_waits_is_the_users() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process of several that test ignores it
    with pytest.raises(KeyboardInterrupt):
        grade(Submits(raising(KeyboardInterrupt())))
    over = threading.Event()
    signalled = lambda prompt, text: os.kill(os.getpid(), signal.SIGINT) or over.wait(20)  # noqa: E731
    with pytest.raises(KeyboardInterrupt):
        grade(signalled)
    over.set()
    signal.signal(signal.SIGINT, before)


def test_the_thread_goes_on_after_an_exit() -> None:
    answers: Iterator[Any] = iter([SystemExit(1), 0.5])

    def reward(prompt: Prompt, text: str) -> float:
        found = next(answers)
        if isinstance(found, BaseException):
            raise found
        return float(found)

    grader = Grader(reward, str, seconds=20, ranks=Ranks())
    with pytest.raises(RewardError):
        grader.grade([response(0, [1], reward=None)])
    rows = [response(1, [1], reward=None)]
    grader.grade(rows)
    assert rows[0].reward == 0.5


@pytest.mark.parametrize(
    ("do", "says"),
    [
        (lambda: None, "submit returned a NoneType, expected a concurrent.futures.Future"),
        (lambda: 1.0, "submit returned a float"),
        (lambda: [of(1.0)], "submit returned a list"),
        (lambda: iter([of(1.0)]), "submit returned a list_iterator"),
        (Unmade, "AttributeError"),
        (cancelled, "its future was cancelled"),
        (lambda: of(None), "is None: expected a finite number"),
    ],
)
def test_a_submit_that_breaks_its_promise(do: Callable[[], Any], says: str) -> None:
    with pytest.raises(RewardError, match=says) as caught:
        grade(Submits(do))
    assert "prompt 'p0', response 0" in str(caught.value)


NO_NUMBERS = [
    None, "1", b"1", "", float("nan"), float("inf"), -float("inf"), 1j, np.complex64(1), [1.0], (1.0, 2.0), {},
    10**400, fractions.Fraction(10**400), 1e39, np.float64("nan"), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]),
    torch.tensor(float("nan")), torch.tensor(1j), object(), float, Ellipsis, NotImplemented, iter(()),
]  # fmt: skip


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: type(v).__name__)
def test_what_is_no_number_is_no_score(value: Any) -> None:
    for reward in (lambda prompt, text: value, Submits(lambda: of(value))):
        with pytest.raises(RewardError, match=r"prompt 'p0', response 0 is .*: expected a finite number") as caught:
            grade(reward)
        assert "\n" not in str(caught.value)


def test_numbers_of_any_library_are_scores() -> None:
    values = [
        1,
        True,
        np.float32(1),
        np.int8(1),
        np.bool_(True),
        torch.tensor(1),
        torch.tensor([1.0]),
    ]
    values += [fractions.Fraction(1), 1.0]
    assert [as_score(value) for value in values] == [1.0] * len(values)


CHANGES: dict[str, tuple[Callable[[], Any], str]] = {
    "folder": (lambda: os.chdir("/"), "the working directory"),
    "recursion": (lambda: sys.setrecursionlimit(sys.getrecursionlimit() - 1), "Python's recursion limit"),
    "switch": (lambda: sys.setswitchinterval(1.0), "the interval between threads"),
    "gc": (gc.disable, "garbage collection"),
    "dtype": (lambda: torch.set_default_dtype(torch.float64), "torch's default dtype"),
    "threads": (lambda: torch.set_num_threads(torch.get_num_threads() + 1), "torch's number of threads"),
    "precision": (lambda: torch.set_float32_matmul_precision("medium"), "torch's precision"),
    "deterministic": (lambda: torch.use_deterministic_algorithms(True), "torch's deterministic algorithms"),
    "filters": (lambda: warnings.simplefilter("error", ResourceWarning), "which warnings raise"),
    "no filters": (warnings.resetwarnings, "which warnings raise"),
    "stdout": (lambda: setattr(sys, "stdout", io.StringIO()), "the standard streams"),
    "no stream": (lambda: setattr(sys, "stdout", None), "the standard streams"),
    "closed": (lambda: sys.stdout.close(), "the standard streams"),
    "closed input": (lambda: sys.stdin.close(), "the standard streams"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_the_process_shares_is_put_back(change: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Before the score is known; and told once, with the prompt."""
    do, name = CHANGES[change]
    warned: list[str] = []
    monkeypatch.setattr(guard, "warn", warned.append)
    with open(tmp_path / "out", "w+") as out, open(os.devnull) as empty:
        for stream, value in (("stdout", out), ("stdin", empty)):
            monkeypatch.setattr(sys, stream, value)
        judge = guarded(lambda prompt, text: do() or 1.0)
        before = [setting.get() for setting in guard.SETTINGS]
        assert [judge(PROMPT, ""), judge(PROMPT, "")] == [1.0, 1.0]
        assert [setting.get() for setting in guard.SETTINGS] == before
        assert len(warned) == 1
        assert f"changed {name}, which the whole process shares, on prompt 'p7'; it was put back" in warned[0]
        if name == "the standard streams":
            assert sys.stdout is out
            assert sys.stdin is empty


def test_put_back_when_it_raises_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "warn", lambda text: None)

    def reward(prompt: Prompt, text: str) -> float:
        torch.set_default_dtype(torch.float64)
        raise KeyError("x")

    with pytest.raises(RewardError, match="KeyError"):
        grade(reward)
    assert torch.get_default_dtype() is torch.float32


def test_what_cannot_be_put_back_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    monkeypatch.chdir(inside)

    def reward(prompt: Prompt, text: str) -> float:
        os.chdir("/")
        inside.rmdir()
        return 1.0

    with pytest.raises(RewardError, match=r"changed the working directory.* on prompt 'p0', and it cannot be put back"):
        grade(reward)


def test_global_random_numbers_change_nothing() -> None:
    """A reward may seed and draw: training draws from counters."""

    def trained(disturb: bool) -> list[bytes]:
        trainer = build_trainer(small_token_mdp())
        inner = trainer.workload.reward

        def reward(prompt: Prompt, text: str) -> float:
            if disturb:
                torch.manual_seed(len(text))
                random.seed(3)
                np.random.seed(len(text) % 5)  # noqa: NPY002
            return inner(prompt, text)

        trainer.grader = Grader(reward, trainer.workload.decode, seconds=20, ranks=Ranks())
        for _ in range(3):
            trainer.step()
        return [value.detach().numpy().tobytes() for value in trainer.networks.policy.parameters()]

    assert trained(True) == trained(False)


def test_a_grader_made_before_a_fork_judges_in_the_child() -> None:
    grader = Grader(lambda prompt, text: 0.25, str, seconds=5, ranks=Ranks())
    rows = [response(0, [1], reward=None)]
    grader.grade(rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of forking with threads, which is the point
        child = os.fork()
    if not child:
        try:
            rows = [response(1, [1], reward=None)]
            grader.grade(rows)
            os._exit(0 if rows[0].reward == 0.25 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert threading.active_count() >= 1


def test_counts_that_are_none_do_not_cost_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("tppo.grading.grader.warn", warned.append)

    class Counts:
        counts: Any = None
        slowest: Any = 1.0

        def __call__(self, prompt: Prompt, text: str) -> float:
            return 1.0

    found = []
    for counts, slowest in (({"a": 2}, 1), (None, 1.0), ({"a": "x"}, 1.0), ({}, None), (lambda: {}, 1.0)):
        reward = Counts()
        reward.counts, reward.slowest = counts, slowest
        found.append(Grader(reward, str, seconds=1, ranks=Ranks()).report())
    assert found == [{"verdicts": {"a": 2}, "slowest_verdict_seconds": 1.0}, {}, {}, {}, {}]
    assert len(warned) == 4


def test_everything_at_once_is_told_on_the_stream_that_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    def reward(prompt: Prompt, text: str) -> float:
        for name in ("folder", "dtype", "recursion"):
            CHANGES[name][0]()
        sys.stderr = None  # type: ignore[assignment]
        return 1.0

    assert guarded(reward)(PROMPT, "") == 1.0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("it was put back") == 4
