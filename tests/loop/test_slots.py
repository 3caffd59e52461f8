"""Successive batching: slots, groups, statuses, and what a broken engine is told."""

import itertools
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from tppo.algorithms.base import Select, Verdict
from tppo.algorithms.parts.select import every_window, mixed_group, whole_group
from tppo.errors import DataError, EngineError
from tppo.loop.slots import Slots
from tppo.types import Continuation, Prompt, Response, Status


def prompts(i: int) -> Prompt:
    return Prompt(id=str(i), tokens=(1, 2))


def make(slots: int = 4, group_size: int = 2, window: int = 3, cap: int = 8, select: Select = every_window) -> Slots:
    return Slots(prompts, slots=slots, group_size=group_size, window=window, max_response_tokens=cap, select=select)


def answer(window: Slots, stops: dict[int, int]) -> list[Continuation]:
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
    assert w.settle(0) == 2
    assert [r.uid for r in w.take()] == [0, 1, 2, 3]
    assert [r.uid for r in w.in_flight] == [3]
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
        assert w.extend(answer(w, {}), version=k) == 4 * budget
    assert all(r.status is Status.LENGTH and len(r.tokens) == 8 for r in w.in_flight)


def test_a_split_group_is_first_in_the_queue() -> None:
    w = make(slots=4, group_size=4)
    w.admit()
    w.extend(answer(w, {0: 1}), version=0)
    w.settle(0)
    assert [r.uid for r in w.take()] == [0, 1, 2, 3]
    assert [(r.uid, r.group) for r in w.admit()] == [(1, 0), (2, 0), (3, 0), (4, 1)]
    w.extend(answer(w, {1: 1, 2: 1}), version=1)
    w.settle(1)
    assert [r.uid for r in w.take()] == [1, 2, 3, 4]  # what waits in the queue has no token yet
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
        open_before = [r.uid for r in batch if not r.status.finished]
        w.settle(step)
        assert w.take() == batch  # all that was generated trains, oldest first
        assert [r.uid for r in w.in_flight] == open_before
        assert w.waiting == w.ready == []
    assert sorted(seen) == list(range(len(seen)))  # opened in order, none skipped


def test_an_empty_prompt_is_refused() -> None:
    w = make(slots=1, group_size=1)
    w.prompts = lambda i: Prompt(id="nothing", tokens=())
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
        w.settle(step)
        w.take()


def test_requests_are_made_one_at_a_time() -> None:
    """Of several engines each makes its own share only: contexts of all responses would be large."""
    w = make(slots=4, window=3, cap=4)
    w.admit()
    w.extend(answer(w, {}), version=0)
    asked = w.requests()
    assert len(asked) == 4
    assert [r.uid for r in asked[1:3]] == [1, 2]
    assert asked[-1] == list(asked)[-1]
    assert (asked[0].tokens, asked[0].position, asked[0].max_new_tokens) == ((1, 2, 5, 5, 5), 3, 1)


def step_of(w: Slots, ends: list[int], version: int, groups: int = 1, patience: int = 200) -> list[Response]:
    """A step as the trainer makes it: rounds until there are so many groups. Response uid ends after ends[uid] tokens,
    and is right where that number is odd.
    """
    for _ in range(patience):
        batch = w.admit()
        assert len(batch) == w.slots  # constant at every round
        assert not any(r.status.finished for r in batch)
        left = {r.uid: ends[r.uid % len(ends)] - len(r.tokens) for r in batch}
        w.extend(answer(w, {uid: n for uid, n in left.items() if n <= w.window}), version)
        for r in batch:
            if r.status.finished:
                r.reward = float(len(r.tokens) % 2)
        if w.settle(version) >= groups:
            return w.take()
    raise AssertionError("too few groups")


def held(w: Slots) -> list[Response]:
    """Everything that has been opened and has not left."""
    return [*w.in_flight, *w.waiting, *w.queue, *w.ready]


def never_long(group: Sequence[Response], version: int) -> Verdict:
    """Gives a group up while it is still being generated."""
    return "drop" if any(len(r.tokens) > 6 for r in group) else whole_group(group, version)


SHAPE = (st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.integers(0, 12))
ENDS = st.lists(st.integers(1, 20), min_size=67, max_size=67)


@pytest.mark.parametrize("select", [every_window, whole_group])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(*SHAPE, ENDS, st.integers(1, 6))
def test_each_response_trains_once_and_none_is_lost(
    select: Select, group: int, many: int, window: int, extra: int, ends: list[int], wanted: int
) -> None:
    cap = window + extra
    w = make(slots=group * many, group_size=group, window=window, cap=cap, select=select)
    trained: list[int] = []
    for version in range(6):
        taken = step_of(w, ends, version, wanted)
        uids = [r.uid for r in taken]
        assert uids == sorted(set(uids))  # oldest first, none twice
        sizes = Counter(r.group for r in taken)
        assert len(sizes) >= wanted
        done = [r for r in taken if r.status.finished]
        if select is whole_group:
            assert done == taken
            assert set(sizes.values()) == {group}  # whole
        else:
            assert {r.uid for r in taken if not r.status.finished} == {r.uid for r in w.in_flight}
            assert w.waiting == []
        trained += [r.uid for r in done]
        assert w.ready == []
        assert all(r.status.finished for r in w.waiting)
        assert not any(r.status.finished or r.window_starts for r in w.queue)
        waits = Counter(r.group for r in w.waiting)
        assert all(n < group for n in waits.values())  # of groups that are not complete
        assert sorted([*trained, *(r.uid for r in held(w))]) == list(range(w.next_uid))
    assert len(trained) == len(set(trained)) > 0


@pytest.mark.parametrize("select", [mixed_group, never_long])
@settings(max_examples=40, deadline=None, derandomize=True)
@given(*SHAPE, st.lists(st.integers(1, 4), min_size=67, max_size=67), st.integers(1, 4))
def test_dropped_groups_leave_whole_and_free_their_slots(
    select: Select, group: int, many: int, window: int, extra: int, ends: list[int], wanted: int
) -> None:
    cap, slots = window + extra + 1, (group + 1) * many
    ends = [n if i % 9 else 20 for i, n in enumerate(ends)]  # now and then a long one
    ends[:4] = [1, 2, 1, 2]  # some groups have a signal, whatever was drawn
    w = make(slots=slots, group_size=group + 1, window=window, cap=cap, select=select)
    trained: dict[int, list[Response]] = {}
    for version in range(4):
        for r in step_of(w, ends + [1, 2] * 3, version, wanted):
            trained.setdefault(r.group, []).append(r)
        here = {r.group for r in held(w)}
        dropped = set(range(w.cursor)) - here - trained.keys()
        assert not here & trained.keys()
        assert all(Counter(r.group for r in held(w))[g] == group + 1 for g in here)  # a group leaves whole
        assert w.next_uid == w.cursor * (group + 1)
        assert len(held(w)) + (group + 1) * (len(trained) + len(dropped)) == w.next_uid
    for members in trained.values():
        assert len(members) == group + 1
        if select is mixed_group:
            assert 0 < sum(r.reward or 0.0 for r in members) < group + 1
        else:
            assert max(len(r.tokens) for r in members) <= 6


def test_a_dropped_group_leaves_slots_waiting_room_and_queue_at_once() -> None:
    w = make(slots=5, group_size=3, window=3, cap=9, select=never_long)
    for version in range(2):
        w.admit()
        w.extend(answer(w, {0: 2}), version)
        assert w.settle(version) == 0
        assert [r.uid for r in w.waiting] == [0]  # ended, and waits for 1 and 2
    assert [r.uid for r in w.in_flight] == [1, 2, 3, 4, 5]
    w.admit()
    w.extend(answer(w, {}), 2)  # 1, 2, 3, 4 have nine tokens, 5 has six
    assert w.settle(2) == 0
    assert (w.in_flight, w.waiting, w.ready) == ([], [], [])
    assert [r.uid for r in w.admit()] == [6, 7, 8, 9, 10]
    assert [r.uid for r in w.queue] == [11]
    w.extend(answer(w, {}), 3)
    w.select = lambda group, version: "drop" if group[0].group == 3 else "wait"
    w.settle(3)
    assert w.queue == []  # 9, 10 and 11, of which the last has never been in a slot
    assert [r.uid for r in w.in_flight] == [6, 7, 8]


def test_whole_groups_are_judged_with_all_their_members() -> None:
    """Those that wait, those in flight and those in the queue, in order; with the policy's version."""
    seen: list[tuple[list[int], int]] = []

    def spy(group: Sequence[Response], version: int) -> Verdict:
        seen.append(([r.uid for r in group], version))
        return whole_group(group, version)

    w = make(slots=4, group_size=3, window=3, cap=9, select=spy)
    w.admit()
    w.extend(answer(w, {1: 1}), 7)
    w.settle(7)
    assert [r.uid for r in w.queue] == [4, 5]
    assert [r.uid for r in w.waiting] == [1]
    assert seen == [([0, 1, 2], 7), ([3, 4, 5], 7)]


def test_rounds_go_on_until_there_are_groups_enough() -> None:
    """What is ready waits for the rest, outside the slots, and trains together with it, oldest first."""
    w = make(slots=4, group_size=2, window=3, cap=9, select=whole_group)
    w.admit()
    w.extend(answer(w, {2: 1, 3: 2}), 0)  # the second group first
    assert w.settle(0) == 1
    assert [r.uid for r in w.ready] == [2, 3]
    assert [r.uid for r in w.admit()] == [0, 1, 4, 5]
    w.extend(answer(w, {0: 1}), 0)
    assert w.settle(0) == 1  # none is counted twice
    assert [r.uid for r in w.admit()] == [1, 4, 5, 6]
    w.extend(answer(w, {1: 3}), 0)
    assert w.settle(0) == 2
    assert [r.uid for r in w.take()] == [0, 1, 2, 3]
    assert w.take() == []
    assert [r.uid for r in w.queue] == [7]


@pytest.mark.parametrize(
    ("select", "verdicts"),
    [(every_window, "now now now now"), (whole_group, "wait now now now"), (mixed_group, "wait now drop drop")],
)
def test_verdicts(select: Select, verdicts: str) -> None:
    def group(*rewards: float | None) -> list[Response]:
        done = [Status.UNFINISHED if x is None else Status.EOS for x in rewards]
        ids = range(len(rewards))
        return [Response(uid=i, group=0, prompt=prompts(0), status=done[i], reward=rewards[i]) for i in ids]

    groups = [group(1.0, None), group(1.0, 0.0), group(1.0, 1.0), group(0.0, -1.0)]
    assert " ".join(select(g, 0) for g in groups) == verdicts
