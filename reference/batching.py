"""Successive batching as bookkeeping: which responses are in flight at each step, and how far each has come.

A sample is a pair (group, member). The number of slots is constant. Unfinished samples keep theirs; new groups fill the
rest, whole where they fit, and the remainder of a group that did not fit is first in the queue for the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

Sample = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """Tokens start <= t < end of one sample in one step, and its status afterwards."""

    sample: Sample
    start: int
    end: int
    status: str  # "eos", "length" or "unfinished"


def status_after(end: int, length: int, max_length: int) -> str:
    """EOS when the last token is the response's own last one, LENGTH at the cap without it, else UNFINISHED.

    >>> status_after(4, 4, 8), status_after(8, 9, 8), status_after(4, 5, 8)
    ('eos', 'length', 'unfinished')
    """
    if end == length:
        return "eos"
    return "length" if end == max_length else "unfinished"


def fill(
    carried: list[Sample], queue: list[Sample], groups: Iterator[int], *, slots: int, group_size: int
) -> tuple[list[Sample], list[Sample]]:
    """Carried samples, then the queue, then fresh groups until every slot is taken. Returns (batch, queue left over).

    >>> fill([(0, 1)], [], iter([1, 2]), slots=4, group_size=2)
    ([(0, 1), (1, 0), (1, 1), (2, 0)], [(2, 1)])
    """
    batch, queue = list(carried), list(queue)
    while len(batch) < slots:
        if not queue:
            group = next(groups, None)
            if group is None:
                break
            queue = [(group, member) for member in range(group_size)]
        batch.append(queue.pop(0))
    return batch, queue


def advance(
    batch: list[Sample],
    progress: dict[Sample, int],
    *,
    length_of: Callable[[Sample], int],
    window: int,
    max_length: int,
) -> list[Window]:
    """One window for every sample: end = min(start + W, own length, cap).

    >>> advance([(0, 0)], {(0, 0): 4}, length_of=lambda sample: 9, window=4, max_length=100)
    [Window(sample=(0, 0), start=4, end=8, status='unfinished')]
    """
    windows = []
    for sample in batch:
        start, length = progress.get(sample, 0), length_of(sample)
        end = min(start + window, length, max_length)
        windows.append(Window(sample, start, end, status_after(end, length, max_length)))
    return windows


def successive_batches(
    groups: Iterable[int],
    *,
    length_of: Callable[[Sample], int],
    slots: int,
    group_size: int,
    window: int,
    max_length: int,
) -> Iterator[list[Window]]:
    """One list of windows a step, until groups and slots are empty.

    >>> steps = successive_batches([0, 1], length_of=lambda s: 3 if s == (0, 0) else 2, slots=2, group_size=2,
    ...                            window=2, max_length=8)
    >>> [[(w.sample, w.status) for w in step] for step in steps]  # doctest: +NORMALIZE_WHITESPACE
    [[((0, 0), 'unfinished'), ((0, 1), 'eos')],
     [((0, 0), 'eos'), ((1, 0), 'eos')],
     [((1, 1), 'eos')]]
    """
    source, carried, queue = iter(groups), list[Sample](), list[Sample]()
    progress: dict[Sample, int] = {}
    while True:
        batch, queue = fill(carried, queue, source, slots=slots, group_size=group_size)
        if not batch:
            return
        windows = advance(batch, progress, length_of=length_of, window=window, max_length=max_length)
        progress = {w.sample: w.end for w in windows if w.status == "unfinished"}
        carried = list(progress)
        yield windows
