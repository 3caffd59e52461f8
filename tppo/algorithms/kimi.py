"""Kimi k1.5's policy optimisation (arXiv 2501.12599): a square that is 0 at the optimum of a KL-regularised objective.

    loss = mean over responses of (A_i - tau log(pi / pi_old))^2 / (2 tau),    A_i = R_i - mean

with the log-ratio of the whole response.

Defaults: tau 0.1 (ROLL; the paper gives none). Divided by 2 tau, so that learning rates compare with other methods.
The length reward of the paper is ``tppo.maths.shaping.kimi_length_reward``; it is not on by default.

Exact: the first update is Dr.GRPO's with a sum over tokens; away from it the square pulls the response's log-ratio to
A / tau whatever its sign, where a clip only stops pushing. Worked: A 0.5, tau 0.1, log-ratio 0.24 give 0.2266 before
the division.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import squared
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class Kimi(GroupAlgorithm):
    """A square that pulls each response's log-ratio to A / tau."""

    name: ClassVar[str] = "kimi"

    tau: Annotated[float, Range(0, 1000, above=True)] = 0.1
    """Weight of the KL towards the policy before the update."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)

    def objective(self, rollout: Rollout) -> Term:
        """The square, a mean over responses."""
        return squared(tau=self.tau)
