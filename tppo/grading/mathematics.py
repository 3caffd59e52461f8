"""Grading of mathematics: the last answer of a response against a reference, judged in worker processes.

The only file that imports math-verify (extra ``math``), and only inside the workers. Equal plain numbers, AIME's
integers among them, are decided without it. Two departures from math-verify, both stricter: plain decimals compare
exactly (it rounds to six places, so 0.0000672 would equal 0.0000673), and a numeral's base counts (it drops it).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tppo.errors import DataError
from tppo.grading.answers import bare, find_answer, plain_number
from tppo.grading.pool import Result, SandboxError, WorkerPool

if TYPE_CHECKING:
    from tppo.types import Prompt

MAX_ANSWER = 2000
"""A longer answer is wrong [characters]. The response itself may have any length: finding the answer is linear."""

_BASED = re.compile(r"([0-9A-Za-z]{1,64})_\{?([0-9]{1,2})\}?")
_SCALE = re.compile(r"\b(?:hundred|thousand|million|billion|trillion)s?\b", re.IGNORECASE)


def grade_math(truth: str, text: str) -> float:
    """1.0 if the last answer of ``text`` equals ``truth``, else 0.0. Runs in a worker; may raise or hang on bad text.

    >>> grade_math("73", "so it is \\\\boxed{073}"), grade_math("73", "Answer: 37"), grade_math("73", "73")
    (1.0, 0.0, 0.0)
    """
    answer = find_answer(text)
    if answer is None or len(answer) > MAX_ANSWER:
        return 0.0
    expected, found = plain_number(truth), plain_number(answer)
    if expected is not None and found is not None:
        return float(expected == found)
    if expected is not None and expected.denominator == 1 and re.fullmatch(r"[+-]?[0-9, ]+", bare(answer)):
        return 0.0  # Digits that are no number we accept: thousands of them, or several numbers.
    based = _BASED.fullmatch(bare(truth)), _BASED.fullmatch(bare(answer))
    if based[0] and based[1]:
        return float(based[0].groups() == based[1].groups())
    if _SCALE.search(answer) and not _SCALE.search(truth):
        return 0.0  # "5 million" is not 5; math-verify would drop the word.
    return float(_math_verify().verify(_parse_truth(truth), _parse(answer), timeout_seconds=None))


def _math_verify() -> Any:
    import math_verify  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return math_verify


def _parse(answer: str) -> list[Any]:
    """math-verify's reading of an answer: expressions and, last, the text. The pool keeps the time."""
    library = _math_verify()
    answer = bare(answer)
    formulas = "$" in answer.replace("\\$", "") or "\\(" in answer
    return list(
        library.parse(
            answer if formulas else f"${answer}$",
            extraction_config=[library.LatexExtractionConfig()],
            extraction_mode="first_match",
            parsing_timeout=None,
            raise_on_error=True,
        )
    )


@lru_cache(maxsize=256)
def _parse_truth(truth: str) -> list[Any]:
    return _parse(truth)


def truth_problem(truth: str) -> str:
    """Why a reference answer cannot be used, or an empty text. Runs in a worker.

    A reference must be a plain number, or something that math-verify reads and finds equal to itself.
    """
    if not truth.strip():
        return "it is empty"
    if len(truth) > MAX_ANSWER:
        return f"it has {len(truth)} characters, more than {MAX_ANSWER}"
    if plain_number(truth) is not None:
        return ""
    parsed = _parse(truth)
    if not parsed or isinstance(parsed[0], str):
        return "math-verify cannot read it as mathematics"
    same = _math_verify().verify(parsed, _parse(truth), timeout_seconds=None)
    return "" if same else "math-verify does not find it equal to itself"


def warm_up() -> None:
    """Import math-verify and fill its tables, once, before workers are forked."""
    import logging

    verify = _math_verify().verify
    logging.disable(logging.CRITICAL)  # It warns of the absent time limit: the pool has one.
    for truth in (r"\frac{1}{2}+\sqrt{3}", r"\text{east}", "(3,4]", "x=5", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"):
        verify(_parse(truth), _parse(truth + " "), timeout_seconds=None)


class MathReward:
    """A reward: 1.0 for a response whose last answer is the prompt's truth, else 0.0.

    Hostile or failing text scores 0.0 and is counted in ``counts``; it never raises. A reference that cannot be read
    raises DataError. Raises SandboxError when math-verify is not installed. Call from any thread; close it at the end.

    truths: references to check now, before training; others are checked at first use.
    workers: processes.
    seconds: wall-time limit of one verdict [s].
    memory: address space of a worker [bytes].
    """

    def __init__(
        self, truths: Iterable[str] = (), *, workers: int = 1, seconds: float = 3.0, memory: int = 2**30
    ) -> None:
        here = "tppo.grading.mathematics"
        limits = {"workers": workers, "seconds": seconds, "memory": memory}
        try:
            self._pool = WorkerPool(f"{here}:_dispatch", **limits, warm_up=f"{here}:warm_up")  # type: ignore[arg-type]
        except SandboxError as error:
            raise SandboxError(f"{error}; is math-verify installed? pip install 'tppo[math]'") from error
        self._known: set[str] = set()
        self._lock = threading.Lock()
        self._counts = dict.fromkeys(("ok", "timeout", "memory", "died", "error"), 0)
        try:
            self.check_truth(*truths)
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> dict[str, int]:
        """Texts judged ("ok", right or wrong) and texts that failed: "timeout", "memory", "died", "error"."""
        with self._lock:
            return dict(self._counts)

    def check_truth(self, *truths: str) -> None:
        """Raises DataError when one cannot serve as a reference. Each is checked once; all workers share them."""
        new = [truth for truth in dict.fromkeys(truths) if truth not in self._known]
        checks = [None if plain_number(truth) is not None else self._pool.submit("truth", truth) for truth in new]
        for truth, check in zip(new, checks, strict=True):
            if check is not None:
                result = check.result()
                failed = f"reading it ended with {result.verdict} ({result.detail})"
                if problem := result.value if result.verdict == "ok" else failed:
                    raise DataError(f"the reference answer {truth[:200]!r} cannot be graded against: {problem}")
            self._known.add(truth)

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        """The score, later: grading overlaps what the caller does meanwhile. Raises DataError on a bad reference."""
        self.check_truth(prompt.truth)
        score: Future[float] = Future()
        score.set_running_or_notify_cancel()

        def judged(done: Future[Result]) -> None:
            if done.cancelled() or done.exception() is not None:
                score.set_exception(SandboxError("the pool was closed") if done.cancelled() else done.exception())
                return
            result = done.result()
            with self._lock:
                self._counts[result.verdict] += 1
            score.set_result(float(result.verdict == "ok" and result.value == 1.0))

        self._pool.submit("grade", prompt.truth, text).add_done_callback(judged)
        return score

    def __call__(self, prompt: Prompt, text: str) -> float:
        """1.0 or 0.0."""
        return self.submit(prompt, text).result()

    @property
    def slowest(self) -> float:
        """The longest verdict so far [s]."""
        return self._pool.slowest

    def close(self) -> None:
        """End the workers. May be called twice."""
        self._pool.close()

    def __enter__(self) -> MathReward:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _dispatch(what: str, truth: str, text: str = "") -> float | str:
    return grade_math(truth, text) if what == "grade" else truth_problem(truth)
