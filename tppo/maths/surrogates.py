"""Policy losses other than the clipped one: a weight, a gate, a square.

At the policy that the ratio is centred on all of them have the gradient -A grad log pi (Kimi's square up to 2 tau), so
what a first update does is decided by advantage and aggregation alone. Away from it they differ in the weight of the
gradient, -d loss / d log pi = w(rho, sign A) A. Shapes and NaN as in `tppo.maths.objectives`: a token whose advantage,
weight or ratio is not finite gets loss NaN and no gradient, so that dropped it leaves no trace.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tppo.maths.objectives import LOG_RATIO_LIMIT
from tppo.maths.ragged import check_like


def weighted_loss(logprobs_N: Tensor, advantages_N: Tensor, weight_N: Tensor | float = 1.0) -> Tensor:
    """-w A log pi, with w and A constants (CISPO, arXiv 2506.13585; with w = 1 REINFORCE and RAFT).

    The gradient is -w A grad log pi wherever the policy is: a weight that is clamped never stops a token.

    Raises:
        ValueError: on a wrong rank or a shape mismatch.

    >>> weighted_loss(torch.tensor([-0.5, -2.0]), torch.tensor([1.0, -1.0]), torch.tensor([1.2, 0.5]))
    tensor([ 0.6000, -1.0000])
    """
    check_like("logprobs_N", logprobs_N, logprobs_N.numel(), what="token")
    check_like("advantages_N", advantages_N, logprobs_N, what="token")
    if isinstance(weight_N, Tensor):
        check_like("weight_N", weight_N, logprobs_N, what="token")
        weight_N = weight_N.detach()
    pull_N = weight_N * advantages_N.detach()
    sound_N = pull_N.isfinite()
    return torch.where(sound_N, -torch.where(sound_N, pull_N, 0.0) * logprobs_N, torch.nan)


def gate_loss(log_ratio_N: Tensor, advantages_N: Tensor, *, tau_positive: float, tau_negative: float) -> Tensor:
    """The soft gate of SAPO (arXiv 2511.20347): the clip's flat ends replaced by a sigmoid's.

        loss = -A (4 / tau) sigmoid(tau (rho - 1)),   tau = tau_positive where A > 0, else tau_negative

    w(rho) = 4 sigma (1 - sigma) rho is 1 at rho = 1 and dies away on both sides.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or a tau that is not above 0.

    >>> gate_loss(torch.tensor([1.5]).log(), torch.tensor([1.0]), tau_positive=1.0, tau_negative=1.05)
    tensor([-2.4898])
    """
    check_like("log_ratio_N", log_ratio_N, log_ratio_N.numel(), what="token")
    check_like("advantages_N", advantages_N, log_ratio_N, what="token")
    for name, tau in (("tau_positive", tau_positive), ("tau_negative", tau_negative)):
        if not tau > 0:
            raise ValueError(f"{name}: found {tau}, expected a number above 0")
    gain_N, d_N, sound_N = _sound(advantages_N, log_ratio_N, ~log_ratio_N.isnan())
    tau_N = torch.full_like(d_N, tau_negative).masked_fill(gain_N > 0, tau_positive)
    ratio_N = d_N.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
    return torch.where(sound_N, -gain_N * (4 / tau_N) * torch.sigmoid(tau_N * (ratio_N - 1)), torch.nan)


def square_loss(log_ratio_N: Tensor, advantages_N: Tensor, *, tau: float) -> Tensor:
    """Kimi k1.5's square (arXiv 2501.12599): (A - tau log rho)^2, with log rho the sum over the response.

    The gradient is -2 tau (A - tau log rho) grad log rho. It is 0 at rho = exp(A / tau), the optimum under a KL penalty
    of weight tau towards the centre.

    Args:
        log_ratio_N: of the whole response, as `tppo.maths.weights.levelled` gives it with "product".
        tau: above 0.

    Raises:
        ValueError: on a wrong rank, a shape mismatch or a tau that is not above 0.

    >>> square_loss(torch.tensor([0.24]), torch.tensor([0.5]), tau=0.1)
    tensor([0.2266])
    """
    check_like("log_ratio_N", log_ratio_N, log_ratio_N.numel(), what="token")
    check_like("advantages_N", advantages_N, log_ratio_N, what="token")
    if not tau > 0:
        raise ValueError(f"tau: found {tau}, expected a number above 0")
    gain_N, d_N, sound_N = _sound(advantages_N, log_ratio_N, log_ratio_N.isfinite())
    return torch.where(sound_N, (gain_N - tau * d_N).square(), torch.nan)


def _sound(advantages_N: Tensor, log_ratio_N: Tensor, sound_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Advantages (constants) and log-ratios, both 0 where either will not do, and where they will, bool [N].

    Selected before they are used, and not only after: backwards a selection puts 0 for 0 times NaN.
    """
    sound_N = sound_N & advantages_N.isfinite()
    return torch.where(sound_N, advantages_N.detach(), 0.0), torch.where(sound_N, log_ratio_N, 0.0), sound_N
