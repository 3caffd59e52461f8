"""Statistics of one update, kept on the device until it is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Stats:
    """Sums over micro-batches, averaged over the optimiser's steps; some keep their maximum.

    Each rank adds what its own micro-batches give, already divided by counts over the whole batch. Nothing is copied
    to the host before ``result``.
    """

    def __init__(self, gather: Callable[[Any], list[Any]]) -> None:
        """gather: every rank's value, on every rank."""
        self.gather = gather
        self.sums: dict[str, Tensor] = {}
        self.peaks: dict[str, Tensor] = {}
        self.wholes: dict[str, float] = {}
        self.updates = 0

    def add(self, name: str, value: Tensor) -> None:
        """Add a scalar to this rank's part of a sum."""
        value = value.detach().double()
        self.sums[name] = self.sums[name] + value if name in self.sums else value

    def peak(self, name: str, value: Tensor) -> None:
        """Keep the largest scalar."""
        value = value.detach().double()
        self.peaks[name] = torch.maximum(self.peaks[name], value) if name in self.peaks else value

    def whole(self, name: str, value: float) -> None:
        """Add to a sum that is the same on every rank."""
        self.wholes[name] = self.wholes.get(name, 0.0) + value

    def result(self, model: str) -> dict[str, float]:
        """``MODEL_updates``, sums over all ranks divided by the number of updates, and the maxima."""
        sums, maxima = dict(self.wholes), dict[str, float]()
        for of_rank, peaks in self.gather((_floats(self.sums), _floats(self.peaks))):
            for name, value in of_rank.items():
                sums[name] = sums.get(name, 0.0) + value
            for name, value in peaks.items():
                maxima[name] = max(maxima.get(name, -float("inf")), value)
        means = {name: value / max(self.updates, 1) for name, value in sums.items()}
        return {f"{model}_updates": self.updates} | means | maxima


def _floats(scalars: dict[str, Tensor]) -> dict[str, float]:
    """All of them in one copy from the device."""
    values = torch.stack(list(scalars.values())).tolist() if scalars else []
    return dict(zip(scalars, values, strict=True))
