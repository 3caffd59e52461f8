"""OPO (arXiv 2505.23585): the outcome against the length-weighted mean of the group, on policy and without a ratio.

    A_i = R_i - sum_j L_j R_j / sum_j L_j,    loss = -mean over tokens of A_i log pi,    one update per batch

Defaults: ``own`` as in the paper and verl; ``OPOLeaveOneOut`` leaves the own response out of the sum (ours).

Exact: where scores of tokens are orthogonal and equally long (a uniform policy on a prefix tree) this is the constant
baseline of least variance. Away from that it can lose to the plain mean. With the own response in the sum the expected
direction turns (cosine 0.992 to the gradient for G = 2 on a chain of three tokens); without it the estimator is
unbiased. Both hold where responses count alike; a mean over the tokens of few groups bends either a little (0.977 and
0.995 with one group there).
Edge cases: equal outcomes and a response that is alone give exactly 0 (verl: A = R when alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.baselines import length_baseline_advantage
from tppo.maths.weights import Weight
from tppo.types import Batch


@dataclass(frozen=True)
class OPO(GroupAlgorithm):
    """The outcome against the length-weighted mean of the group; no ratio, one update."""

    name: ClassVar[str] = "opo"
    once: ClassVar[bool] = True
    own: ClassVar[bool] = True

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Against the length-weighted mean."""
        return length_baseline_advantage(R_S, batch.lengths_S, batch.group_S, own=self.own)

    def objective(self, rollout: Rollout) -> Term:
        """No ratio, a mean over tokens."""
        return weighted(Weight(1, 1))


@dataclass(frozen=True)
class OPOLeaveOneOut(OPO):
    """The same without the own response in the mean: unbiased."""

    name: ClassVar[str] = "opo-loo"
    own: ClassVar[bool] = False
