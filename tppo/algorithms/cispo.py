"""CISPO (MiniMax-M1, arXiv 2506.13585): the ratio as a bounded weight, so that no token is ever left out.

    loss = -mean over tokens of stop_gradient(min(pi / pi_old, cap)) A_i log pi

Defaults: cap 1.2 (verl's example: 1 + 0.2; slime, NeMo and SkyRL likewise; TRL and ScaleRL take 5), eps 1e-6. The cap
is absolute here. The paper has no lower bound.

Exact: at the policy before the update the gradient is GRPO's with a token mean; beyond the cap a token keeps pushing
with weight cap where PPO's clip stops it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.groups import grpo_advantage
from tppo.maths.weights import Weight
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class CISPO(GroupAlgorithm):
    """The ratio as a bounded weight instead of a clip."""

    name: ClassVar[str] = "cispo"

    cap: Annotated[float, Range(0, 1000, above=True)] = 1.2
    """Largest weight of a token, absolute."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The bounded weight, a mean over tokens."""
        return weighted(Weight(0, self.cap))
