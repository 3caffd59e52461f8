"""Decode traces and prefill against engines that do one step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.clock.serving import Limits, padded_prefill, serve, tokens_by

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


def test_prefill_of_the_embedded_engine() -> None:
    """The rectangles that the engine itself makes."""
    torch = pytest.importorskip("torch")
    from tppo.engines.embedded import EmbeddedEngine
    from tppo.types import GenerationRequest

    class Nothing(torch.nn.Module):
        vocab_size = 2

    rng = np.random.default_rng(0)
    for tokens in (1, 10, 64, 500):
        context = np.sort(rng.integers(1, 40, size=25))
        made = EmbeddedEngine(Nothing(), prefill_tokens=tokens)  # type: ignore[arg-type]
        batches = made._prefill_batches([GenerationRequest(i, (1,) * int(c), 0, 1) for i, c in enumerate(context)])
        rectangles = [(len(b), int(context[b[-1]])) for b in batches]
        expected = (sum(n * t for n, t in rectangles), sum(n * t * t for n, t in rectangles))
        assert padded_prefill(context, tokens) == expected


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: serve(np.array([5]), np.array([6]), Limits(kv_tokens=10)), "tensor parallelism"),
        (lambda: serve(np.array([5]), np.array([0])), "at least 1"),
    ],
)
def test_nonsense_is_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
