"""Fits find the prices that made the times."""

from __future__ import annotations

import numpy as np
import pytest

from sim.clock.fitted import FEATURES, FittedCost, fit_cost, non_negative_least_squares
from sim.clock.hardware import ModelProfile
from sim.clock.serving import DecodeTrace, serve


def test_fit_finds_the_prices_that_made_the_times() -> None:
    rng = np.random.default_rng(0)
    true = FittedCost(2e-3, 1e-3, 2e-5, 4e-5, 1e-7, 3e-5, 0.0, few_rows=16)
    runs: list[list[tuple[np.ndarray, DecodeTrace]]] = []
    for _ in range(30):
        rows = int(rng.integers(1, 40))
        work = [(rng.integers(1, 200, size=rows), rng.integers(1, 100, size=rows)) for _ in range(2)]
        runs.append([(context, serve(context, new)[0]) for context, new in work])
    seconds = np.array([true.seconds(work) for work in runs])
    fit = fit_cost(runs, seconds, padded=False)
    assert fit.few_rows == 16
    np.testing.assert_allclose(fit.prices, true.prices, rtol=1e-6, atol=1e-12)
    for few in (runs[:3], runs[:7]):
        with pytest.raises(ValueError, match="more than 7"):
            fit_cost(few, seconds[: len(few)], padded=False)
    assert len(FEATURES) == len(fit.prices)


def test_non_negative_least_squares_against_scipy() -> None:
    nnls = pytest.importorskip("scipy.optimize").nnls
    rng = np.random.default_rng(1)
    for _ in range(40):
        a, b = rng.normal(size=(9, 5)), rng.normal(size=9)
        np.testing.assert_allclose(non_negative_least_squares(a, b), nnls(a, b)[0], atol=1e-9)


def test_the_data_sheet_of_a_measured_engine() -> None:
    """Rates from prices, by hand: keys and values of a token are 2 x 3 layers x 4 heads x 8 x 4 bytes = 768 bytes."""
    model = ModelProfile("x", 3, 32, 4, 4, 64, 100, tied=True, bytes_per_weight=4)
    prices = FittedCost(0.0, 1e-3, 2e-5, 0.0, 1e-9, 1e-6, 0.0)
    found = prices.hardware(model, memory=1e9)
    assert model.kv_bytes_per_token == 768
    assert found.bandwidth == pytest.approx(768e9)
    # 3 layers x (4 x 32 x 32 + 3 x 32 x 64) = 30,720 weights, two operations each
    assert found.peak_flops == pytest.approx(61_440e6)
    with pytest.raises(ValueError, match="longer contexts"):
        FittedCost(0.0, 1e-3, 2e-5, 0.0, 0.0, 1e-6, 0.0).hardware(model, memory=1e9)
