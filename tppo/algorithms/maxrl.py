"""MaxRL (arXiv 2602.02710): the outcome in units of the group's solve rate, which ascends log p to the group's order.

    A_i = (R_i - mean) / mean,   ``all_wrong`` in a group without reward
    loss = mean over tokens of clipped(pi / pi_old, A_i)

Defaults: all_wrong 0 (the released code, prime-rl, SkyRL), clip 0.2 / 0.28 and a token mean (the authors' scripts).

Exact: for outcomes 0 and 1 the expected update is (1 - (1-p)^(G-1)) / p times the gradient of p, log p truncated at
order G - 1; with all_wrong = -1 it is of order G, as the paper's text has it. Rare successes count most.
Edge cases: negative outcomes are an error: they become probabilities.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.terms import clipped
from tppo.maths.baselines import success_scaled_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class MaxRL(GroupAlgorithm):
    """The outcome in units of the group's solve rate: ascends log p."""

    name: ClassVar[str] = "maxrl"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    all_wrong: Annotated[float, Range(-1, 0)] = 0.0
    """Advantage in a group without reward; -1 raises the order of log p by one."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's solve rate."""
        return success_scaled_advantage(R_S, batch.group_S, all_wrong=self.all_wrong)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high)
