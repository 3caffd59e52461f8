"""SAO (arXiv 2607.07508): one response a prompt, asynchronous, tokens far from the sampling policy left out.

    loss = -mean over tokens of w A_t log pi,    w = pi / behaviour inside (low, high), else 0, whatever the sign of A
    lambda_i = max(0, 1 - 1 / (1.5 L_i)),    gamma 1, the critic learns Monte-Carlo returns in two passes a step

Evidence (notes on the method): all of these; (low, high) = (0.7, 6), for code (0.2, 4); 10 steps of warm-up, no
whitening; actor 1e-6, critic 5e-6 with frozen attention (not built here: the whole critic trains).

Worked: lambda of 1 and 8 tokens: 0.333, 0.917.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Term
from tppo.algorithms.critics import CriticAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.maths.weights import Weight
from tppo.ranges import Range


def _critic() -> CriticOptions:
    return CriticOptions(lr=5e-6, epochs=2, clip_low=None, clip_high=None, aggregation="token-mean")


@dataclass(frozen=True)
class SAO(CriticAlgorithm):
    """One response a prompt; tokens far from the sampling policy are left out."""

    name: ClassVar[str] = "sao"

    lam_alpha: Annotated[float, Range(0, 10**6, above=True)] = 1.5
    """Length-adaptive lambda: max(0, 1 - 1/(alpha * length))."""
    low: Annotated[float, Range(0, 1)] = 0.7
    """Tokens with a smaller ratio are left out."""
    high: Annotated[float, Range(1, 10**6)] = 6.0
    """Tokens with a larger ratio are left out."""
    critic: CriticOptions = field(default_factory=_critic)

    def objective(self) -> Term:
        """The bounded weight, a mean over tokens."""
        return weighted(Weight(self.low, self.high, outside="zero"), centre="behaviour")
