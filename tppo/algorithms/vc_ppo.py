"""VC-PPO (arXiv 2503.01491): PPO whose critic is pretrained, with another lambda for the policy than for the critic.

    lambda 0.95 for advantages, 1 for value targets

Evidence: both lambdas and the pretraining are confirmed (as VAPO, arXiv 2504.05118, recounts it); every other number is
unknown and ours: PPO's clip 0.2 on both sides, whitening, no warm-up, since the critic comes from a run of
``value-pretraining`` (``--algorithm.critic.start RUN``).

Exact: with the exact critic the expected advantage is exact for every fixed lambda.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tppo.algorithms.ppo import PPO
from tppo.ranges import Range


@dataclass(frozen=True)
class VCPPO(PPO):
    """PPO with a pretrained critic and a fixed lambda for the policy."""

    name: ClassVar[str] = "vc-ppo"

    lam_alpha: Annotated[float, Range(0, 10**6, above=True)] | None = None
    """Length-adaptive lambda: 1 - 1/(alpha * length), never below ``lam``; None is a fixed lambda."""
    clip_high: Annotated[float, Range(0, 1000)] = 0.2
    """Ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Range(1, 10**6, above=True)] | None = None
    """Bound c of the loss for negative advantages; None is off."""
    imitate: Annotated[float, Range(0, 1000)] = 0.0
    """Weight of the negative log-likelihood of responses with positive reward (mu)."""
    warmup_steps: Annotated[int, Range(0, 10**9, unit="steps")] = 0
    """Steps at the start in which only the critic trains."""
