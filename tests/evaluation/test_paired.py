"""The paired comparison by hand, by enumeration, and under the null hypothesis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tppo.errors import DataError
from tppo.evaluation.paired import compare
from tppo.evaluation.scores import student_quantile


def runs_of(*rows: str) -> dict[str, list[bool]]:
    return {f"p{i}": [c == "1" for c in row] for i, row in enumerate(rows)}


def test_by_hand() -> None:
    """Differences 1/2, 1, 0, -1/2: mean 1/4, s^2 = (1/16 + 9/16 + 1/16 + 9/16) / 3 = 5/12."""
    a, b = runs_of("11", "11", "00", "00"), runs_of("10", "00", "00", "01")
    found = compare(a, b)
    assert found.difference == 0.25
    assert found.differences == (0.5, 1.0, 0.0, -0.5)
    assert found.se_total == pytest.approx(math.sqrt(5 / 48))
    assert found.se_sampling == pytest.approx(math.sqrt((0.25 + 0.25) / 16))  # two problems of B are undecided
    # Two more problems: sum 1 over 6, squares 3/2 + 2 (1/4 / 2 + 1/4 / 2) over 6.
    half = student_quantile(3) * math.sqrt((2 / 6 - 1 / 36) / 6)
    assert found.interval_total == pytest.approx((max(-1.0, 1 / 6 - half), 1 / 6 + half))
    # Sums of +-1/2 +-1 +-1/2: 2, 1, 1, 0, 0, -1, -1, -2; six of eight are as far from zero as 1.
    assert (found.p_value, found.patterns, found.exact) == (0.75, 8, True)


def test_single_samples_give_the_interval_of_agresti_and_min() -> None:
    """Half a pair of each kind: of 12 pairs, 3 only A and 1 only B."""
    a = runs_of(*"111", *"0", *"1111", *"0000")
    b = runs_of(*"000", *"1", *"1111", *"0000")
    centre = (3.5 - 1.5) / 14
    half = student_quantile(11) * math.sqrt(((3.5 + 1.5) / 14 - centre**2) / 14)
    assert compare(a, b).interval_total == pytest.approx((centre - half, centre + half))


def test_swapping_the_runs_turns_the_sign() -> None:
    a, b = runs_of("110", "111", "010"), runs_of("100", "001", "000")
    one, two = compare(a, b), compare(b, a)
    assert one.difference == -two.difference
    assert one.p_value == two.p_value
    assert one.interval_total == pytest.approx((-two.interval_total[1], -two.interval_total[0]))


def test_a_run_against_itself_is_not_known_to_be_equal() -> None:
    a = runs_of(*["00"] * 30)
    found = compare(a, a)
    assert found.difference == 0
    assert found.p_value == 1
    assert found.se_total == 0
    for low, high in (found.interval_total, found.interval_sampling):
        assert low < -0.01
        assert high > 0.01


def test_random_patterns_agree_with_all_of_them() -> None:
    """14 differing problems: 20,000 of 16,384 patterns. Four standard errors of the share; false alarm 6e-5."""
    rng = np.random.default_rng(1)
    a = {f"p{i}": list(rng.random(4) < 0.7) for i in range(14)}
    b = {f"p{i}": [False] * 3 + [i % 3 == 0] for i in range(14)}
    a = {p: ([True] * 4 if sum(row) == sum(b[p]) else row) for p, row in a.items()}
    found = compare(a, b, seed=3)
    d = np.array(found.differences)
    assert (d != 0).all()
    assert not found.exact
    signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
    exact = float((abs(signs @ d) >= abs(d.sum()) - 1e-9).mean())
    assert abs(found.p_value - exact) < 4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4
    assert compare(a, b, seed=3) == found


def test_p_values_are_honest_when_nothing_differs() -> None:
    """Both runs draw from the same rates: p <= 0.05 in at most 5% of runs; above 8.5% of 400 has probability 0.001."""
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(400):
        rates = rng.beta(0.5, 0.5, (20, 1))
        a, b = ({f"p{i}": list(row) for i, row in enumerate(rng.random((20, 4)) < rates)} for _ in range(2))
        small += compare(a, b, patterns=999).p_value <= 0.05
    assert small <= 34


def test_other_problems_are_refused() -> None:
    a, b = runs_of("10", "11"), runs_of("10", "11", "00")
    with pytest.raises(DataError, match=r"0 only in run A.*1 only in run B: p2"):
        compare(a, b)
    with pytest.raises(DataError, match="different problems"):
        compare({}, {})
    with pytest.raises(DataError, match=r"run B has \[1, 2\] samples"):
        compare(a, {"p0": [True], "p1": [True, False]})


def test_one_problem_and_one_sample() -> None:
    one = compare(runs_of("110"), runs_of("100"))
    assert math.isnan(one.se_total)
    assert one.se_sampling > 0
    assert math.isnan(compare(runs_of("1", "0"), runs_of("0", "0")).se_sampling)
