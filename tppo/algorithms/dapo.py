"""DAPO (arXiv 2503.14476): GRPO with clip-higher, groups that have something to say, a token mean, and a length buffer.

    A_i = (R_i - mean) / (std + eps),  R_i less a penalty that grows over the last ``buffer`` tokens before the cap
    loss = mean over tokens of clipped(pi / pi_old, A_i);  groups that are all right or all wrong are sampled again

Defaults: clip 0.2 / 0.28, c = 10, buffer 4096 of a cap of 20480, i.e. a fifth of the cap (the authors' recipe in verl).

Exact: at the policy before the update a dropped group contributes 0, so dropping changes the step's size by 1 /
P(mixed) and not its direction; what it buys is variance, what it costs is rollouts. A group that is all right with one
overlong member has a signal in the shaped outcome only; as in the authors' code the filter looks at the answer's
verdict.

Edge cases: after 64 longest responses a step trains on the mixed groups that it has; where there is none, because every
prompt is all right or all wrong, that is an error which says so. ``groups`` beyond what the slots hold takes several
rounds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Parts, Reward, Rollout, Select, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.rewards import overlong
from tppo.algorithms.parts.select import mixed_group
from tppo.algorithms.parts.terms import clipped
from tppo.errors import ConfigError
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class DAPO(GroupAlgorithm):
    """GRPO with clip-higher, mixed groups only, a token mean and an overlong penalty."""

    name: ClassVar[str] = "dapo"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Range(1, 1000, above=True)] | None = 10.0
    """Bound c of the loss for negative advantages; None is off."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""
    buffer: Annotated[float, Range(0, 1)] = 0.2
    """Share of the cap over which the penalty grows from 0 to 1; 0 is no penalty."""
    groups: Annotated[int, Range(1, 10**6, unit="groups")] | None = None
    """Mixed groups that a step trains on; None is as many as the slots hold."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, a mean over tokens."""
        return clipped(clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip)

    def select(self) -> Select:
        """Groups with a right and a wrong answer."""
        return mixed_group

    def rewards(self, rollout: Rollout) -> tuple[Reward, ...]:
        """Less for the last tokens before the cap."""
        return (overlong(rollout.max_response_tokens, self.buffer),) if self.buffer else ()

    def parts(self, rollout: Rollout) -> Parts:
        """Groups are sampled until enough are mixed."""
        return replace(super().parts(rollout), groups=self.groups or rollout.slots // rollout.group_size)

    def check(self, rollout: Rollout) -> None:
        """Clip ranges that exclude each other."""
        super().check(rollout)
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ConfigError(
                "algorithm.dual_clip", self.dual_clip, f"more than 1 + clip_high ({1 + self.clip_high:g})", "or None"
            )
