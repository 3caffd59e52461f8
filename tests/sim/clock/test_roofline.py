"""The closed form of a roofline against a sum over steps; whole prices are held against one in test_simulate.py."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim.clock.hardware import HARDWARE, MODELS, Cluster
from sim.clock.roofline import RooflineTraining, sum_of_larger


@settings(max_examples=300, deadline=None)
@example(1.0, 5e-324, 0.0, 0.0, 4)  # lines that cross beyond the largest number
@given(*[st.floats(-3, 3) for _ in range(4)], st.integers(0, 12))
def test_sum_of_the_larger_line(a0: float, a1: float, b0: float, b1: float, steps: int) -> None:
    whole = sum(max(a0 + a1 * k, b0 + b1 * k) for k in range(steps))
    found = sum_of_larger(*(np.array([x]) for x in (a0, a1, b0, b1)), np.array([steps]))
    assert found[0] == pytest.approx(whole, abs=1e-9)


def test_training_computes_what_it_is_paid_for() -> None:
    """Operations of a pass, from its time: the two directions of the same arithmetic."""
    training = RooflineTraining(Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H800"], gpus=16, tensor_parallel=2))
    sequence_S = np.array([100, 250])
    assert training.flops_in(training.forward_s(sequence_S, 300)) == pytest.approx(training.flops(sequence_S, 300))
