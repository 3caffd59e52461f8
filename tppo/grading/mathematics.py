"""Grading of mathematics: the last answer of a response against a reference, judged in worker processes.

Most answers are read exactly (`tppo.grading.reading`). What has no exact form there goes to math-verify, whole: this is
the only file that imports it (extra ``math``), and only inside the workers. What it finds equal must also be equal to
twelve digits relative to its size, as math-verify takes all tiny numbers for zero.
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
from tppo.grading.pool import Result, SandboxError, WorkerPool
from tppo.grading.reading import MAX_ANSWER, Reading, read
from tppo.grading.structure import Form
from tppo.grading.verdict import REASONS, judge

if TYPE_CHECKING:
    from tppo.types import Prompt

_DEGREES = re.compile(r"([0-9.]{1,20}|[a-z])\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})")


def grade_math(truth: str, text: str) -> float:
    """1.0 if the last answer of ``text`` equals ``truth``, else 0.0. Runs in a worker; may raise or hang on bad text.

    >>> grade_math("73", "so it is \\\\boxed{073}"), grade_math("73", "Answer: 37"), grade_math("73", "73")
    (1.0, 0.0, 0.0)
    """
    return judge(truth, text, _ask)[0]


def _ask(truth: Reading, answer: Reading) -> bool:
    """math-verify's word on two readings, one of which has no exact form."""
    assert truth.form is not None
    assert answer.form is not None
    if truth.form.checks and answer.form.checks:
        return _same(_whole(truth.form), _whole(answer.form))
    if answer.form.checks and not all(_same(left, right) for left, right in answer.form.checks):
        return False
    return _same(truth.form.text or truth.text, answer.form.text or answer.text)


def _whole(form: Form) -> str:
    return "=".join([form.checks[0][0], *(right for _, right in form.checks)])


def _same(truth: str, answer: str) -> bool:
    expected, found = _parse_truth(truth), _parse(answer)
    if not _math_verify().verify(expected, found, timeout_seconds=None):
        return False
    try:
        size = abs(expected[0].evalf(30))
        apart = abs((expected[0] - found[0]).evalf(30))
        return bool(not size.is_number or apart <= size * 1e-12 or apart < 1e-100)
    except Exception:  # Sets, equations, matrices: sympy raises many kinds.
        return True


def _math_verify() -> Any:
    import math_verify  # type: ignore[import-untyped, import-not-found, unused-ignore]

    return math_verify


def _parse(answer: str) -> list[Any]:
    """math-verify's reading of a formula: expressions and, last, the text. The pool keeps the time."""
    library = _math_verify()
    answer = _DEGREES.sub(r"(\1\\cdot\\frac{\\pi}{180})", answer.replace("\x02", "\\\\").replace("\x01", ""))
    return list(
        library.parse(
            f"${answer}$",
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
    """Why a reference answer cannot be used, or an empty text. Runs in a worker where math-verify is needed.

    A reference has an exact form, or words that can be compared letter by letter, or it is something that math-verify
    reads and finds equal to itself.
    """
    if not truth.strip():
        return "it is empty"
    if len(truth) > MAX_ANSWER:
        return f"it has {len(truth)} characters, more than {MAX_ANSWER}"
    reading = read(truth)
    if reading.exact or reading.reason == "stray_words":
        return ""
    if reading.form is None:
        return f"it is no single answer ({REASONS[reading.reason]})"
    text = _whole(reading.form) if reading.form.checks else reading.form.text
    parsed = _parse(text)
    if not parsed or isinstance(parsed[0], str):
        return "math-verify cannot read it as mathematics"
    same = _math_verify().verify(parsed, _parse(text), timeout_seconds=None)
    return "" if same else "math-verify does not find it equal to itself"


def warm_up() -> None:
    """Import math-verify and fill its tables, once, before workers are forked."""
    import logging

    verify = _math_verify().verify
    logging.disable(logging.CRITICAL)  # It warns of the absent time limit: the pool has one.
    judge("1", r"\boxed{\frac{1}{2}}", _ask)
    for truth in (r"\frac{1}{2}+\sqrt{3}", r"\text{east}", "(3,4]", "x=5", r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}"):
        verify(_parse(truth), _parse(truth + " "), timeout_seconds=None)


class MathReward:
    """A reward: 1.0 for a response whose last answer is the prompt's truth, else 0.0.

    Unclear, hostile or failing text scores 0.0 and is counted in ``counts``; it never raises. A reference that
    cannot be read raises DataError. Raises SandboxError when math-verify is not installed, and in a process that was
    forked after this was made. Call from any thread; close it at the end.

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
        self._counts = dict.fromkeys(("ok", *REASONS, "timeout", "memory", "died", "error"), 0)
        try:
            self.check_truth(*truths)
        except BaseException:
            self.close()
            raise

    @property
    def counts(self) -> dict[str, int]:
        """How many texts came to each end; each text counts once.

        "ok": an answer was compared with the truth, right or wrong. The names in `tppo.grading.verdict.REASONS`: there
        was no single clear answer. "timeout", "memory", "died", "error": judging failed.
        """
        return dict(self._counts)

    def check_truth(self, *truths: str) -> None:
        """Raises DataError when one cannot serve as a reference. Each is checked once; all workers share them."""
        new = [truth for truth in dict.fromkeys(truths) if truth not in self._known]
        checks = [None if read(truth).exact else self._pool.submit("truth", truth) for truth in new]
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
            right, reason = result.value if result.verdict == "ok" else (0.0, result.verdict)
            with self._lock:
                self._counts[reason or "ok"] += 1
            score.set_result(right)

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


def _dispatch(what: str, truth: str, text: str = "") -> tuple[float, str] | str:
    return judge(truth, text, _ask) if what == "grade" else truth_problem(truth)
