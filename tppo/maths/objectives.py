"""Per-token losses and the sums that make a batch loss of them.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response; `offsets` int64 [S+1] as in
`tppo.maths.advantages`. A mask `keep_N` is boolean, True for tokens that train.

A batch loss is  sum of `aggregate_sum` / max(sum of `aggregate_count`, 1),  both sums over all micro-batches and
ranks. The caller divides once, so how the responses were split changes neither loss nor gradient.

A token with a NaN, an infinite advantage, value or target gets loss NaN and no gradient. Kept, it makes the loss NaN
and is seen; dropped, it leaves no trace. (Its zero gradient times NaN would otherwise be NaN, not 0.)
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tppo.maths.advantages import Segments, check_flags, check_like, segments

Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant"]
AGGREGATIONS: tuple[str, ...] = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "constant")
KLKind = Literal["k1", "k2", "k3", "abs"]
LOG_RATIO_LIMIT = 20.0  # exp(20) is far outside every clip range and squares without overflow in float32.


class PPOTerms(NamedTuple):
    """What `ppo_loss` knows of every token."""

    loss_N: Tensor  # carries the gradient
    ratio_N: Tensor  # pi / pi_old, no gradient
    clipped_N: Tensor  # bool: the clip range binds, gradient 0
    dual_clipped_N: Tensor  # bool: the dual clip binds, gradient 0


class ValueTerms(NamedTuple):
    """What `value_loss` knows of every token."""

    loss_N: Tensor  # carries the gradient
    clipped_N: Tensor  # bool: the clip range binds, gradient 0


def _check_range(name: str, found: float | None) -> None:
    if found is not None and not found >= 0:
        raise ValueError(f"{name}: found {found}, expected the width of the range on its side, 0 or more")


def ppo_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> PPOTerms:
    """The clipped surrogate, to be minimised (PPO, arXiv 1707.06347).

        rho  = exp(clamp(log pi - log pi_old, -20, 20))
        loss = max(-rho A, -clip(rho, 1 - clip_low, 1 + clip_high) A)
        loss = min(loss, -c A)   where A < 0                            dual clip, arXiv 1912.09729

    clip_high > clip_low is clip-higher (DAPO, arXiv 2503.14476). At rho = 1 the gradient is -A grad log pi. It is 0
    exactly where A > 0 and rho > 1 + clip_high, where A < 0 and rho < 1 - clip_low, where A < 0 and rho > c, and beyond
    the limit of the log-ratio. On an edge of a clip range the unclipped side's gradient holds.

    The authors' port of T-PPO (arXiv 2506.15050) uses 0.2, 0.28, c = 10; the paper's values are unconfirmed. The port
    takes a KL estimate for the log-ratio, whose gradient vanishes at rho = 1; that is not PPO and not done here.

    Args:
        logprobs_N: log pi of the sampled tokens; the only input with a gradient.
        old_logprobs_N: log pi_old, from the start of the step.
        advantages_N: A.
        clip_low, clip_high: >= 0.
        dual_clip: c > 1, or None for none.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or a range.

    >>> ratio = torch.tensor([1.5, 0.5, 5.0])
    >>> terms = ppo_loss(ratio.log(), torch.zeros(3), torch.tensor([1.0, -1.0, -1.0]),
    ...                  clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    >>> terms.loss_N
    tensor([-1.2800,  0.8000,  3.0000])
    """
    check_like("logprobs_N", logprobs_N, logprobs_N.numel(), what="token")
    check_like("old_logprobs_N", old_logprobs_N, logprobs_N, what="token")
    check_like("advantages_N", advantages_N, logprobs_N, what="token")
    _check_range("clip_low", clip_low)
    _check_range("clip_high", clip_high)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip: found {dual_clip}, expected a number above 1, or None for none")
    log_ratio_N = logprobs_N - old_logprobs_N.detach()
    sound_N = ~log_ratio_N.isnan() & advantages_N.isfinite()
    gain_N = advantages_N.detach()
    # This selection, and not only the last one, keeps a NaN from the gradient: backwards it puts 0 for 0 times NaN.
    ratio_N = torch.where(sound_N, log_ratio_N, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()

    loss_N = -ratio_N * gain_N
    bounded_N = -ratio_N.detach().clamp(1 - clip_low, 1 + clip_high) * gain_N
    clipped_N = bounded_N > loss_N
    loss_N = torch.where(clipped_N, bounded_N, loss_N)
    if dual_clip is None:
        dual_clipped_N = torch.zeros_like(clipped_N)
    else:
        dual_clipped_N = (gain_N < 0) & (loss_N > -dual_clip * gain_N)
        loss_N = torch.where(dual_clipped_N, -dual_clip * gain_N, loss_N)
    loss_N = torch.where(sound_N, loss_N, torch.nan)
    return PPOTerms(loss_N, torch.where(sound_N, ratio_N.detach(), torch.nan), clipped_N, dual_clipped_N)


def truncated_importance_weights(old_logprobs_N: Tensor, behaviour_logprobs_N: Tensor, *, cap: float) -> Tensor:
    """Truncated importance sampling, for an engine whose log-probs differ from the trainer's (Yao et al. 2025).

        w_t = min( pi_old(y_t) / pi_behaviour(y_t), C ),   a constant of the loss: L = agg( w_t * l_t )

    pi_old is the trainer's policy at the start of the step and stays the centre of the ratio, so nothing is counted
    twice. The cap bounds the variance and biases the estimate. Shapes [N]; no gradient.

    >>> truncated_importance_weights(torch.tensor([0.0, 0.0]), torch.tensor([-2.0, 1.0]), cap=2.0)
    tensor([2.0000, 0.3679])
    """
    if not cap > 0:
        raise ValueError(f"cap: found {cap}, expected a number above 0")
    return (old_logprobs_N - behaviour_logprobs_N).detach().exp().clamp(max=cap)


def value_loss(
    values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, *, clip_low: float | None, clip_high: float | None
) -> ValueTerms:
    """Squared error, pessimistic inside a trust range around the old value (the PPO value clip).

        V_c  = clip(V, V_old - clip_low, V_old + clip_high)
        loss = max((V - G)^2, (V_c - G)^2) / 2

    The gradient is V - G, and 0 exactly where V has left the range and the clipped error is the larger one, that is
    where V has moved past the edge towards G. A stale V_old therefore freezes tokens. The range -0.5, +0.6 is that of
    the authors' port of T-PPO (arXiv 2506.15050); the paper's is unconfirmed.

    Args:
        values_N: V; the only input with a gradient.
        old_values_N: V_old, read only where a side is clipped.
        returns_N: G.
        clip_low, clip_high: >= 0, or None for an open side.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or a range.

    >>> v, old, target = torch.tensor([0.9, 0.5]), torch.tensor([0.2, 0.2]), torch.tensor([1.0, 1.0])
    >>> value_loss(v, old, target, clip_low=0.5, clip_high=0.6).loss_N
    tensor([0.0200, 0.1250])
    """
    check_like("values_N", values_N, values_N.numel(), what="token")
    check_like("old_values_N", old_values_N, values_N, what="token")
    check_like("returns_N", returns_N, values_N, what="token")
    _check_range("clip_low", clip_low)
    _check_range("clip_high", clip_high)
    off = clip_low is None and clip_high is None
    sound_N = values_N.isfinite() & returns_N.isfinite()
    if not off:
        sound_N &= old_values_N.isfinite()
    target_N = returns_N.detach()
    value_N = torch.where(sound_N, values_N, 0.0)  # Backwards it puts 0 for 0 times NaN.

    loss_N = 0.5 * (value_N - target_N).square()
    clipped_N = torch.zeros_like(sound_N)
    if not off:
        centre_N = old_values_N.detach()
        lowest_N = None if clip_low is None else centre_N - clip_low
        highest_N = None if clip_high is None else centre_N + clip_high
        bounded_N = 0.5 * (torch.clamp(value_N.detach(), lowest_N, highest_N) - target_N).square()
        clipped_N = sound_N & (bounded_N > loss_N)
        loss_N = torch.where(clipped_N, bounded_N, loss_N)
    return ValueTerms(torch.where(sound_N, loss_N, torch.nan), clipped_N)


def lm_loss(logprobs_N: Tensor) -> Tensor:
    """Negative log-likelihood -log pi(y_t) of positive examples (VAPO, arXiv 2504.05118).

    The caller keeps all tokens of finished responses with a positive reward, aggregates with "token-mean" over their
    own count, and adds mu times the result. Whether the T-PPO paper (arXiv 2506.15050) uses it is unconfirmed; the
    authors' port does, with mu = 0.1.

    Raises:
        ValueError: on a wrong rank.

    >>> lm_loss(torch.tensor([-0.5, -2.0]))
    tensor([0.5000, 2.0000])
    """
    check_like("logprobs_N", logprobs_N, logprobs_N.numel(), what="token")
    return -logprobs_N


def kl_estimate(logprobs_N: Tensor, other_N: Tensor, *, kind: KLKind) -> Tensor:
    """One-sample estimates of KL(pi || other) from tokens of pi, with d = log pi - log other clamped to +-20.

        k1 = d     abs = |d|     k2 = d^2 / 2     k3 = exp(-d) + d - 1

    k1 and k3 are unbiased under pi, k3 is never negative. The authors' port of T-PPO (arXiv 2506.15050) sets both KL
    coefficients to 0. Gradients flow into `logprobs_N` only.

    Args:
        logprobs_N: log pi.
        other_N: log-probs of the same tokens under the other policy.
        kind: "k1", "k2", "k3" or "abs".

    Raises:
        ValueError: on a wrong rank, a shape mismatch or an unknown kind.

    >>> kl_estimate(torch.tensor([-1.0]), torch.tensor([-1.1]), kind="k3")
    tensor([0.0048])
    """
    check_like("logprobs_N", logprobs_N, logprobs_N.numel(), what="token")
    check_like("other_N", other_N, logprobs_N, what="token")
    difference_N = logprobs_N - other_N.detach()
    sound_N = ~difference_N.isnan()
    d_N = torch.where(sound_N, difference_N, 0.0).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    match kind:
        case "k1":
            kl_N = d_N
        case "abs":
            kl_N = d_N.abs()
        case "k2":
            kl_N = 0.5 * d_N.square()
        case "k3":
            kl_N = torch.expm1(-d_N) + d_N
        case _:
            raise ValueError(f"kind: found {kind!r}, expected one of k1, k2, k3, abs")
    return torch.where(sound_N, kl_N, torch.nan)


def _kept_S(keep_N: Tensor, layout: Segments) -> Tensor:
    """n_i, the kept tokens of each response."""
    ends = torch.cat((layout.lengths_S.new_zeros(1), layout.lengths_S.cumsum(0)))
    upto = torch.cat((ends.new_zeros(1), keep_N.cumsum(0)))[ends]
    return upto.diff()


def _check_mode(mode: str) -> None:
    if mode not in AGGREGATIONS:
        raise ValueError(f"mode: found {mode!r}, expected one of {', '.join(AGGREGATIONS)}")


def aggregate_sum(loss_N: Tensor, keep_N: Tensor, offsets: Tensor, *, mode: Aggregation) -> Tensor:
    """The numerator of the batch loss; see `aggregate_count` for the whole.

    A dropped token adds exactly 0 to the sum and to the gradient, whatever its entry is.

    Raises:
        ValueError: on a wrong rank, a shape mismatch, malformed offsets or an unknown mode.

    >>> loss, keep = torch.tensor([1.0, 3.0, 10.0]), torch.tensor([True, True, True])
    >>> aggregate_sum(loss, keep, torch.tensor([0, 2, 3]), mode="seq-mean-token-mean")
    tensor(12.)
    """
    _check_mode(mode)
    check_like("loss_N", loss_N, loss_N.numel(), what="token")
    check_flags("keep_N", keep_N, loss_N, what="token")
    layout = segments(offsets, loss_N)
    if mode == "seq-mean-token-mean":
        loss_N = loss_N / layout.spread(_kept_S(keep_N, layout).clamp(min=1))
    return torch.where(keep_N, loss_N, 0.0).sum()


def aggregate_count(
    keep_N: Tensor, offsets: Tensor, *, mode: Aggregation, constant_length: float | None = None
) -> Tensor:
    """The denominator of the batch loss, additive over micro-batches. loss = sum / max(count, 1).

    With n_i kept tokens in response i, and B the number of responses with n_i > 0:

        mode                   aggregate_sum                       count
        token-mean             sum over kept tokens                sum_i n_i
        seq-mean-token-mean    sum_i (1/n_i) sum over its tokens   B
        seq-mean-token-sum     sum over kept tokens                B
        constant               sum over kept tokens                B constant_length

    A response without a kept token is in neither. Count 0 goes with sum 0, so the loss is 0 and its gradient zero.
    T-PPO (arXiv 2506.15050) averages its loss over the batch; over tokens or over responses is unconfirmed.

    Returns:
        A float64 scalar: float32 cannot count beyond 2^24 tokens.

    Raises:
        ValueError: on a shape mismatch, malformed offsets, an unknown mode, or "constant" without a positive length.

    >>> keep = torch.tensor([True, True, False])
    >>> aggregate_count(keep, torch.tensor([0, 2, 3]), mode="seq-mean-token-mean")
    tensor(1., dtype=torch.float64)
    """
    _check_mode(mode)
    check_flags("keep_N", keep_N, keep_N.numel(), what="token")
    if mode == "constant" and not (constant_length is not None and constant_length > 0):
        raise ValueError(
            f'constant_length: found {constant_length}, expected a length above 0; mode="constant" reads it'
        )
    layout = segments(offsets, keep_N)
    if mode == "token-mean":
        return keep_N.sum().double()
    responses = (_kept_S(keep_N, layout) > 0).sum().double()
    return responses * constant_length if mode == "constant" and constant_length else responses
