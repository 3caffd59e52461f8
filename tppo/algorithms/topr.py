"""TOPR (arXiv 2503.14286): right answers as in fine-tuning, wrong ones weighed by how likely they still are.

    loss = -w_i A_i log pi,    w = 1 where A_i >= 0, else min(product of pi / behaviour over the response, 1)

Defaults: A = R - baseline with baseline 0.5, so that outcomes 1 and 0 push equally (the paper: +1 and -1; ROLL: R or
+-1), a product over the response (paper; ROLL has a form for each token), a sum over each response's tokens.

Exact: unbiased for wrong responses up to the bound at 1. Tapering stops a wrong answer that the policy has left from
being pushed down for ever.
Edge cases: a group of wrong answers trains on its negatives alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.weights import Weight
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class TOPR(GroupAlgorithm):
    """Right answers as in fine-tuning; wrong ones tapered by how likely they still are."""

    name: ClassVar[str] = "topr"
    alone: ClassVar[bool] = True

    baseline: Annotated[float, Range(-1000, 1000)] = 0.5
    """Subtracted from every outcome."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less a constant."""
        return R_S - self.baseline

    def objective(self, rollout: Rollout) -> Term:
        """Tapered importance weights, a mean over responses of sums over tokens."""
        return weighted(
            Weight(1, 1), wrong=Weight(0, 1, level="product"), centre="behaviour", aggregation="seq-mean-token-sum"
        )
