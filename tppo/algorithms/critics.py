"""What the newer methods with a critic share: weights around the sampling policy, and lambda by length.

    A_t = GAE with lambda_i = max(0, 1 - 1 / (alpha L_i)), not whitened; the critic learns Monte-Carlo returns

One response a prompt is enough, so nothing waits for a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from tppo.algorithms.auxiliaries import Critic
from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Algorithm, Parts, Rollout, Term
from tppo.algorithms.parts.advantages import generalised
from tppo.algorithms.parts.select import every_window
from tppo.algorithms.parts.tokens import finished_tokens
from tppo.ranges import Range


@dataclass(frozen=True)
class CriticAlgorithm(Algorithm):
    """Base of methods with a critic whose surrogate is a weight. Not an algorithm by itself."""

    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount."""
    lam_alpha: Annotated[float, Range(0, 10**6, above=True)] = 1.0
    """Length-adaptive lambda: max(0, 1 - 1/(alpha * length))."""
    lag: Annotated[int, Range(0, 10**4, unit="batches")] = 0
    """Batches that are made before one trains, as in an asynchronous run of this lag."""
    warmup_steps: Annotated[int, Range(0, 10**9, unit="steps")] = 10
    """Steps at the start in which only the critic trains."""
    critic: CriticOptions = field(default_factory=CriticOptions)

    def objective(self) -> Term:
        """What the policy descends."""
        raise NotImplementedError(f"{type(self).__name__} must define objective()")

    def the_critic(self) -> Critic:
        """The network beside the policy."""
        return Critic(self.critic, self.gamma)

    def parts(self, rollout: Rollout) -> Parts:
        """Whole responses, GAE, a weight."""
        cap = rollout.max_response_tokens
        return Parts(
            select=every_window,
            tokens=finished_tokens,
            terms=(self.objective(),),
            advantage=generalised(
                over="finished", gamma=self.gamma, lam=0.0, lam_alpha=self.lam_alpha, window=cap, max_length=cap,
                whiten=False, clamp=None,
            ),
            auxiliaries=(self.the_critic(),),
            policy_from=self.warmup_steps,
            lag=self.lag,
        )  # fmt: skip
