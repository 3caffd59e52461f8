"""ConciseR (arXiv 2505.21178): walk before you run. First GRPO++ learns to be right, then L-GRPO to be short.

    stage 1: GRPO with clip-higher, mixed groups, an entropy bonus
    stage 2: R_i = 1 + length_coef (1 - L_i / cap) in groups that are all right, A_i = R_i - mean

Evidence: both stages, and that the length counts only where all answers are right, are confirmed by the abstract and
the repository's README; the formula of the length reward, its weight and the entropy weight are unknown. The linear
bonus and its weight 1 are ours, as is the entropy weight 0.001. ``Concise`` is stage 2, ``ConciseWalk`` stage 1: the
second begins with the policy of the first (``--task.model RUN/policy`` for a pretrained model).

Exact: dividing by the standard deviation takes length_coef out again, so stage 2 does not divide. The pressure on
length switches on like p^(G-1).
Edge cases: stage 1's filter would drop the very groups that stage 2 needs, so stage 2 takes all. All right and equally
long gives exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Parts, Reward, Rollout, Select, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.rewards import outcome_change
from tppo.algorithms.parts.select import mixed_group
from tppo.algorithms.parts.terms import clipped, entropy_bonus
from tppo.maths.groups import grpo_advantage
from tppo.maths.shaping import concise_outcomes
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class ConciseWalk(GroupAlgorithm):
    """Stage 1 of ConciseR: GRPO with clip-higher, mixed groups and an entropy bonus."""

    name: ClassVar[str] = "conciser-walk"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""
    entropy: Annotated[float, Range(0, 1000)] = 0.001
    """Weight of the entropy bonus."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high)

    def select(self) -> Select:
        """Groups with a right and a wrong answer."""
        return mixed_group

    def parts(self, rollout: Rollout) -> Parts:
        """Sampled until the slots' worth of groups is mixed; an entropy bonus."""
        parts = super().parts(rollout)
        terms = (*parts.terms, *([entropy_bonus(self.entropy)] if self.entropy else []))
        return replace(parts, terms=terms, groups=rollout.slots // rollout.group_size)


@dataclass(frozen=True)
class Concise(GroupAlgorithm):
    """Stage 2 of ConciseR: shorter is better where all answers of the group are right."""

    name: ClassVar[str] = "conciser"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    length_coef: Annotated[float, Range(0, 1000, above=True)] = 1.0
    """Weight of the length where all are right."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high)

    def rewards(self, rollout: Rollout) -> tuple[Reward, ...]:
        """Shorter is better where all are right."""
        cap, coef = rollout.max_response_tokens, self.length_coef

        def change(R_S: Tensor, batch: Batch) -> Tensor:
            return concise_outcomes(R_S, batch.lengths_S, batch.group_S, max_length=cap, coef=coef) - R_S

        return (outcome_change(change),)
