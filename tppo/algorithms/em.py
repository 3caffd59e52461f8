"""EM policy gradient (arXiv 2504.18587): likelihood of what was rewarded, weighted by its posterior in the group.

    loss = -mean over tokens of w_i log pi
    w_i = G R_i / sum_j R_j (``EM``),    R_i (``EMFilter``),    R_i - mean (``EMBaseline``)

Evidence: that an E-step samples and an M-step maximises a reward-weighted likelihood, without ratio or clip, is
confirmed by the abstract; weights and number of M-steps are unknown. The group's posterior is what the objective sum
log E[R] gives and is the default (ours). ``EMFilter`` is RAFT and filtered iterative fine-tuning on positives
(F-ISFT+).

Exact: on a prefix tree the full M-step makes pi'(y) proportional to pi(y) R(y), so the mean reward after k of them is
E[R^(k+1)] / E[R^k]. One small step of ``EM`` has the direction of MaxRL's order G.
Edge cases: a group without reward weighs 0. Negative outcomes are an error for ``EM``. With a baseline some weights are
negative and their likelihood has no lower bound, so ``EMBaseline`` wants one update of one mini-batch a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.baselines import posterior_weights
from tppo.maths.groups import grpo_advantage
from tppo.maths.weights import Weight
from tppo.types import Batch


@dataclass(frozen=True)
class EM(GroupAlgorithm):
    """Likelihood weighted by the posterior in the group."""

    name: ClassVar[str] = "em"

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Posterior weights."""
        return posterior_weights(R_S, batch.group_S)

    def objective(self, rollout: Rollout) -> Term:
        """No ratio, a mean over tokens."""
        return weighted(Weight(1, 1))


@dataclass(frozen=True)
class EMFilter(EM):
    """Likelihood of what was rewarded (RAFT, F-ISFT+)."""

    name: ClassVar[str] = "raft"
    alone: ClassVar[bool] = True

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """The outcome itself."""
        return R_S


@dataclass(frozen=True)
class EMBaseline(EM):
    """Likelihood weighted by the outcome less the group's mean."""

    name: ClassVar[str] = "em-baseline"
    once: ClassVar[bool] = True

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)
