"""Families of problems: right answers and imperfect demonstrations."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.language import FAMILIES, MAX_STEPS, MIN_STEPS, Language, Problem, demonstrate, grade
from sim.language.families import MODULUS, RING, draw

seeds = st.integers(0, 2**32 - 1)
families = st.sampled_from(list(FAMILIES))
step_counts = st.integers(MIN_STEPS, MAX_STEPS)


@given(families, step_counts, seeds)
def test_a_demonstration_without_errors_is_right(family: str, steps: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    problem = draw(family, steps, rng)
    assert grade(problem.answer, demonstrate(problem, rng, error_rate=0.0)) == 1.0
    assert (problem.family, problem.steps) == (family, steps)


@given(families, step_counts, seeds)
def test_answers_agree_with_arithmetic_written_another_way(family: str, steps: int, seed: int) -> None:
    problem = draw(family, steps, np.random.default_rng(seed))
    shown, question = problem.prompt[1:].split("?")
    numbers = sorted(ord(letter) - ord("a") + 1 for letter in shown if letter <= question[0])
    assert len(numbers) == steps
    if family == "sum":
        expected = str((int(question[2]) + sum(numbers)) % MODULUS)
    elif family == "rank":
        expected = str(len(numbers) % MODULUS)
    else:
        places = (int(question[2]) + np.cumsum([1 if number % 2 else -1 for number in numbers])) % RING
        expected = f"{places[-1]}{np.count_nonzero(places == 0) % MODULUS}"
    assert problem.answer == expected


@pytest.mark.parametrize(
    ("family", "prompt", "solution"),
    [
        # 5 + 2 = 7; 7 + 4 = 11; k is the 11th letter: 1 + 1 = 2.
        ("sum", "Skdbm?k=5", "b2=7d4=1k1=2#2"),
        # b and d are even: 0 -> 4 -> 3; k is odd: 3 -> 4; place 0 is never visited after the start.
        ("walk", "Wkdbm?k=0:0", "b<4:0d<3:0k>4:0#40"),
        # From 4, a and c step forward to 0 (one visit) and 1.
        ("walk", "Wca?c=4:0", "a>0:1c>1:1#11"),
        ("rank", "Rkdbm?k=0", "b=1d=2k=3#3"),
    ],
)
def test_worked_solutions(family: str, prompt: str, solution: str) -> None:
    problem = Problem(family=family, prompt=prompt, answer=solution.partition("#")[2], steps=solution.count("="))
    assert demonstrate(problem, np.random.default_rng(0)) == solution


@given(st.sampled_from(["sum", "walk"]), step_counts, seeds, st.floats(0.0, 1.0))
def test_errors_are_carried_on_consistently(family: str, steps: int, seed: int, error_rate: float) -> None:
    rng = np.random.default_rng(seed)
    problem = draw(family, steps, rng)
    text = demonstrate(problem, rng, error_rate)
    working, _, answer = text.partition("#")
    # The answer is the last state as written, and the response is as long as the right one.
    assert answer == (working[-1] if family == "sum" else working[-3] + working[-1])
    assert len(text) == len(demonstrate(problem, rng, 0.0))
    if family == "walk":
        places, visits = working[2::5], working[4::5]
        assert [int(v) for v in visits] == [places[: i + 1].count("0") % MODULUS for i in range(len(places))]


def chance_right_sum(steps: int, error_rate: float) -> float:
    """Errors shift the sum by a uniform non-zero digit; a sum of shifts is zero by a two-state Markov chain."""
    return 1 / MODULUS + (1 - 1 / MODULUS) * (1 - error_rate * MODULUS / (MODULUS - 1)) ** steps


def chance_right_rank(steps: int, error_rate: float) -> float:
    """No step but the last may err, and no skip can be undone (ten skips could, and are too rare to matter)."""
    return (1 - error_rate) ** (steps - 1)


@pytest.mark.parametrize("error_rate", [0.1, 0.2, 0.35])
@pytest.mark.parametrize("steps", [2, 4, 12])
@pytest.mark.parametrize(("family", "chance"), [("sum", chance_right_sum), ("rank", chance_right_rank)])
def test_error_rate_sets_the_share_of_right_answers(
    family: str, chance: Callable[[int, float], float], steps: int, error_rate: float
) -> None:
    """Binomial test at 5 standard deviations: false alarm below 1e-6 for each case, 2e-5 for all."""
    draws, rng = 3000, np.random.default_rng(steps)
    problem = draw(family, steps, rng)
    right = sum(grade(problem.answer, demonstrate(problem, rng, error_rate)) for _ in range(draws))
    p = chance(steps, error_rate)
    assert abs(right - draws * p) < 5 * np.sqrt(draws * p * (1 - p)) + 0.5


def test_error_rate_sets_the_share_of_right_walks() -> None:
    """Exact chance by summing over the places a walk of three can take; false alarm below 1e-6."""
    error_rate, draws, rng = 0.2, 6000, np.random.default_rng(0)
    problem = Problem(family="walk", prompt="Wbdf?f=3:0", answer="01", steps=3)  # right: 3 -> 2 -> 1 -> 0
    chance = {(3, 0): 1.0}
    for _ in range(3):
        after: dict[tuple[int, int], float] = {}
        for (place, visits), p in chance.items():
            for new in range(RING):
                q = p * (1 - error_rate if new == (place - 1) % RING else error_rate / (RING - 1))
                key = (new, visits + (new == 0))
                after[key] = after.get(key, 0.0) + q
        chance = after
    p = chance[0, 1]
    right = sum(grade(problem.answer, demonstrate(problem, rng, error_rate)) for _ in range(draws))
    assert abs(right - draws * p) < 5 * np.sqrt(draws * p * (1 - p)) + 0.5


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan")])
def test_an_error_rate_that_is_no_probability_is_refused(bad: float) -> None:
    problem = Language().problem("train", 0)
    with pytest.raises(ValueError, match=r"error_rate is .* \[0, 1\]"):
        demonstrate(problem, np.random.default_rng(0), bad)
