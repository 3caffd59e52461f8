"""Finding the last answer of a text, against a slow oracle and on huge texts; and what counts as the same vote."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.hostile import HUGE
from tppo.grading.answers import _boxes, find_answer, vote_key
from tppo.grading.reading import read


@pytest.mark.parametrize("text", HUGE, ids=lambda text: repr(text[:9]))
def test_a_megabyte_is_read_in_linear_time(text: str) -> None:
    start = time.process_time()  # Other work on the machine does not count.
    find_answer(text)
    find_answer(text + "\nAnswer: 5")
    assert time.process_time() - start < 5.0  # At most 2 s; a quadratic pass would take hours.


CASES = [
    ("no answer here 42", None), ("", None), (r"\boxed{", None), (r"\boxed{}", None), ("Answer:", None),
    (r"\boxed{1} and \boxed{2}", "1, 2"), (r"\boxed{1} and \boxed{2", "1"), (r"\boxed{1}, so we get \boxed{2}", "2"),
    ("Answer: 1\nAnswer: 2\n", "2"),
    ("Answer: 1\nso \\boxed{2}", "2"), ("\\boxed{2}\nAnswer: 1", "1"), ("Answer: $\\boxed{7}$", "7"),
    ("Answer: 3\nand then\nAnswer:", "3"), ("**Final answer:** 9", "9"), ("ANSWER：8", "8"),
    ("Answer:\n\n 4\nend", "4"),
    (r"\boxed{\{1,2\}}", r"\{1,2\}"), (r"\boxed{\left\{1\right.}", r"\left\{1\right."), (r"} } \boxed{5} {", "5"),
    (r"\boxed {6}", "6"), (r"\boxed{a\boxed{b}c}", "b"), ("the answers: 3", None), (r"\boxed{Answer: 1}", "Answer: 1"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), CASES)
def test_the_last_answer_counts(text: str, answer: str | None) -> None:
    assert find_answer(text) == answer


balanced = st.recursive(
    st.text(st.characters(exclude_characters="\\{}", exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3).map(lambda parts: "".join(f"{{{part}}}" for part in parts)),
    max_leaves=8,
)


@given(before=st.text(max_size=60), content=balanced.filter(str.strip), after=st.text("abc.$ \n", max_size=20))
def test_a_balanced_box_is_found_behind_any_text(before: str, content: str, after: str) -> None:
    assert find_answer(f"{before} \\boxed{{{content}}}{after}") == content.strip()


def slow_box(text: str) -> str | None:
    """The box that opens last and closes, each searched forward on its own, escapes skipped one by one."""
    for match in reversed(list(re.finditer(r"\\boxed\{", text))):
        depth, at = 1, match.end()
        while at < len(text) and depth:
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        if not depth and (content := text[match.end() : at - 1].strip()):
            return content
    return None


@settings(max_examples=500)
@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "\\\\ ", "x", " ", "\n", "\\frac"])).map("".join))
def test_one_pass_agrees_with_a_search_from_each_box(text: str) -> None:
    boxes = _boxes(text)
    assert (text[boxes[-1][1] : boxes[-1][2]].strip() if boxes else None) == slow_box(text)


@given(st.text("\\boxed{}Answer:$ \n1,.", max_size=200) | st.text(max_size=200))
def test_extraction_and_numbers_never_raise(text: str) -> None:
    answer = find_answer(text)
    assert answer is None or answer
    read(answer or text)


def test_equal_numbers_vote_together() -> None:
    for same in (
        ("73", "073", "73.0", "$73$", "73.", "n = 73", r"\text{73}", "+73"),
        ("1024", "1,024", r"1{,}024"),
        ("1/2", r"\frac{1}{2}", r"\dfrac12", "0.5", "2/4"),
        ("-1/2", r"-\frac{1}{2}", "-0.5"),
        (r"(1,\ 2)", "(1,2)", r"\left(1, 2\right)"),
    ):
        assert len({vote_key(a) for a in same}) == 1, same
    assert len({vote_key(a) for a in ("73", "37", "7/3", "-73", "x", "1/0", r"\frac{73}{0}")}) == 7
