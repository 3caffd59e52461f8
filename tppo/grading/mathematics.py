"""Grading of mathematics: the last answer of a response against a reference, judged in worker processes.

The only file that imports math-verify (extra ``math``), and only inside the workers. Equal plain numbers, AIME's
integers among them, are decided without it. Two departures from math-verify, both stricter: plain decimals compare
exactly (it rounds to six places, so 0.0000672 would equal 0.0000673), and a numeral's base counts (it drops it).
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from fractions import Fraction
from functools import lru_cache
from types import TracebackType
from typing import TYPE_CHECKING, Any

from tppo.errors import DataError
from tppo.grading.pool import Result, SandboxError, WorkerPool

if TYPE_CHECKING:
    from tppo.types import Prompt

MAX_ANSWER = 2000
"""A longer answer is wrong [characters]. The response itself may have any length: extraction is linear."""

_ANSWER = re.compile(r"\banswer\b[*_` \t]{0,8}[:：]", re.IGNORECASE)
_BRACE = re.compile(r"(\\+)(boxed[ \t]{0,8}\{|[{}])?|[{}]")
_UNIT = r"(?:degrees?|units?|cm|mm|km|met(?:er|re)s?|inch(?:es)?|f(?:ee|oo)?t|miles?|dollars?|cents?|hours?|minutes?)"
_UNITS = re.compile(
    rf"(?:(?:square|cubic|sq|cu)\s+)?{_UNIT}(?:\s*\^\s*\{{?[23]\}}?)?$|\^\s*(?:\\circ|\{{\s*\\circ\s*\}})$|°$", re.I
)
_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf)\s*\{([^{}]*)\}")
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,40}|[0-9]{1,3}(?:,[0-9]{3}){1,12})?(?:\.[0-9]{1,40})?")
_BASED = re.compile(r"([0-9A-Za-z]{1,64})_\{?([0-9]{1,2})\}?")
_SCALE = re.compile(r"\b(?:hundred|thousand|million|billion|trillion)s?\b", re.IGNORECASE)


def extract_answers(text: str) -> str | None:
    r"""The last answer of a response: an ``Answer:`` line or a ``\boxed{...}``, whichever begins last; None if none.

    The whole text is read once, in linear time. Empty answers and boxes that never close do not count; a box inside
    an ``Answer:`` line is that line's answer. After a bare ``Answer:`` the next line that is not empty is taken.

    >>> extract_answers(r"First \boxed{1}, no: **Answer:** 42.")
    '42.'
    >>> extract_answers(r"Answer: $x = \boxed{\frac{1}{2}}$")
    '\\frac{1}{2}'
    """
    box = _last_box(text)
    for start, end in reversed([match.span() for match in _ANSWER.finditer(text)]):
        if box is not None and box[1] > start:
            break
        if line := _line(text, end):
            return line
    return text[box[0] : box[1]].strip() if box is not None else None


def _line(text: str, start: int) -> str:
    """The rest of the line at ``start``, or the next line when that is empty, without Markdown's marks."""
    for _ in range(3):
        end = text.find("\n", start)
        line = text[start : end if end >= 0 else len(text)].strip().strip("*_`").strip()
        if line or end < 0:
            return line
        start = end + 1
    return ""


def _last_box(text: str) -> tuple[int, int] | None:
    """Start and end of the content of the closed, non-empty box that opens last."""
    opened: list[int] = []  # Content start of a box, -1 for any other brace.
    best: tuple[int, int] | None = None
    for match in _BRACE.finditer(text):
        slashes, what = match.group(1), match.group(2) or ""
        if what.startswith("boxed"):
            opened.append(match.end())
        elif slashes and (not what or len(slashes) % 2):
            continue  # An escaped brace, or a command.
        elif text[match.end() - 1] == "{":
            opened.append(-1)
        elif opened:
            start, end = opened.pop(), match.end() - 1
            if start > (best[0] if best else -1) and text[start:end].strip():
                best = start, end
    return best


def _bare(answer: str) -> str:
    r"""Without math delimiters around it, the trailing period, thin spaces and the Unicode minus."""
    answer = re.sub(r",\\!\s{0,8}", ",", answer.strip()).replace("−", "-").replace("\\!", "").replace("\n", " ")
    for _ in range(4):
        before = answer
        answer = answer.removesuffix(".").strip()
        for left, right in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
            inner = answer[len(left) : -len(right)]
            wrapped = len(answer) > len(left + right) and answer.startswith(left) and answer.endswith(right)
            # "$1$ and $2$" is two formulas, not one.
            if wrapped and (left[0] != "$" or ("$" not in inner.replace("\\$", "") and not inner.endswith("\\"))):
                answer = inner.strip()
        if answer == before:
            break
    return answer


def plain_number(answer: str) -> Fraction | None:
    r"""The value of an answer that is nothing but a decimal number, perhaps with money sign or common unit, else None.

    >>> [plain_number(a) for a in ("007", "$1{,}024.$", r"\text{42} cm", r"\$18.90", "1,2", r"\frac12")]
    [Fraction(7, 1), Fraction(1024, 1), Fraction(42, 1), Fraction(189, 10), None, None]
    """
    if len(answer) > 200:
        return None
    answer = _TEXT.sub(r" \1 ", _bare(answer)).replace("{,}", ",").replace("\\$", "").strip()
    answer = _UNITS.sub("", answer.removeprefix("$")).strip().strip("{}").strip().removesuffix(".")
    if not _NUMBER.fullmatch(answer) or not re.search(r"[0-9]", answer):
        return None
    return Fraction(answer.replace(",", ""))


def grade_math(truth: str, text: str) -> float:
    """1.0 if the last answer of ``text`` equals ``truth``, else 0.0. Runs in a worker; may raise or hang on bad text.

    >>> grade_math("73", "so it is \\\\boxed{073}"), grade_math("73", "Answer: 37"), grade_math("73", "73")
    (1.0, 0.0, 0.0)
    """
    answer = extract_answers(text)
    if answer is None or len(answer) > MAX_ANSWER:
        return 0.0
    expected, found = plain_number(truth), plain_number(answer)
    if expected is not None and found is not None:
        return float(expected == found)
    if expected is not None and expected.denominator == 1 and re.fullmatch(r"[+-]?[0-9, ]+", _bare(answer)):
        return 0.0  # Digits that are no number we accept: thousands of them, or several numbers.
    based = _BASED.fullmatch(_bare(truth)), _BASED.fullmatch(_bare(answer))
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
    answer = _bare(answer)
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
    raises DataError: give ``truths`` to check them before training, others are checked at first use.
    workers: processes. seconds: wall-time limit of one verdict [s]. memory: address space of a worker [bytes].
    Raises SandboxError when math-verify is not installed. Call from any thread; close it at the end.
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

    def grade_many(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float]:
        """The scores of many texts, in their order; all workers share them."""
        self.check_truth(*(prompt.truth for prompt in prompts))
        scores = [self.submit(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        return [score.result() for score in scores]

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
