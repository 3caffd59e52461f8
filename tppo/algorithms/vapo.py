"""VAPO (arXiv 2504.05118): VC-PPO with lambda by length, clip-higher, a token mean and the likelihood of right answers.

    lambda_i = 1 - 1 / (alpha L_i),    loss = clipped over tokens + mu * mean of -log pi over tokens of right answers

Evidence: alpha 0.05, clip 0.2 / 0.28, mu 0.1, the token mean, 50 steps of value warm-up and 16 responses a prompt are
confirmed. Value clip and KL are not given; the floor ``lam`` of 0 is ours (a response of one token has lambda 0), and
whitening, dual clip and clamp are off, as the text names none.

Exact: an adaptive lambda is biased even with the exact critic, because the length that decides it lies in the future.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from tppo.algorithms.ppo import PPO
from tppo.ranges import Range


@dataclass(frozen=True)
class VAPO(PPO):
    """PPO with lambda by length, clip-higher and the likelihood of right answers."""

    name: ClassVar[str] = "vapo"

    lam: Annotated[float, Range(0, 1)] = 0.0
    """Lambda of the advantage; its floor where it adapts to the length."""
    whiten: bool = False
    """Centre and scale the advantages of the tokens that train."""
    clamp: Annotated[float, Range(0, 10**6, above=True)] | None = None
    """Largest size of an advantage after whitening; None is off."""
    dual_clip: Annotated[float, Range(1, 10**6, above=True)] | None = None
    """Bound c of the loss for negative advantages; None is off."""
    warmup_steps: Annotated[int, Range(0, 10**9, unit="steps")] = 50
    """Steps at the start in which only the critic trains."""
