"""One process: the collectives of a run that is alone are the identity."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from tppo.errors import ConfigError


@dataclass(frozen=True)
class Ranks:
    """What a rank knows of the others."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this rank writes."""
        return self.rank == 0

    def broadcast(self, obj: Any) -> Any:
        """Rank 0's object, on every rank."""
        return obj

    def barrier(self) -> None:
        """Wait for all ranks."""


def current() -> Ranks:
    """The ranks of this process group. Raises ConfigError under a launcher of several."""
    size = os.environ.get("WORLD_SIZE", "1")
    if size != "1":
        raise ConfigError("WORLD_SIZE", size, "1", "this version runs in a single process")
    return Ranks()
