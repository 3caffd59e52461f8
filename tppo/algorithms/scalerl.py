"""ScaleRL's recipe (arXiv 2510.13786): CISPO with a wide cap, a mean over prompts, one unit for all prompts, and a lag.

    A_i = (R_i - mean of the group) / std of the batch's outcomes
    loss = -mean over prompts of the mean over the tokens of its group of w A_i log pi,    w = min(pi / behaviour, cap)

Evidence: cap 5 (absolute), mean over prompts, batch std, lag 8, groups of 16, no groups without variance are confirmed.
The retirement of prompts that are solved nine times of ten and interruption after 12k tokens of thought are not built.

The ratio is to the policy that sampled the token. The mean over prompts weighs every group alike, however long its
answers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Parts, Rollout, Select, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.select import mixed_group
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.baselines import batch_scaled, prompt_mean_scale
from tppo.maths.groups import grpo_advantage
from tppo.maths.weights import Weight
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class ScaleRL(GroupAlgorithm):
    """CISPO with a wide cap, a mean over prompts, one unit for all prompts, and a lag."""

    name: ClassVar[str] = "scalerl"

    cap: Annotated[float, Range(0, 10**6, above=True)] = 5.0
    """Largest weight of a token, absolute."""
    lag: Annotated[int, Range(0, 10**4, unit="batches")] = 8
    """Batches that are made before one trains, as in an asynchronous run of this lag."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the batch's standard deviation, and for the mean over prompts."""
        unit_S = batch_scaled(grpo_advantage(R_S, batch.group_S, scale=False), of_S=R_S)
        return unit_S * prompt_mean_scale(batch.lengths_S, batch.group_S).to(unit_S.dtype)

    def objective(self, rollout: Rollout) -> Term:
        """The bounded weight; with the scale of the advantage a mean over prompts."""
        return weighted(Weight(0, self.cap), centre="behaviour", aggregation="seq-mean-token-sum")

    def select(self) -> Select:
        """Groups with a right and a wrong answer."""
        return mixed_group

    def parts(self, rollout: Rollout) -> Parts:
        """Late batches."""
        return replace(super().parts(rollout), lag=self.lag)
