"""SAPO (Qwen, arXiv 2511.20347): a sigmoid's soft gate where PPO clips.

    loss = -A_i (4 / tau) sigmoid(tau (pi / pi_old - 1)),    tau = tau_positive where A_i > 0, else tau_negative

Defaults: tau 1.0 and 1.05 (TRL, verl), eps 1e-6, a mean over responses of means over tokens.

Exact: at the policy before the update the gradient is GRPO's; the weight 4 sigma (1 - sigma) rho dies away on both
sides, to 0.105 at a ratio of 6.5, where PPO's is 0 or, for negative advantages, 6.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import gated
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class SAPO(GroupAlgorithm):
    """A soft gate instead of a clip."""

    name: ClassVar[str] = "sapo"

    tau_positive: Annotated[float, Range(0, 1000, above=True)] = 1.0
    """Steepness of the gate where the advantage is positive."""
    tau_negative: Annotated[float, Range(0, 1000, above=True)] = 1.05
    """Steepness of the gate elsewhere."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The gate, a mean over responses of means over tokens."""
        return gated(tau_positive=self.tau_positive, tau_negative=self.tau_negative)
