"""Weights and masks from two policies' log-probabilities: corrections, caps and trust regions, one function each.

Shapes: `_N` one entry per token, all responses end to end; `offsets` int64 [S+1] as in `tppo.maths.ragged`. A mask
`keep_N` is boolean, True for tokens that train; a level above the token looks at these only.

What other systems have as a branch each is a value here:

    truncated importance sampling (Yao et al. 2025)         Weight(0, 2)
    IcePop                                                  Weight(0.5, 5, outside="zero")
    sequence mask (verl)                                    Weight(0.999, 1.002, outside="zero", level="mean")
    decoupled PPO (arXiv 2110.00641, 2505.24298)            Weight(0, inf) on pi_old / pi_behaviour
    CISPO (arXiv 2506.13585), ScaleRL (arXiv 2510.13786)    Weight(0, 1.2), Weight(0, 5)
    SAO (arXiv 2607.07508)                                  Weight(0.7, 6, outside="zero")
    TOPR (arXiv 2503.14286), wrong responses                Weight(0, 1, level="product")
    no ratio at all: RAFT, REINFORCE, OPO                   Weight(1, 1)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from tppo.maths.objectives import LOG_RATIO_LIMIT
from tppo.maths.ragged import Segments, check_flags, check_like, segments

Level = Literal["token", "mean", "product"]
"""Of a ratio: each token's own, the geometric mean of the response's tokens, or their product."""
Outside = Literal["clamp", "zero"]
"""Of a ratio outside a range: the nearer end, or 0."""
Distance = Literal["tv", "kl"]
"""Of a token's two probabilities: |pi - mu|, or the Bernoulli KL(mu || pi) against all other tokens [nats]."""


def _check_choice(name: str, found: str, choices: Any) -> None:
    if found not in get_args(choices):
        raise ValueError(f"{name}: found {found!r}, expected one of {', '.join(get_args(choices))}")


@dataclass(frozen=True)
class Weight:
    """How a ratio becomes a weight: as it is within [low, high], outside it clamped or zero."""

    low: float = 0.0
    """Smallest ratio."""
    high: float = float("inf")
    """Largest ratio, absolute (not 1 + epsilon)."""
    outside: Outside = "clamp"
    """What a ratio beyond them becomes."""
    level: Level = "token"

    def __post_init__(self) -> None:
        _check_choice("outside", self.outside, Outside)
        _check_choice("level", self.level, Level)
        if not 0 <= self.low <= self.high:
            raise ValueError(f"Weight: found low {self.low}, high {self.high}, expected 0 <= low <= high")


@dataclass(frozen=True)
class Trust:
    """How far from the sampling policy a token may still be pushed (DPPO, arXiv 2602.04879)."""

    low: float
    """Bound on the side of a falling probability (A < 0)."""
    high: float
    """Bound on the side of a rising probability (A > 0)."""
    kind: Distance = "tv"
    """What is bounded."""

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, Distance)
        if not (self.low >= 0 and self.high >= 0):
            raise ValueError(f"Trust: found low {self.low}, high {self.high}, expected 0 or more")


def _row_sum(x_N: Tensor, keep_N: Tensor, layout: Segments) -> Tensor:
    """Sum over the kept tokens of each response [S]. Carries the gradient."""
    rows = torch.repeat_interleave(
        torch.arange(len(layout.lengths_S), device=x_N.device), layout.lengths_S, output_size=x_N.shape[0]
    )
    return x_N.new_zeros(len(layout.lengths_S)).index_add(0, rows, torch.where(keep_N, x_N, 0.0))


def levelled(log_ratio_N: Tensor, keep_N: Tensor, offsets: Tensor, *, level: Level) -> Tensor:
    """The log-ratio of each token at a level: its own, or the mean or the sum over its response's kept tokens.

        token    d_t        mean    (1/n_i) sum_t d_t  (GSPO, arXiv 2507.18071)        product    sum_t d_t

    Repeated for each token of the response, so under "seq-mean-token-mean" a loss of the repeated ratio is the loss of
    the response. Carries the gradient: that of the mean reaches each kept token with 1/n_i.

    Raises:
        ValueError: on a wrong rank, a shape mismatch, malformed offsets or an unknown level.

    >>> d = torch.tensor([0.1, 0.3, 5.0])
    >>> levelled(d, torch.tensor([True, True, False]), torch.tensor([0, 3]), level="mean")
    tensor([0.2000, 0.2000, 0.2000])
    """
    _check_choice("level", level, Level)
    check_like("log_ratio_N", log_ratio_N, log_ratio_N.numel(), what="token")
    check_flags("keep_N", keep_N, log_ratio_N, what="token")
    if level == "token":
        return log_ratio_N
    layout = segments(offsets, log_ratio_N)
    sum_S = _row_sum(log_ratio_N, keep_N, layout)
    if level == "mean":
        sum_S = sum_S / _row_sum(torch.ones_like(log_ratio_N), keep_N, layout).clamp(min=1)
    return layout.spread(sum_S)


@torch.no_grad()
def weigh(log_ratio_N: Tensor, keep_N: Tensor, offsets: Tensor, weight: Weight) -> Tensor:
    """A constant weight for each token, from the log-ratio of two policies.

        w = exp(d) within [low, high];   outside: the nearer end, or 0       d at the weight's level, within +-20

    A NaN stays a NaN. Zeroing is not clamping: it takes the token's gradient away, the denominator of the loss keeps
    counting it.

    Returns:
        Weights [N], no gradient.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or malformed offsets.

    >>> d, keep = torch.tensor([0.3, 1.5, 6.5]).log(), torch.tensor([True, True, True])
    >>> weigh(d, keep, torch.tensor([0, 3]), Weight(0.5, 5.0))
    tensor([0.5000, 1.5000, 5.0000])
    >>> weigh(d, keep, torch.tensor([0, 3]), Weight(0.5, 5.0, outside="zero"))
    tensor([0.0000, 1.5000, 0.0000])
    """
    d_N = levelled(log_ratio_N.detach(), keep_N, offsets, level=weight.level)
    ratio_N = d_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    held_N = ratio_N.clamp(weight.low, weight.high)
    return held_N if weight.outside == "clamp" else torch.where((held_N == ratio_N) | ratio_N.isnan(), ratio_N, 0.0)


@torch.no_grad()
def trusted(logprobs_N: Tensor, behaviour_N: Tensor, advantages_N: Tensor, trust: Trust) -> Tensor:
    """Which tokens may still be pushed in the direction of their advantage (DPPO, arXiv 2602.04879), bool [N].

        tv    not (A > 0 and pi - mu > high)  and not (A < 0 and pi - mu < -low)
        kl    the same directions, where  mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))  exceeds the bound

    with pi, mu the probabilities of the sampled token. A clipped ratio says the opposite of rare and likely tokens:
    pi / mu = 2 is a change of 0.01 for a token of probability 0.01 and impossible for one of 0.9.

    Raises:
        ValueError: on a wrong rank or a shape mismatch.

    >>> now, then = torch.tensor([0.95, 0.5, 0.02]).log(), torch.tensor([0.6, 0.9, 0.01]).log()
    >>> trusted(now, then, torch.tensor([1.0, -1.0, 1.0]), Trust(0.15, 0.15))
    tensor([False, False,  True])
    """
    check_like("behaviour_N", behaviour_N, logprobs_N, what="token")
    check_like("advantages_N", advantages_N, logprobs_N, what="token")
    pi, mu = logprobs_N.double().exp(), behaviour_N.double().exp()
    if trust.kind == "tv":
        apart = (pi - mu).abs()
    else:
        apart = _bernoulli_kl(mu, pi)
    rising = (advantages_N > 0) & (pi > mu) & (apart > trust.high)
    falling = (advantages_N < 0) & (pi < mu) & (apart > trust.low)
    return ~(rising | falling)


def _bernoulli_kl(mu: Tensor, pi: Tensor) -> Tensor:
    """KL(mu || pi) of a coin [nats]; infinite where pi rules out what mu allows."""
    # 0 log (0 / 0) is 0 here.
    coin = [(mu, pi), (1 - mu, 1 - pi)]
    return torch.stack([torch.where(p == 0, 0.0, torch.xlogy(p, p / q)) for p, q in coin]).sum(0)


@torch.no_grad()
def on_policy_enough(
    log_ratio_N: Tensor, keep_N: Tensor, offsets: Tensor, advantages_N: Tensor, *, bound: float
) -> Tensor:
    """Off-policy sequence mask (DeepSeek-V3.2, arXiv 2512.02556), bool [N].

        False for every token with A < 0 of a response whose mean log(mu / pi) exceeds the bound

    Args:
        log_ratio_N: log pi - log mu, mu the policy that sampled.
        bound: delta > 0 [nats a token]; TRL suggests 0.5.

    Raises:
        ValueError: on a wrong rank, a shape mismatch, malformed offsets or a bound that is not above 0.

    >>> d, keep = torch.tensor([-0.9, -0.3, 0.1]), torch.tensor([True, True, True])
    >>> on_policy_enough(d, keep, torch.tensor([0, 2, 3]), torch.tensor([-1.0, -1.0, -1.0]), bound=0.5)
    tensor([False, False,  True])
    """
    if not bound > 0:
        raise ValueError(f"bound: found {bound}, expected a number above 0")
    check_like("advantages_N", advantages_N, log_ratio_N, what="token")
    away_N = -levelled(log_ratio_N.detach(), keep_N, offsets, level="mean")
    return ~((advantages_N < 0) & (away_N > bound))
