"""GRPO (DeepSeekMath, arXiv 2402.03300): the outcome in units of the group's standard deviation.

    A_i = (R_i - mean) / (std + eps),    loss = mean over responses of the mean over tokens of clipped(pi / pi_old, A_i)
          + kl k3(pi || reference)

Defaults: clip 0.2 (paper; code of verl, TRL), eps 1e-6 (verl; TRL 1e-4: no matter for outcomes 0 and 1), std with n - 1
(verl, TRL), kl 0.001 (verl's documentation; the paper has 0.04).

What it ascends, exactly, for outcomes 0 and 1 and the aggregation without 1/L: 2 arcsin sqrt(p) for large groups, and p
itself for groups of two, where the standard deviation is a constant. The mean over each response's own tokens (1/L)
makes it another objective, E[f(R)/L].

Edge cases: equal outcomes give exactly 0; empty responses count in mean and std and train nothing.
Departures: none known. Dr.GRPO leaves std and 1/L out (``tppo.algorithms.dr_grpo``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.terms import clipped
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class GRPO(GroupAlgorithm):
    """GRPO: the outcome in units of the group's standard deviation; no critic."""

    name: ClassVar[str] = "grpo"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""
    kl: Annotated[float, Range(0, 1000)] = 0.001
    """Weight of the KL penalty (k3) towards the initial policy; above zero a frozen copy is kept."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over responses of means over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high, aggregation="seq-mean-token-mean")
