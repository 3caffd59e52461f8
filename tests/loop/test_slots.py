"""Successive batching: slots, groups, statuses, and what a broken engine is told."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tppo.errors import DataError, EngineError
from tppo.loop.slots import SlotWindow
from tppo.types import Continuation, Prompt, Status


def prompts(i: int) -> Prompt:
    return Prompt(id=str(i), tokens=(1, 2))


def make(slots: int = 4, group_size: int = 2, window: int = 3, cap: int = 8) -> SlotWindow:
    return SlotWindow(prompts, slots=slots, group_size=group_size, window=window, max_response_tokens=cap)


def answer(window: SlotWindow, stops: dict[int, int]) -> list[Continuation]:
    """Full budgets, except that response ``uid`` stops itself after ``stops[uid]`` tokens."""
    out = []
    for r in window.requests():
        n = min(stops.get(r.uid, r.max_new_tokens), r.max_new_tokens)
        out.append(
            Continuation(r.uid, (5,) * n, (-0.5,) * n, stopped=r.uid in stops and stops[r.uid] <= r.max_new_tokens)
        )
    return out


def test_statuses_of_every_way_to_stand() -> None:
    w = make(cap=6)
    w.admit()
    w.extend(answer(w, {0: 2, 1: 3, 2: 0}), version=0)
    # 0 stops inside the window, 1 in its last slot (finished, not cut), 2 without a token, 3 is cut by the window.
    assert [r.status for r in w.in_flight] == [Status.EOS, Status.EOS, Status.EMPTY, Status.UNFINISHED]
    assert [r.uid for r in w.retire()] == [0, 1, 2]
    w.admit()
    w.extend(answer(w, {}), version=1)
    # 3 reaches the cap of 6 at the end of its second window.
    assert w.in_flight[0].status is Status.LENGTH
    assert w.in_flight[0].window_starts == [0, 3]
    assert list(w.in_flight[0].versions) == [0, 0, 0, 1, 1, 1]


def test_stop_exactly_at_the_cap_is_eos() -> None:
    w = make(slots=2, window=4, cap=4)
    w.admit()
    w.extend(answer(w, {0: 4}), version=0)
    assert [r.status for r in w.in_flight] == [Status.EOS, Status.LENGTH]


def test_last_window_may_be_short() -> None:
    w = make(window=3, cap=8)
    for k, budget in enumerate([3, 3, 2]):
        w.admit()
        assert {r.max_new_tokens for r in w.requests()} == {budget}
        w.extend(answer(w, {}), version=k)
    assert all(r.status is Status.LENGTH and len(r.tokens) == 8 for r in w.in_flight)


def test_a_split_group_is_first_in_the_queue() -> None:
    w = make(slots=4, group_size=4)
    w.admit()
    w.extend(answer(w, {0: 1}), version=0)
    w.retire()
    assert [(r.uid, r.group) for r in w.admit()] == [(1, 0), (2, 0), (3, 0), (4, 1)]
    w.extend(answer(w, {1: 1, 2: 1}), version=1)
    w.retire()
    assert [(r.uid, r.group) for r in w.admit()] == [(3, 0), (4, 1), (5, 1), (6, 1)]
    assert w.cursor == 2  # no third prompt was drawn while group 1 had members waiting


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 12),
    st.lists(st.integers(1, 20), min_size=64),
)
def test_slots_are_constant_and_nothing_is_lost(
    group: int, groups: int, window: int, extra: int, ends: list[int]
) -> None:
    w = make(slots=group * groups, group_size=group, window=window, cap=window + extra)
    seen: dict[int, int] = {}
    for step in range(6):
        batch = w.admit()
        assert len(batch) == group * groups
        before = {r.uid: len(r.tokens) for r in batch}
        stops = {
            r.uid: ends[r.uid % 64] - len(r.tokens) for r in batch if 0 < ends[r.uid % 64] - len(r.tokens) <= window
        }
        w.extend(answer(w, stops), version=step)
        for r in batch:
            assert r.start == before[r.uid]
            seen[r.uid] = seen.get(r.uid, 0) + len(r.tokens) - before[r.uid]
            assert seen[r.uid] == len(r.tokens)  # every generated token belongs to exactly one window
            assert len(r.tokens) == min(ends[r.uid % 64], window + extra) or not r.status.finished
        open_before = {r.uid for r in batch if not r.status.finished}
        w.retire()
        assert {r.uid for r in w.in_flight} == open_before
    assert sorted(seen) == list(range(len(seen)))  # opened in order, none skipped


def test_an_empty_prompt_is_refused() -> None:
    w = SlotWindow(lambda i: Prompt(id="nothing", tokens=()), slots=1, group_size=1, window=2, max_response_tokens=2)
    with pytest.raises(DataError, match="prompt 'nothing' is empty"):
        w.admit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c[::-1], "another order"),
        (lambda c: c[:-1], "other responses"),
        (lambda c: [Continuation(c[0].uid, (5,) * 9, (0.0,) * 9, False), *c[1:]], "9 tokens of 3"),
        (lambda c: [Continuation(c[0].uid, (5,), (0.0,), False), *c[1:]], "expected the full budget or a stop"),
    ],
)
def test_a_broken_engine_is_told(change, message) -> None:  # type: ignore[no-untyped-def]
    w = make()
    w.admit()
    with pytest.raises(EngineError, match=message):
        w.extend(change(answer(w, {})), version=0)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(0, 12),
    st.lists(st.integers(1, 20), min_size=64, max_size=64),
)
def test_schedule_equals_the_reference(group: int, groups: int, window: int, extra: int, ends: list[int]) -> None:
    """Step by step, slot by slot: which tokens of which sample, and its status afterwards."""
    cap, slots = window + extra, group * groups
    w = make(slots=slots, group_size=group, window=window, cap=cap)
    length_of = lambda sample: ends[(sample[0] * group + sample[1]) % 64]  # noqa: E731
    steps = reference.successive_batches(
        itertools.count(), length_of=length_of, slots=slots, group_size=group, window=window, max_length=cap
    )
    for step, expected in zip(range(8), steps, strict=False):
        batch = w.admit()
        stops = {r.uid: length_of((r.group, r.uid % group)) - len(r.tokens) for r in batch}
        w.extend(answer(w, {uid: n for uid, n in stops.items() if n <= window}), version=step)
        got = [((r.group, r.uid % group), r.start, len(r.tokens), r.status.value) for r in batch]
        assert got == [(e.sample, e.start, e.end, e.status) for e in expected]
        w.retire()
