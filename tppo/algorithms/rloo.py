"""RLOO (arXiv 2402.14740): REINFORCE against the mean of the others in the group.

    A_i = R_i - (1/(G-1)) sum_{j != i} R_j,    R_i less kl_reward log(pi_old / reference), summed over the response

``RLOO`` clips each token's ratio (verl, OpenRLHF); ``RLOOSequence`` that of the whole response, the product (TRL).
With one update of one mini-batch they agree.

Defaults: clip 0.2, kl_reward 0.05 (TRL; the paper has 0.03; verl none).

Exact: unbiased for every G >= 2, since the baseline does not depend on the response.
Edge cases: equal outcomes give exactly 0. The product over a long response leaves the clip range after a few updates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.auxiliaries import Reference
from tppo.algorithms.base import Parts, Reward, Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.rewards import kl_in_reward
from tppo.algorithms.parts.terms import clipped
from tppo.errors import ConfigError
from tppo.maths.groups import rloo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class RLOO(GroupAlgorithm):
    """REINFORCE against the mean of the others; token ratios."""

    name: ClassVar[str] = "rloo"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    kl_reward: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the KL to the initial policy in the reward; above zero a frozen copy is kept."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Against the mean of the others."""
        return rloo_advantage(R_S, batch.group_S)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate of tokens, summed over each response."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high, aggregation="seq-mean-token-sum")

    def rewards(self, rollout: Rollout) -> tuple[Reward, ...]:
        """KL to the initial policy."""
        return (kl_in_reward(self.kl_reward),) if self.kl_reward else ()

    def parts(self, rollout: Rollout) -> Parts:
        """A frozen copy where there is a KL of either kind."""
        return replace(super().parts(rollout), auxiliaries=(Reference(),) if self.kl or self.kl_reward else ())

    def check(self, rollout: Rollout) -> None:
        """One KL penalty, not two."""
        super().check(rollout)
        if self.kl and self.kl_reward:
            raise ConfigError(
                "algorithm.kl_reward", self.kl_reward, "0 beside algorithm.kl", "the same penalty would count twice"
            )


@dataclass(frozen=True)
class RLOOSequence(RLOO):
    """REINFORCE against the mean of the others; one ratio a response, as in TRL."""

    name: ClassVar[str] = "rloo-sequence"

    kl_reward: Annotated[float, Range(0, 1000)] = 0.05
    """Weight of the KL to the initial policy in the reward; above zero a frozen copy is kept."""

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate of the product of ratios."""
        return clipped(
            clip_low=self.clip_low, clip_high=self.clip_high, level="product", aggregation="seq-mean-token-mean"
        )
