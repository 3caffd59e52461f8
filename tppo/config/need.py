"""What a run will hold, part by part, before anything of it is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Moment = Literal["always", "training", "evaluation"]
"""When it is held: from the beginning to the end, or during one of two that never happen at once."""
GIB = 2**30


@dataclass(frozen=True)
class Need:
    """Memory of one process."""

    what: str
    """In words, with its numbers."""
    size: float
    """Bytes."""
    fields: tuple[str, ...]
    """Configuration fields, from the root, that it grows with in proportion; the one to lower comes first."""
    moment: Moment = "always"
    on_device: bool = False
    """Whether it lies where the models are: on a GPU, if they are on one."""

    def __str__(self) -> str:
        return f"{size_of(self.size)} for {self.what}"


def largest_moment(needs: Sequence[Need]) -> list[Need]:
    """What is held at the worst of all moments, the largest first.

    >>> a, b, c = Need("a", 1, ()), Need("b", 2, (), "training"), Need("c", 3, (), "evaluation")
    >>> [need.what for need in largest_moment([a, b, c])]
    ['c', 'a']
    """
    moments: tuple[Moment, ...] = ("training", "evaluation")
    groups = [[need for need in needs if need.moment in ("always", moment)] for moment in moments]
    worst = max(groups, key=lambda group: sum(need.size for need in group))
    return sorted(worst, key=lambda need: -need.size)


def size_of(count: float) -> str:
    """Bytes in words.

    >>> size_of(3 * 2**40), size_of(2**30), size_of(5000)
    ('3.0 TiB', '1.0 GiB', '0.0 MiB')
    """
    for unit, one in (("PiB", 2**50), ("TiB", 2**40), ("GiB", GIB)):
        if count >= one:
            return f"{count / one:,.1f} {unit}"
    return f"{count / 2**20:.1f} MiB"
