"""True and false answers in layouts drawn by hypothesis: no verdict is wrong, and equal answers vote together."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from tests.support.layouts import layouts, other_answers
from tests.support.shared import shared
from tppo.grading.answers import find_answer, vote_key
from tppo.grading.reading import MAX_ANSWER, Reading, read
from tppo.grading.verdict import judge

integers = st.integers(-(10**7), 10**7).map(str)
decimals = st.tuples(st.integers(-9999, 9999), st.integers(1, 99)).map(lambda n: f"{n[0]}.{n[1]:02d}")
fractions = st.tuples(st.sampled_from(["", "-"]), st.integers(1, 99), st.integers(2, 99)).map(
    lambda n: rf"{n[0]}\frac{{{n[1]}}}{{{n[2]}}}"
)
roots = st.tuples(st.integers(2, 50), st.sampled_from([2, 3, 5, 7, 51, 113])).map(lambda n: rf"{n[0]}\sqrt{{{n[1]}}}")
multiples = st.integers(2, 999).map(lambda n: rf"{n}\pi")
polynomials = st.tuples(st.integers(2, 9), st.integers(2, 9), st.integers(2, 99)).map(
    lambda n: f"{n[0]}x^{n[1]}+{n[2]}x-1"
)
pairs = st.tuples(st.integers(-50, 50), st.integers(51, 99)).map(lambda n: f"({n[0]}, {n[1]})")
intervals = st.tuples(st.integers(-50, 50), st.integers(51, 99)).map(lambda n: rf"\left({n[0]}, {n[1]}\right]")
lists = st.tuples(st.integers(-50, 50), st.integers(51, 99)).map(lambda n: f"{n[0]}, {n[1]}")
based = st.tuples(st.integers(10, 999), st.integers(2, 9)).map(lambda n: f"{n[0]}_{n[1]}")
words = st.sampled_from([r"\text{Marta}", r"\text{north}", r"\text{odd}", r"\text{(B)}", r"\text{parabola}"])
truths = st.one_of(integers, decimals, fractions, roots, multiples, polynomials, pairs, intervals, lists, based, words)


def never(truth: Reading, answer: Reading) -> bool:
    raise AssertionError(f"math-verify was asked about {truth.text!r} and {answer.text!r}")


@seed(1)
@settings(max_examples=1000, deadline=None, database=None)
@given(truth=truths, data=st.data())
def test_a_true_answer_is_right_in_any_layout(truth: str, data: st.DataObject) -> None:
    response = data.draw(st.sampled_from(sorted(layouts(truth).values())))
    assert judge(truth, response, never) == (1.0, "")


@seed(2)
@settings(max_examples=1000, deadline=None, database=None)
@given(truth=truths, data=st.data())
def test_a_false_answer_is_wrong_in_any_layout(truth: str, data: st.DataObject) -> None:
    other = data.draw(st.sampled_from(sorted(other_answers(truth).values())))
    response = data.draw(st.sampled_from(sorted(layouts(other).values())))
    assert judge(truth, response, never)[0] == 0.0


@seed(3)
@settings(max_examples=1000, deadline=None, database=None)
@given(truth=truths, data=st.data())
def test_answers_equal_to_one_truth_have_one_vote(truth: str, data: st.DataObject) -> None:
    responses = sorted(
        {*layouts(truth).values(), *(t for o in other_answers(truth).values() for t in layouts(o).values())}
    )
    drawn = data.draw(st.lists(st.sampled_from(responses), min_size=2, max_size=6))
    right = [response for response in drawn if judge(truth, response, never)[0]]
    assert len({vote_key(find_answer(response) or "") for response in right}) <= 1


@settings(max_examples=500, deadline=None)
@given(a=st.fractions(max_denominator=999), b=st.fractions(max_denominator=999))
def test_sums_products_and_quotients_are_those_of_fractions(a: Fraction, b: Fraction) -> None:
    def written(x: Fraction) -> str:
        return rf"\left(\frac{{{x.numerator}}}{{{x.denominator}}}\right)"

    for sign, value in (("+", a + b), ("-", a - b), (r"\cdot", a * b), ("/", a / b if b else None)):
        if value is not None:
            assert read(f"{written(a)} {sign} {written(b)}").key == str(value)


@settings(max_examples=500, deadline=None)
@given(st.text("0123456789.,+-*/^_=()[]{}\\ $xyfrac|<>!%or", max_size=60) | st.text(max_size=200))
def test_reading_never_raises_and_agrees_with_itself(text: str) -> None:
    reading = read(text)
    assert reading.key == vote_key(text)
    assert judge(text, f"Answer: {text}", lambda t, a: False)[0] in (0.0, 1.0)


def test_published_truths_are_read_exactly() -> None:
    """All but one of MATH-500, so that most verdicts need no other library."""
    rows = json.loads(shared("data", "math500.json").read_text())
    assert [row["final_answer"] for row in rows if not read(row["final_answer"]).exact] == [r"\cot x"]


HOSTILE = (
    "(x+y+z)^{12}",
    "(a+b+c+d)^{9},",
    r"\pm (x+y)^{9}",
    r"\sqrt{99999989}\pm ",
    "1400!+",
    r"*a **b** ",
    r"1/(1+\sqrt2+i)+",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_reading_costs_little_whatever_the_text(text: str) -> None:
    """Votes are counted in the process of the evaluation, where nothing ends a reading that takes too long."""
    start = time.process_time()
    read(text * (MAX_ANSWER // len(text)))
    assert time.process_time() - start < 2.0  # At most 0.5 s.
