"""F-ISFT± (arXiv 2505.13697): filtered iterative fine-tuning on right and wrong answers, which GRPO's first update is.

    loss = -mean over responses of the mean over tokens of A_i log pi
    A_i = sqrt((G-1)/G (1-p) / p) for right answers, -sqrt((G-1)/G p / (1-p)) for wrong ones

with p the group's share of right answers.

Exact: the first update equals GRPO's (without its KL and with eps 0); a test holds that. They part with the second:
GRPO clips, this goes on. Positives alone are the algorithm ``raft``.
Edge cases: groups that are all right or all wrong weigh 0. An outcome above 0 counts as right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.groups import signed_weights
from tppo.maths.weights import Weight
from tppo.types import Batch


@dataclass(frozen=True)
class FISFT(GroupAlgorithm):
    """Fine-tuning on right and wrong answers, weighted as GRPO's first update."""

    name: ClassVar[str] = "fisft"
    once: ClassVar[bool] = True

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Two weights a group."""
        return signed_weights(R_S, batch.group_S)

    def objective(self, rollout: Rollout) -> Term:
        """No ratio, a mean over responses of means over tokens."""
        return weighted(Weight(1, 1), aggregation="seq-mean-token-mean")
