"""The grader reads the final answer only, and survives anything."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.language import grade


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        ("b=1d=2k=3#3", 1.0),
        ("#3", 1.0),  # the working is not read
        ("b=7d=7k=7#3", 1.0),
        ("#9#3", 1.0),  # the last mark counts
        ("#3#9", 0.0),
        ("#3#", 0.0),
        ("#33", 0.0),
        ("#03", 0.0),
        ("#3 ", 0.0),
        ("# 3", 0.0),
        ("#3=3", 0.0),
        ("b=1d=2k=3", 0.0),  # no mark, no answer
        ("3", 0.0),
        ("#", 0.0),
        ("", 0.0),
        ("#\u0663", 0.0),  # another script's three
        ("#3\x00", 0.0),
        ("\ud800#3", 1.0),  # a lone surrogate is no text anyone can encode, and does no harm
    ],
)
def test_worked_cases(response: str, reward: float) -> None:
    assert grade("3", response) == reward


@given(st.text(), st.text(alphabet=st.characters(exclude_characters="#"), min_size=1))
def test_any_text_gets_zero_or_one(response: str, answer: str) -> None:
    assert grade(answer, response) in (0.0, 1.0)
    assert grade(answer, f"{response}#{answer}") == 1.0
    assert grade(answer, f"{response}#{answer}#") == 0.0


def test_two_digit_answers_have_no_partial_credit() -> None:
    assert grade("40", "#40") == 1.0
    assert [grade("40", text) for text in ("#4", "#0", "#41", "#30", "#04")] == [0.0] * 5


@pytest.mark.parametrize("huge", ["#" * 10**7, "3" * 10**7, "#" + "3" * 10**7, "#3" * 10**7 + "x"])
def test_huge_responses_take_linear_time(huge: str) -> None:
    began = time.perf_counter()
    assert grade("3", huge) == 0.0
    assert time.perf_counter() - began < 2.0  # quadratic time would be days


@pytest.mark.parametrize("answer", ["", "#3", "3#"])
def test_an_impossible_answer_is_refused(answer: str) -> None:
    with pytest.raises(ValueError, match=r"answer is .* without '#'"):
        grade(answer, "#3")
