"""PPO (arXiv 1707.06347) as VC-PPO and VAPO set it up (arXiv 2503.01491, 2504.05118): T-PPO's twin.

    A_t = sum_j (gamma lambda_i)^j delta_{t+j},     V(s_T) = 0,     lambda_i = max(lam, 1 - 1 / (lam_alpha length_i))

Every response is generated to its end or to the total cap, so nothing is bootstrapped and no token is dropped.
Everything else is as in T-PPO, which adds a window to this (``tppo.algorithms.tppo``), so a comparison of the two
isolates truncation. T-PPO with a window at least as long as the cap equals this bit for bit; a test holds that.

Evidence of the defaults: ``tppo.algorithms.tppo``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypedDict

from tppo.algorithms.auxiliaries import Critic, Reference
from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Algorithm, Auxiliary, Parts, Rollout, Term
from tppo.algorithms.parts.advantages import generalised
from tppo.algorithms.parts.select import every_window
from tppo.algorithms.parts.terms import clipped, entropy_bonus, imitate_positives, kl_to_reference
from tppo.algorithms.parts.tokens import finished_tokens
from tppo.errors import ConfigError
from tppo.ranges import BOUND, STEPS, WEIGHT, Range


class Estimator(TypedDict):
    """Numbers of the advantage."""

    gamma: float
    lam: float
    lam_alpha: float | None
    whiten: bool
    clamp: float | None
    bias: float


@dataclass(frozen=True)
class PPO(Algorithm):
    """PPO over whole responses.

    >>> PPO().parts(Rollout()).window is None
    True
    """

    name: ClassVar[str] = "ppo"
    centre: ClassVar[Literal["old", "behaviour", "average"]] = "old"

    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount."""
    lam: Annotated[float, Range(0, 1)] = 0.95
    """Lambda of the advantage; its floor where it adapts to the length."""
    lam_alpha: Annotated[float, Range(0, WEIGHT, above=True)] | None = 0.05
    """Length-adaptive lambda: 1 - 1/(alpha * length), never below ``lam``; None is a fixed lambda."""
    whiten: bool = True
    """Centre and scale the advantages of the tokens that train."""
    clamp: Annotated[float, Range(0, BOUND, above=True)] | None = 10.0
    """Largest size of an advantage after whitening; None is off."""
    bias: Annotated[float, Range(-BOUND, BOUND)] = 0.0
    """Added to the advantage of every token that trains."""
    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0, BOUND)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Range(1, BOUND, above=True)] | None = 10.0
    """Bound c of the loss for negative advantages; None is off."""
    importance_cap: Annotated[float, Range(0, BOUND, above=True)] | None = None
    """Weigh tokens by min(pi_old / pi_behaviour, cap), for an engine that computes other log-probabilities than the
    trainer; None is off."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "token-mean"
    """How token losses become one number."""
    imitate: Annotated[float, Range(0, WEIGHT)] = 0.1
    """Weight of the negative log-likelihood of responses with positive reward (mu)."""
    entropy: Annotated[float, Range(0, WEIGHT)] = 0.0
    """Weight of the entropy bonus."""
    kl: Annotated[float, Range(0, WEIGHT)] = 0.0
    """Weight of the KL penalty (k3) towards the initial policy; above zero a frozen copy is kept."""
    warmup_steps: Annotated[int, Range(0, STEPS, unit="steps")] = 10
    """Steps at the start in which only the critic trains."""
    critic: CriticOptions = field(default_factory=CriticOptions)

    def parts(self, rollout: Rollout) -> Parts:
        """Whole responses, GAE, the clipped surrogate."""
        cap = rollout.max_response_tokens
        return Parts(
            select=every_window,
            tokens=finished_tokens,
            terms=self.terms(),
            advantage=generalised(over="finished", window=cap, max_length=cap, **self.estimator()),
            auxiliaries=(Critic(self.critic, self.gamma), *self.reference()),
            policy_from=self.warmup_steps,
        )

    def terms(self) -> tuple[Term, ...]:
        """The surrogate, and what has a weight."""
        aggregation = self.aggregation
        return (
            clipped(
                clip_low=self.clip_low, clip_high=self.clip_high, dual_clip=self.dual_clip, centre=self.centre,
                importance_cap=self.importance_cap, aggregation=aggregation,
            ),
            *([imitate_positives(self.imitate)] if self.imitate else []),
            *([entropy_bonus(self.entropy, aggregation=aggregation)] if self.entropy else []),
            *([kl_to_reference(self.kl, aggregation=aggregation)] if self.kl else []),
        )  # fmt: skip

    def estimator(self) -> Estimator:
        """The numbers of the advantage that do not depend on the schedule."""
        return {
            "gamma": self.gamma, "lam": self.lam, "lam_alpha": self.lam_alpha, "whiten": self.whiten,
            "clamp": self.clamp, "bias": self.bias,
        }  # fmt: skip

    def reference(self) -> tuple[Auxiliary, ...]:
        """The frozen copy that the KL penalty needs."""
        return (Reference(),) if self.kl else ()

    def check(self, rollout: Rollout) -> None:
        """Clip ranges that exclude each other."""
        if self.dual_clip is not None and self.dual_clip <= 1 + self.clip_high:
            raise ConfigError(
                "algorithm.dual_clip", self.dual_clip, f"more than 1 + clip_high ({1 + self.clip_high:g})", "or None"
            )
        if (self.critic.clip_low is None) != (self.critic.clip_high is None):
            raise ConfigError("algorithm.critic.clip_low", self.critic.clip_low, "both clips or neither")
