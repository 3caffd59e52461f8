"""The verdict on a response: right or wrong against a truth, or no single answer for a reason that is counted."""

from __future__ import annotations

from collections.abc import Callable

from tppo.grading.answers import find_answer
from tppo.grading.reading import MAX_ANSWER, Reading, equal, read

REASONS = {
    "no_answer": "the response holds no answer line and no box, or only empty ones",
    "too_long": f"the answer has more than {MAX_ANSWER} characters",
    "several_answers": "a list of answers where the truth is one",
    "false_equation": "an equation whose left side is neither a name nor equal to the right side, or a false rounding",
    "stray_words": "words beside the value that are neither harmless nor a unit",
    "unclear_notation": "digits that two readers would take for different numbers, such as 7 3, 1/2x or 5 7/3",
}
"""Why a response scores zero without a comparison. The names are metrics and stay."""


def judge(truth: str, text: str, ask: Callable[[Reading, Reading], bool]) -> tuple[float, str]:
    r"""1.0 if the answer of ``text`` says what ``truth`` says, else 0.0; and the reason if nothing was compared.

    ask: decides where the exact reader cannot.

    >>> def never(truth, answer):
    ...     raise AssertionError("asked")
    >>> [judge("5", text, never) for text in ("Answer: -(-5)", "Answer: $3$ or $5$", "Answer: 1=2=5", "5")]
    [(1.0, ''), (0.0, 'several_answers'), (0.0, 'false_equation'), (0.0, 'no_answer')]
    """
    answer = find_answer(text)
    if answer is None:
        return 0.0, "no_answer"
    if len(answer) > MAX_ANSWER:
        return 0.0, "too_long"
    expected, found = read(truth), read(answer)
    same = equal(expected, found)
    if same is None:
        same = ask(expected, found)
    if same:
        return 1.0, ""
    if found.form is not None and found.form.kind == "list" and expected.form is not None:
        return 0.0, "" if expected.form.kind in ("list", "bracket", "unread") else "several_answers"
    return 0.0, found.reason
