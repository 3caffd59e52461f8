"""REINFORCE++ (arXiv 2501.03262): returns whitened over the batch, under PPO's clip, without a critic.

    A_t = whiten(sum_{j >= t} r_j),    r_j = -kl_reward log(pi_old / reference) and the outcome at the end
    baseline form: A_t = whiten(R_i - mean of the group), KL in the loss

Defaults: clip 0.2, kl_reward 1e-4 (code of OpenRLHF, verl: 1e-4 to 1e-2). NeMo subtracts the group's mean by default
and takes the biased variance; here these are two algorithms and the variance is the unbiased one.

Exact: with one prompt it is a constant baseline. With several the batch's mean is the baseline, so the difference
between prompts stays in the variance: prompts of solve rate 0.9 and 0.1 have E[(R - b)^2] = 0.25 against 0.09.
Whitening over tokens counts long responses more than short ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from tppo.algorithms.auxiliaries import Reference
from tppo.algorithms.base import Advantage, Algorithm, Columns, Parts, Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.rewards import kl_in_reward
from tppo.algorithms.parts.select import every_window
from tppo.algorithms.parts.terms import clipped
from tppo.algorithms.parts.tokens import finished_tokens
from tppo.maths.groups import grpo_advantage
from tppo.maths.masks import whiten
from tppo.maths.values import discounted_returns
from tppo.ranges import Range
from tppo.types import Batch


def _whitened(advantage: Advantage) -> Advantage:
    """Over the tokens that train."""

    def estimate(batch: Batch, columns: Columns, train_N: Tensor) -> Columns:
        raw = advantage.estimate(batch, columns, train_N)["advantages"]
        return {"advantages": whiten(raw, train_N), "raw_advantages": raw}

    return replace(advantage, estimate=estimate, gives=frozenset({"advantages", "raw_advantages"}))


def returns(gamma: float) -> Advantage:
    """What is still to come, sum_j gamma^(j - t) r_j, for every token that trains."""

    def estimate(batch: Batch, columns: Columns, train_N: Tensor) -> Columns:
        found = discounted_returns(columns["rewards"], batch.offsets, gamma=gamma)
        return {"advantages": torch.where(train_N, found, 0.0)}

    return Advantage(estimate, frozenset({"rewards"}))


@dataclass(frozen=True)
class ReinforcePP(Algorithm):
    """Returns whitened over the batch; no critic and no groups."""

    name: ClassVar[str] = "reinforce-pp"

    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount."""
    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    kl_reward: Annotated[float, Range(0, 1000)] = 1e-4
    """Weight of the KL to the initial policy in the reward; above zero a frozen copy is kept."""

    def parts(self, rollout: Rollout) -> Parts:
        """Whole responses."""
        return Parts(
            select=every_window,
            tokens=finished_tokens,
            terms=(clipped(clip_low=self.clip_low, clip_high=self.clip_high),),
            advantage=_whitened(returns(self.gamma)),
            rewards=(kl_in_reward(self.kl_reward),) if self.kl_reward else (),
            auxiliaries=(Reference(),) if self.kl_reward else (),
        )


@dataclass(frozen=True)
class ReinforcePPBaseline(GroupAlgorithm):
    """The outcome less the group's mean, whitened over the batch."""

    name: ClassVar[str] = "reinforce-pp-baseline"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high)

    def parts(self, rollout: Rollout) -> Parts:
        """Whitened after the baseline."""
        parts = super().parts(rollout)
        assert parts.advantage is not None
        return replace(parts, advantage=_whitened(parts.advantage))
