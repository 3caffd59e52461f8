"""What the critic is trained on, and its loss.

Shapes: `_N` one entry per token, all responses end to end; `offsets` int64 [S+1] as in `tppo.maths.ragged`.

Sources: TD(lambda) targets are those of GAE, arXiv 1506.02438; VAPO is arXiv 2504.05118 and T-PPO arXiv 2506.15050.

Targets are data for a loss, so none of them carries a gradient. A token whose value or target is not finite gets loss
NaN and no gradient, as in `tppo.maths.objectives`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tppo.maths.advantages import Boundary, egae, gae
from tppo.maths.ragged import check_flat_float, check_like, check_unit, check_width, decayed_suffix_sums, segments


class ValueTerms(NamedTuple):
    """What `value_loss` knows of every token."""

    loss_N: Tensor  # carries the gradient
    clipped_N: Tensor  # bool: the clip range binds, gradient 0


@torch.no_grad()
def discounted_returns(rewards_N: Tensor, offsets: Tensor, *, gamma: float) -> Tensor:
    """Monte-Carlo value targets, G_t = sum_{j>=t} gamma^(j-t) r_j, hence G_t = r_t + gamma G_{t+1}.

    The sum runs to the end of the response over all its windows, so the caller passes whole, finished responses.
    T-PPO trains its critic on finished responses only. That the targets are Monte-Carlo (lambda = 1) is confirmed for
    the authors' port and for VAPO (arXiv 2504.05118), not for the T-PPO paper. The port leaves gamma out.

    Args:
        rewards_N: token rewards of whole responses, float32 or float64.
        offsets: int64 [S+1].
        gamma: discount, in [0, 1].

    Raises:
        ValueError: on a wrong rank, dtype or range.

    >>> discounted_returns(torch.tensor([0.0, 0.0, 1.0, 1.0]), torch.tensor([0, 3, 4]), gamma=0.5)
    tensor([0.2500, 0.5000, 1.0000, 1.0000])
    """
    check_flat_float("rewards_N", rewards_N)
    check_unit("gamma", gamma)
    return decayed_suffix_sums(rewards_N.clone(), float(gamma), segments(offsets, rewards_N))


def lambda_returns(
    rewards_N: Tensor, values_N: Tensor, offsets: Tensor, *, gamma: float, lam: float | Tensor
) -> Tensor:
    """Value targets of ended responses by TD(lambda): G_t = A_t + V_t with A of `gae`.

    G_t is the lambda-average of the n-step returns. lam = 1 gives `discounted_returns`, lam = 0 r_t + gamma V_{t+1}.
    Args, shapes, result and errors are those of `egae`.

    >>> rewards, values = torch.tensor([0.0, 1.0]), torch.tensor([0.2, 0.4])
    >>> lambda_returns(rewards, values, torch.tensor([0, 2]), gamma=1.0, lam=0.0)
    tensor([0.4000, 1.0000])
    """
    return gae(rewards_N, values_N, offsets, gamma=gamma, lam=lam).add_(values_N.detach())


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
    check_width("clip_low", clip_low)
    check_width("clip_high", clip_high)
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


def bootstrapped_returns(
    rewards_N: Tensor,
    values_N: Tensor,
    offsets: Tensor,
    finished_S: Tensor,
    *,
    gamma: float,
    lam: float | Tensor,
    boundary: Boundary = "repeat",
    cut_values_S: Tensor | None = None,
) -> Tensor:
    """Value targets of windows that may be cut: G_t = A_t + V_t with A of `egae`.

    The lambda-average of the n-step returns, of which the longest bootstraps with V(s_l), chosen by ``boundary``. Args,
    shapes, result and errors are those of `egae`.

    >>> rewards, values, cut = torch.zeros(2), torch.tensor([0.2, 0.4]), torch.tensor([False])
    >>> bootstrapped_returns(rewards, values, torch.tensor([0, 2]), cut, gamma=1.0, lam=1.0)
    tensor([0.4000, 0.4000])
    """
    advantages_N = egae(
        rewards_N, values_N, offsets, finished_S, gamma=gamma, lam=lam, boundary=boundary, cut_values_S=cut_values_S
    )
    return advantages_N + values_N.detach()


def explained_variance(values: Tensor, targets: Tensor) -> float | None:
    """1 - Var(target - V) / Var(target); None for fewer than two tokens or targets that do not vary.

    >>> explained_variance(torch.tensor([0.0, 1.0]), torch.tensor([0.0, 1.0]))
    1.0
    """
    if len(targets) < 2:
        return None
    spread = targets.double().var()
    return None if spread == 0 else float(1 - (targets.double() - values.double()).var() / spread)
