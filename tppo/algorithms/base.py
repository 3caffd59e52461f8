"""What an algorithm is: a choice of rollout schedule, advantage, token filter, policy loss and value target.

Composition, not inheritance: the trainer reads these choices and there is no trainer per algorithm. Defaults of every
field are those recommended for T-PPO on Qwen2.5-32B; sources are named field by field in ``tppo.algorithms.tppo``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tppo.maths.aggregate import Aggregation
from tppo.ranges import Range


@dataclass(frozen=True)
class Schedule:
    """How responses are generated."""

    window: Annotated[int, Range(1, unit="tokens")] | None = 8192
    """Most new tokens per response and step [tokens]; None generates every response to its end."""


@dataclass(frozen=True)
class Advantage:
    """How tokens of the newest window get their advantage."""

    estimator: Literal["egae", "gae"] = "egae"
    """egae bootstraps a response that the window cut; gae takes every response to be terminal at its last token."""
    boundary: Literal["repeat", "critic", "terminal"] = "repeat"
    """egae only. What stands for V(s_l) at the cut: V(s_{l-1}) (the paper), the critic's own V(s_l), or zero."""
    gamma: Annotated[float, Range(0, 1)] = 1.0
    """Discount."""
    lam: Annotated[float, Range(0, 1)] | None = None
    """Fixed lambda; None adapts it to the length."""
    lam_alpha: Annotated[float, Range(0, above=True)] = 0.05
    """Length-adaptive lambda: 1 - 1/(alpha * length)."""
    lam_min: Annotated[float, Range(0, 1)] = 0.95
    """Length-adaptive lambda is never below this."""
    whiten: bool = True
    """Centre and scale the advantages of the tokens that train."""
    clamp: Annotated[float, Range(0, above=True)] | None = 10.0
    """Largest size of an advantage after whitening; None is off."""
    bias: Annotated[float, Range()] = 0.0
    """Added to the advantage of every token that trains."""


@dataclass(frozen=True)
class TokenFilter:
    """Which tokens train the policy."""

    train_on: Literal["window", "finished"] = "window"
    """window: this window's tokens of every response, each token in one step. finished: a response waits for its end
    and then trains with all its tokens, the oldest of which max_response_tokens / window versions ago at most."""
    ignore_last: Annotated[int, Range(0, unit="tokens")] = 8
    """Tokens dropped before the cut of an unfinished window (m)."""


@dataclass(frozen=True)
class PolicyLoss:
    """The clipped surrogate and what is added to it."""

    clip_low: Annotated[float, Range(0, 1)] = 0.2
    """Ratio is clipped below at 1 - clip_low."""
    clip_high: Annotated[float, Range(0)] = 0.28
    """Ratio is clipped above at 1 + clip_high."""
    dual_clip: Annotated[float, Range(1, above=True)] | None = 10.0
    """Bound c of the loss for negative advantages; None is off."""
    importance_cap: Annotated[float, Range(0, above=True)] | None = None
    """Truncated importance sampling: weigh tokens by min(pi_old / pi_behaviour, cap) for an engine that computes other
    log-probs than the trainer; None is off."""
    aggregation: Aggregation = "token-mean"
    """How token losses become one number."""
    old_logprobs: Literal["recompute", "behaviour"] = "recompute"
    """Centre of the ratio: the trainer's policy at the start of the step, or the policy that sampled the token. They
    differ beyond round-off only where tokens wait for the end of their response."""
    constant_length: Annotated[int, Range(1, unit="tokens")] | None = None
    """Normaliser per response, for aggregation 'constant' only."""
    lm_coef: Annotated[float, Range(0)] = 0.1
    """Weight of the negative log-likelihood of responses with positive reward (mu)."""
    entropy_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the entropy bonus."""
    kl_coef: Annotated[float, Range(0)] = 0.0
    """Weight of the KL penalty towards the initial policy; above zero a frozen copy is kept."""
    kl_kind: Literal["k1", "k2", "k3", "abs"] = "k3"
    """KL estimator of the penalty."""


@dataclass(frozen=True)
class ValueTarget:
    """What the critic is trained on."""

    responses: Literal["finished", "all"] = "finished"
    """finished: all tokens of responses that finished in this step. all: also this window's tokens of the unfinished,
    towards lambda-returns that bootstrap at the cut as the advantage does."""
    lam: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of the value target; 1 is Monte-Carlo."""
    clip_low: Annotated[float, Range(0)] | None = 0.5
    """A value may fall this far below its old value before its gradient stops; None is off."""
    clip_high: Annotated[float, Range(0)] | None = 0.6
    """The same above."""
    old_values: Literal["recompute", "stored"] = "recompute"
    """Clip centre of earlier windows: values under the critic at the start of the step, or those stored at sampling."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How token losses become one number."""
    warmup_steps: Annotated[int, Range(0, unit="steps")] = 10
    """Steps at the start in which only the critic trains."""


@dataclass(frozen=True)
class Algorithm:
    """One algorithm: five choices."""

    name: str = "tppo"
    """For reports."""
    schedule: Schedule = field(default_factory=Schedule)
    advantage: Advantage = field(default_factory=Advantage)
    filter: TokenFilter = field(default_factory=TokenFilter)
    policy_loss: PolicyLoss = field(default_factory=PolicyLoss)
    value_target: ValueTarget = field(default_factory=ValueTarget)
