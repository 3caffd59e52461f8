"""GSPO (arXiv 2507.18071): GRPO with one ratio a response, the geometric mean of its tokens' ratios.

    s_i = exp(mean over tokens of log(pi / pi_old)),    loss = mean over responses of clipped(s_i, A_i)

Defaults: clip 3e-4 / 4e-4 (paper; scripts of verl, TRL), eps 1e-6.

Exact: the first update is that of GRPO. Away from it s_i moves with 1/L of the whole log-ratio: a response of 10^4
tokens is clipped once that passes +4 or -3. Worked: log-ratios [0.1, -0.2, 0.3, 0.04] give s = 1.0618365.
Departures: verl clamps log s at 10; here the limit of every log-ratio is 20.
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
class GSPO(GroupAlgorithm):
    """GRPO with one ratio a response."""

    name: ClassVar[str] = "gspo"

    clip_low: Annotated[float, Range(0, 1)] = 3e-4
    """The response's ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, 1000)] = 4e-4
    """The response's ratio is clipped above at 1 + clip_high."""
    eps: Annotated[float, Range(0, 1, above=True)] = 1e-6
    """Added to the standard deviation."""

    def advantage_S(self, R_S: Tensor, batch: Batch) -> Tensor:
        """In units of the group's standard deviation."""
        return grpo_advantage(R_S, batch.group_S, scale=True, eps=self.eps)

    def objective(self, rollout: Rollout) -> Term:
        """The clipped surrogate of the mean ratio, a mean over responses."""
        return clipped(
            clip_low=self.clip_low, clip_high=self.clip_high, level="mean", aggregation="seq-mean-token-mean"
        )
