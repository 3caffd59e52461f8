"""Decode traces, rooflines and fits against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.clock.fitted import FEATURES, FittedCost, fit_cost, non_negative_least_squares
from sim.clock.hardware import ModelProfile
from sim.clock.roofline import sum_of_larger
from sim.clock.serving import DecodeTrace, Limits, padded_prefill, serve, tokens_by

REQUESTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), min_size=1, max_size=9)


def engine(requests: list[tuple[int, int]], limits: Limits) -> tuple[list[list[int]], list[int], list[list[int]]]:
    """A continuous-batching engine, one decode step at a time.

    Returns the keys read by each row of every step, when each request was done, and tokens after every step.
    """
    waiting, active = list(range(len(requests))), []
    have = [0] * len(requests)
    finish = [0] * len(requests)
    steps: list[list[int]] = []
    progress: list[list[int]] = []
    while waiting or active:
        while waiting:
            first = waiting[0]
            reserved = sum(sum(requests[a]) for a in [*active, first])
            if len(active) >= (limits.max_rows or 99) or reserved > (limits.kv_tokens or 10**9):
                break
            waiting.pop(0)
            have[first], finish[first] = 1, len(steps)
            if requests[first][1] > 1:
                active.append(first)
        progress.append(list(have))
        if active:
            steps.append([requests[a][0] + have[a] for a in active])
            for a in active:
                have[a] += 1
                finish[a] = len(steps)
            active = [a for a in active if have[a] < requests[a][1]]
    progress.append(list(have))
    return steps, finish, progress


@settings(max_examples=200, deadline=None)
@given(REQUESTS, st.sampled_from([None, 1, 2, 4]), st.sampled_from([None, 21, 30, 60]))
def test_trace_equals_an_engine_step_by_step(
    requests: list[tuple[int, int]], max_rows: int | None, kv_tokens: int | None
) -> None:
    context, new = (np.array(x) for x in zip(*requests, strict=True))
    limits = Limits(max_rows, kv_tokens)
    trace, finish = serve(context, new, limits)
    steps, finish_by_hand, progress = engine(requests, limits)
    assert trace.steps == len(steps)
    assert trace.row_steps == sum(len(s) for s in steps) == int((new - 1).sum())
    assert trace.keys_read == sum(sum(s) for s in steps)
    assert trace.padded_keys_read == sum(max(s) * len(s) for s in steps)
    assert finish.tolist() == finish_by_hand
    for step, have in enumerate(progress[:-1]):
        assert tokens_by(step, finish, new).tolist() == have
    assert tokens_by(trace.steps, finish, new).tolist() == new.tolist()


@settings(max_examples=100, deadline=None)
@given(REQUESTS, st.integers(1, 4))
def test_turns_are_one_batch_after_another(requests: list[tuple[int, int]], max_rows: int) -> None:
    context, new = (np.array(x) for x in zip(*requests, strict=True))
    trace, finish = serve(context, new, Limits(max_rows, refill=False))
    order = np.argsort(context, kind="stable")
    batches = [order[i : i + max_rows] for i in range(0, len(order), max_rows)]
    alone = [serve(context[b], new[b])[0] for b in batches]
    assert trace.steps == sum(t.steps for t in alone)
    assert trace.keys_read == sum(t.keys_read for t in alone)
    assert trace.padded_keys_read == sum(t.padded_keys_read for t in alone)
    assert finish.max() == max(trace.steps, 0) or new[order[-1]] == 1


@settings(max_examples=300, deadline=None)
@given(*[st.floats(-3, 3) for _ in range(4)], st.integers(0, 12))
def test_sum_of_the_larger_line(a0: float, a1: float, b0: float, b1: float, steps: int) -> None:
    whole = sum(max(a0 + a1 * k, b0 + b1 * k) for k in range(steps))
    found = sum_of_larger(*(np.array([x]) for x in (a0, a1, b0, b1)), np.array([steps]))
    assert found[0] == pytest.approx(whole, abs=1e-9)


def test_prefill_of_the_embedded_engine() -> None:
    """The rectangles that the engine itself makes."""
    torch = pytest.importorskip("torch")
    from tppo.engines.embedded import TorchEngine
    from tppo.types import GenerationRequest

    class Nothing(torch.nn.Module):
        vocab_size = 2

    rng = np.random.default_rng(0)
    for tokens in (1, 10, 64, 500):
        context = np.sort(rng.integers(1, 40, size=25))
        made = TorchEngine(Nothing(), prefill_tokens=tokens)  # type: ignore[arg-type]
        batches = made._prefill_batches([GenerationRequest(i, (1,) * int(c), 0, 1) for i, c in enumerate(context)])
        rectangles = [(len(b), int(context[b[-1]])) for b in batches]
        expected = (sum(n * t for n, t in rectangles), sum(n * t * t for n, t in rectangles))
        assert padded_prefill(context, tokens) == expected


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
