"""Token losses of the policy.

Shapes: `_N` one entry per token, all responses end to end. `tppo.maths.aggregate` makes one loss of them.

A token with a NaN or an infinite advantage gets loss NaN and no gradient. Kept, it makes the loss NaN and is seen;
dropped, it leaves no trace. (Its zero gradient times NaN would otherwise be NaN, not 0.)
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from tppo.maths.ragged import check_like, check_width

KLKind = Literal["k1", "k2", "k3", "abs"]
LOG_RATIO_LIMIT = 20.0  # exp(20) is far outside every clip range and squares without overflow in float32.


class PPOTerms(NamedTuple):
    """What `ppo_loss` knows of every token."""

    loss_N: Tensor  # carries the gradient
    ratio_N: Tensor  # pi / pi_old, no gradient
    clipped_N: Tensor  # bool: the clip range binds, gradient 0
    dual_clipped_N: Tensor  # bool: the dual clip binds, gradient 0


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
    check_width("clip_low", clip_low)
    check_width("clip_high", clip_high)
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
            raise ValueError(f"kind: found {kind!r}, expected one of {', '.join(get_args(KLKind))}")
    return torch.where(sound_N, kl_N, torch.nan)
