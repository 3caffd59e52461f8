"""Successive batching on plain lists, and the library's slots against it."""

from itertools import islice, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import Window, fill, successive_batches
from tppo.algorithms.parts.select import every_window
from tppo.loop.slots import Slots
from tppo.types import Continuation, Prompt

few = settings(derandomize=True, deadline=None, max_examples=60)
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 6), st.integers(1, 12))


def lengths(seed: int):
    """Response lengths 1..20 that depend on the sample alone."""
    return lambda sample: 1 + (7919 * (sample[0] + 31 * sample[1] + seed) % 104729) % 20


def test_two_slots_worked_by_hand() -> None:
    # W = 2, cap 5, groups of 2. a needs 3 tokens, b 2, c 9 (cut off at 5), d 1.
    need = {(0, 0): 3, (0, 1): 2, (1, 0): 9, (1, 1): 1}
    steps = list(successive_batches([0, 1], length_of=need.get, slots=2, group_size=2, window=2, max_length=5))
    assert steps == [
        [Window((0, 0), 0, 2, "unfinished"), Window((0, 1), 0, 2, "eos")],
        [Window((0, 0), 2, 3, "eos"), Window((1, 0), 0, 2, "unfinished")],  # group 1 is split
        [Window((1, 0), 2, 4, "unfinished"), Window((1, 1), 0, 1, "eos")],  # its remainder comes first
        [Window((1, 0), 4, 5, "length")],  # a last window shorter than W
    ]


def test_remainder_of_a_split_group_is_first() -> None:
    batch, queue = fill([], [(3, 2)], iter([4, 5]), slots=4, group_size=2)
    assert batch == [(3, 2), (4, 0), (4, 1), (5, 0)]
    assert queue == [(5, 1)]
    # Full of carried samples: nothing enters, the queue waits.
    assert fill([(0, 0), (0, 1)], queue, iter([6]), slots=2, group_size=2) == ([(0, 0), (0, 1)], [(5, 1)])


@few
@given(SHAPES, st.integers(0, 9))
def test_promises(shape, seed) -> None:
    slots, group_size, window, cap = shape
    need, groups = lengths(seed), 6
    steps = list(
        successive_batches(
            range(groups), length_of=need, slots=slots, group_size=group_size, window=window, max_length=cap
        )
    )
    seen: dict[tuple[int, int], list[Window]] = {}
    entered: list[tuple[int, int]] = []
    waiting = groups * group_size
    for step in steps:
        for w in step:
            if w.sample not in seen:
                entered.append(w.sample)
                waiting -= 1
            seen.setdefault(w.sample, []).append(w)
        # Slots are full as long as anything is left to enter.
        assert len(step) == slots or waiting == 0
        assert len({w.sample for w in step}) == len(step) <= slots
    # All enter, in order, so groups are split only by the edge of a step.
    assert entered == [(g, m) for g in range(groups) for m in range(group_size)]
    for sample, windows in seen.items():
        # Every token belongs to exactly one window, and windows follow each other.
        assert [w.start for w in windows] == [0, *(w.end for w in windows[:-1])]
        assert [w.status for w in windows[:-1]] == ["unfinished"] * (len(windows) - 1)
        assert all(w.end - w.start == window for w in windows[:-1])
        assert windows[-1].end == min(need(sample), cap)
        assert windows[-1].status == ("eos" if need(sample) <= cap else "length")
    # Consecutive steps: an unfinished response never pauses.
    for now, following in pairwise(steps):
        carried = [w.sample for w in now if w.status == "unfinished"]
        assert [w.sample for w in following[: len(carried)]] == carried


@few
@given(SHAPES, st.integers(0, 9))
def test_window_at_the_cap_finishes_everything_at_once(shape, seed) -> None:
    slots, group_size, _, cap = shape
    for step in successive_batches(
        range(5), length_of=lengths(seed), slots=slots, group_size=group_size, window=cap, max_length=cap
    ):
        assert {w.status for w in step} <= {"eos", "length"}


@few
@given(SHAPES, st.integers(0, 9))
def test_slot_window_keeps_the_same_books(shape, seed) -> None:
    slots, group_size, window, cap = shape
    need = lengths(seed)
    library = Slots(
        lambda i: Prompt(str(i), (0,)), slots=slots, group_size=group_size, window=window, max_response_tokens=cap,
        select=every_window,
    )  # fmt: skip
    endless = iter(range(10**9))
    for step in islice(
        successive_batches(endless, length_of=need, slots=slots, group_size=group_size, window=window, max_length=cap),
        12,
    ):
        admitted = library.admit()
        before = [len(r.tokens) for r in admitted]
        answers = []
        for r, request in zip(admitted, library.requests(), strict=True):
            left = need((r.group, r.uid % group_size)) - len(r.tokens)
            count = min(left, request.max_new_tokens)
            answers.append(Continuation(r.uid, (1,) * count, (-1.0,) * count, stopped=count == left))
        library.extend(answers, version=0)
        found = [
            Window((r.group, r.uid % group_size), start, len(r.tokens), r.status.value)
            for r, start in zip(admitted, before, strict=True)
        ]
        assert found == step
        library.settle(0)
        assert library.take() == admitted


def test_empty_stream_ends() -> None:
    assert list(successive_batches([], length_of=len, slots=2, group_size=2, window=4, max_length=8)) == []
    with pytest.raises(StopIteration):
        next(successive_batches([], length_of=len, slots=2, group_size=2, window=4, max_length=8))
