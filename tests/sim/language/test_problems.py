"""How hard problems are drawn: a long-tailed law within its bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.language import MAX_STEPS, MIN_STEPS, Difficulty

step_counts = st.integers(MIN_STEPS, MAX_STEPS)


@given(st.floats(0.1, 100), st.floats(0.1, 10), step_counts)
def test_quantiles_rise_within_bounds(scale: float, tail: float, maximum: int) -> None:
    difficulty = Difficulty(scale=scale, tail=tail, maximum=maximum)
    steps = [difficulty.at(q) for q in np.linspace(0.0, 1.0, 50)]
    assert steps == sorted(steps)
    assert steps[0] == MIN_STEPS
    assert steps[-1] == maximum


def test_difficulty_follows_its_law() -> None:
    """P(steps >= 4) by hand, scale 2, tail 1, maximum 9: the width is 8, the end (1 + 8/2)^-1 = 1/5, and
    ((1 + 2/2)^-1 - 1/5) / (1 - 1/5) = (1/2 - 1/5) / (4/5) = 3/8."""
    difficulty = Difficulty(scale=2.0, tail=1.0, maximum=9)
    assert difficulty.at(1 - 3 / 8 - 1e-9) == 3
    assert difficulty.at(1 - 3 / 8 + 1e-9) == 4


@pytest.mark.parametrize(
    ("field", "value"), [("scale", 0.0), ("scale", float("inf")), ("tail", -1.0), ("maximum", 1), ("maximum", 27)]
)
def test_a_bad_difficulty_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Difficulty\.{field} is"):
        Difficulty(**{field: value})  # type: ignore[arg-type]
