"""Dr.GRPO (arXiv 2503.20783): GRPO without its two normalisers, by the standard deviation and by the own length.

    A_i = R_i - mean,    loss = sum over tokens of clipped(pi / pi_old, A_i) / (responses * constant length)

Defaults: clip 0.2 (code of TRL, verl); the constant length is the cap of a response (TRL's "dr_grpo"; verl divides by
the padded width unless told otherwise).

Exact: the expected update is (1 - 1/G) times the gradient of the solve rate, whatever the lengths; a test holds that.
Edge cases: equal outcomes give exactly 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.parts.terms import clipped
from tppo.maths.groups import grpo_advantage
from tppo.ranges import Range
from tppo.types import Batch


@dataclass(frozen=True)
class DrGRPO(GroupAlgorithm):
    """GRPO without std and without 1/L: unbiased up to a constant."""

    name: ClassVar[str] = "dr-grpo"

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """Outcome less the mean of the group."""
        return grpo_advantage(R_S, batch.group_S, scale=False)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate, each response divided by the same length."""
        return clipped(
            clip_low=self.clip_low, clip_high=self.clip_high,
            aggregation="constant", constant_length=rollout.max_response_tokens,
        )  # fmt: skip
