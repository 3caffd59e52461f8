"""Where the authors' port stands: its numbers, read from this library's defaults."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tppo.algorithms import TPPO
from tppo.maths.advantages import length_adaptive_lambda


@dataclass(frozen=True)
class Port:
    """The authors' port: this library's defaults are its numbers."""

    ignore_last: int
    window: int
    floor: float  # lambda is never below
    adaptive: float  # lambda of a response cut by its first window

    def memory_shares(self) -> tuple[float, float]:
        """m as a share of 1/(1-lambda), at the floor and with the adaptive lambda."""
        return self.ignore_last * (1 - self.floor), self.ignore_last * (1 - self.adaptive)


def authors_port() -> Port:
    """From the defaults of `tppo.algorithms.tppo`."""
    default = TPPO()
    window = default.window
    assert default.lam_alpha is not None
    adaptive = length_adaptive_lambda(
        torch.tensor([window]), torch.tensor([False]),
        alpha=default.lam_alpha, lam_min=default.lam, window=window, max_length=3 * window,
    )  # fmt: skip
    return Port(default.ignore_last, window, default.lam, float(adaptive[0]))
