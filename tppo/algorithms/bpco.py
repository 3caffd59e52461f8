"""BPCO (arXiv 2608.23566): one response a prompt, a critic whose values cannot leave the range of the reward, DPPO's
mask.

    V = low + (high - low) (1/2 + atan(z) / pi),    lambda_i = max(0, 1 - 1 / (0.4 L_i))
    loss = -sum over the tokens of a response of m min(pi / behaviour, cap) A_t log pi

with the mask m of ``tppo.algorithms.dppo``.

Evidence (notes on the method): Monte-Carlo targets, no whitening, alpha 0.4, 15 steps of warm-up, value clip 0.5, trust
of 0.15 on |pi - mu|; the bound on the side of the ratio is unknown, and the cap 20 is that of DPPO.

Worked: z = 0.5 in [0, 1] is 0.6476. lambda of 2, 5 and 1000 tokens: 0, 0.5, 0.9975.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from tppo.algorithms.auxiliaries import Critic
from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.critics import CriticAlgorithm
from tppo.algorithms.parts.weighted import weighted
from tppo.errors import ConfigError
from tppo.maths.weights import Trust, Weight
from tppo.ranges import Range


def _critic() -> CriticOptions:
    return CriticOptions(lr=1e-5, clip_low=0.5, clip_high=0.5)


@dataclass(frozen=True)
class BPCO(CriticAlgorithm):
    """One response a prompt, a bounded critic, a trust region in probabilities."""

    name: ClassVar[str] = "bpco"

    lam_alpha: Annotated[float, Range(0, 10**6, above=True)] = 0.4
    """Length-adaptive lambda: max(0, 1 - 1/(alpha * length))."""
    warmup_steps: Annotated[int, Range(0, 10**9, unit="steps")] = 15
    """Steps at the start in which only the critic trains."""
    value_low: Annotated[float, Range(-(10**6), 10**6)] = 0.0
    """Smallest return."""
    value_high: Annotated[float, Range(-(10**6), 10**6)] = 1.0
    """Largest return."""
    trust_low: Annotated[float, Range(0, 1)] = 0.15
    """A token's probability may fall no further than this."""
    trust_high: Annotated[float, Range(0, 1)] = 0.15
    """A token's probability may rise no further than this."""
    cap: Annotated[float, Range(0, 10**6, above=True)] = 20.0
    """Largest weight of a token."""
    critic: CriticOptions = field(default_factory=_critic)

    def objective(self) -> Term:
        """The trusted weight, a mean over responses of sums over tokens."""
        return weighted(
            Weight(0, self.cap), trust=Trust(self.trust_low, self.trust_high), centre="behaviour",
            aggregation="seq-mean-token-sum",
        )  # fmt: skip

    def the_critic(self) -> Critic:
        """Bounded."""
        return Critic(self.critic, self.gamma, bounds=(self.value_low, self.value_high))

    def check(self, rollout: Rollout) -> None:
        """A range that holds something."""
        if self.value_low >= self.value_high:
            raise ConfigError(
                "algorithm.value_low", self.value_low, f"below algorithm.value_high ({self.value_high})",
                "give the smallest and the largest return of a response",
            )  # fmt: skip
