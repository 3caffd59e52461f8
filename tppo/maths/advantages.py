"""Advantages of ragged batches.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response; `offsets` int64 [S+1] as in
`tppo.maths.ragged`. An empty response has no advantage.

Sources: T-PPO is arXiv 2506.15050, GAE arXiv 1506.02438, the length-adaptive lambda arXiv 2504.05118 (VAPO). Of the
T-PPO paper only the abstract and Eq. 6 (through a published review) were available when this was written. What rests
on less says so.

Advantages are data for a loss, so none of them carries a gradient.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tppo.maths.ragged import (
    Segments,
    check_flags,
    check_flat_float,
    check_like,
    check_unit,
    decayed_suffix_sums,
    segments,
)

Boundary = Literal["repeat", "critic", "terminal"]
BOUNDARIES: tuple[str, ...] = get_args(Boundary)


@torch.no_grad()
def egae(
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
    """Extended generalized advantage estimation: GAE that knows cut from ended (T-PPO, Eq. 6).

    For the window of response i, tokens 0 <= t < l, with c_i = gamma lam_i:

        delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        A_t     = sum_{j=0}^{l-1-t} c_i^j delta_{t+j}     hence  A_t = delta_t + c_i A_{t+1},  A_l = 0

    and only V(s_l) depends on how the window ended:

        finished                        V(s_l) = 0             the response has no future
        unfinished, boundary="repeat"   V(s_l) = V(s_{l-1})    the paper's assumption V(s_l) ~ V(s_{l-1})
        unfinished, boundary="critic"   V(s_l) = cut_values_S  the critic at the last generated token; not in the paper
        unfinished, boundary="terminal" V(s_l) = 0             cutting mistaken for ending; for comparison only

    With "repeat", gamma = 1 and no reward, A_{l-1} = 0 and a constant critic gives zero advantages. "repeat" and
    "critic" differ by c_i^(l-1-t) gamma (V(s_{l-1}) - V(s_l)), which fades away from the cut.

    How Eq. 6 treats gamma != 1 and the reward r_{l-1} of a cut window is unconfirmed; here both follow from delta.
    The length cap is part of the task, so a response that reached it counts as finished (paper: unconfirmed).

    Args:
        rewards_N: token rewards of this window, float32 or float64.
        values_N: V(s_t), read before token t is known; same dtype.
        offsets: int64 [S+1].
        finished_S: bool; ended by itself or by the cap on the total length.
        gamma: discount, in [0, 1].
        lam: lambda in [0, 1], one number or one per response.
        boundary: V(s_l) of unfinished windows, see above.
        cut_values_S: V(s_l); read with boundary="critic" only, and there for unfinished responses only.

    Returns:
        Advantages [N], in the dtype of `values_N`.

    Raises:
        ValueError: on a wrong rank, shape, dtype or range, an unknown boundary, or "critic" without `cut_values_S`.

    >>> values = torch.tensor([0.2, 0.4, 0.5, 0.7])
    >>> egae(torch.zeros(4), values, torch.tensor([0, 4]), torch.tensor([False]), gamma=1.0, lam=0.95)
    tensor([0.4755, 0.2900, 0.2000, 0.0000])
    """
    layout, decay = _checked(rewards_N, values_N, offsets, finished_S, gamma, lam, boundary, cut_values_S)
    if values_N.shape[0] == 0:
        return values_N.clone()

    last_S = offsets[1:] - 1
    cut_S = torch.zeros_like(finished_S, dtype=values_N.dtype)
    if boundary == "repeat":
        cut_S = values_N[last_S.clamp(min=0)]
    elif boundary == "critic" and cut_values_S is not None:
        cut_S = cut_values_S.to(values_N.dtype)
    # Entry N takes what empty responses write; indexing with a condition instead would wait for the device.
    next_N = values_N.new_empty(values_N.shape[0] + 1)
    next_N[:-2] = values_N[1:]
    next_N.scatter_(0, last_S.masked_fill(layout.lengths_S == 0, values_N.shape[0]), cut_S.masked_fill(finished_S, 0.0))
    delta_N = torch.add(rewards_N, next_N[:-1], alpha=gamma).sub_(values_N)
    return decayed_suffix_sums(delta_N, decay, layout)


def _checked(
    rewards_N: Tensor,
    values_N: Tensor,
    offsets: Tensor,
    finished_S: Tensor,
    gamma: float,
    lam: float | Tensor,
    boundary: str,
    cut_values_S: Tensor | None,
) -> tuple[Segments, float | Tensor]:
    """Checks the arguments of `egae`; returns where the responses lie, and c = gamma lam."""
    check_flat_float("values_N", values_N)
    check_like("rewards_N", rewards_N, values_N, what="token")
    check_flags("finished_S", finished_S, max(offsets.numel() - 1, 0), what="response")
    check_unit("gamma", gamma)
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary: found {boundary!r}, expected one of {', '.join(BOUNDARIES)}")
    if boundary == "critic":
        if cut_values_S is None:
            raise ValueError('cut_values_S: found None, expected V(s_l) of every response; boundary="critic" reads it')
        check_like("cut_values_S", cut_values_S, finished_S, what="response")
    if isinstance(lam, Tensor) and lam.ndim:
        check_like("lam", lam, finished_S, what="response")
        return segments(offsets, values_N, lam_S=lam), gamma * lam.double()
    check_unit("lam", float(lam))
    return segments(offsets, values_N), gamma * float(lam)


def gae(rewards_N: Tensor, values_N: Tensor, offsets: Tensor, *, gamma: float, lam: float | Tensor) -> Tensor:
    """Generalized advantage estimation of ended responses: `egae` with every response finished (arXiv 1506.02438).

        delta_t = r_t + gamma V_{t+1} - V_t,   V_l = 0;     A_t = delta_t + gamma lam A_{t+1},   A_l = 0

    Args, shapes, result and errors are those of `egae`.

    >>> rewards, values = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0.2, 0.4, 0.5, 0.7])
    >>> gae(rewards, values, torch.tensor([0, 4]), gamma=1.0, lam=1.0)
    tensor([0.8000, 0.6000, 0.5000, 0.3000])
    """
    finished_S = torch.ones(max(offsets.numel() - 1, 0), dtype=torch.bool, device=offsets.device)
    return egae(rewards_N, values_N, offsets, finished_S, gamma=gamma, lam=lam, boundary="terminal")


def length_adaptive_lambda(
    lengths_S: Tensor,
    finished_S: Tensor,
    *,
    alpha: float,
    lam_min: float,
    window: int,
    max_length: int,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """One lambda per response, longer memory for longer responses.

        lam_i = max(lam_min, 1 - 1 / (alpha L_i))
        L_i   = length                                     finished
        L_i   = min(length + window / 2, max_length)       unfinished: half a window more is expected

    From sum_t lam^t ~ 1 / (1 - lam) = alpha L (VAPO, arXiv 2504.05118). The floor and the guess for unfinished
    responses are those of the authors' port of T-PPO; the paper's own form is unconfirmed. The cap at max_length is
    ours. Without a floor L < 1 / alpha would make lambda negative. An empty response gets lam_min.

    `lengths_S` counts the tokens so far over all windows. alpha > 0, lam_min in [0, 1], window and max_length >= 1;
    anything else, or a wrong shape, raises ValueError.

    >>> length_adaptive_lambda(torch.tensor([400, 8192, 8192]), torch.tensor([True, True, False]),
    ...                        alpha=0.05, lam_min=0.95, window=8192, max_length=24576)
    tensor([0.9500, 0.9976, 0.9984], dtype=torch.float64)
    """
    if lengths_S.ndim != 1:
        raise ValueError(f"lengths_S: found shape {tuple(lengths_S.shape)}, expected [S]")
    check_flags("finished_S", finished_S, lengths_S, what="response")
    check_unit("lam_min", lam_min)
    if not alpha > 0:
        raise ValueError(f"alpha: found {alpha}, expected a number above 0")
    if window < 1 or max_length < 1:
        raise ValueError(f"window, max_length: found {window} and {max_length}, expected at least 1 token each")
    so_far_S = lengths_S.double()
    expected_S = torch.where(finished_S, so_far_S, (so_far_S + window / 2).clamp(max=max_length))
    return (1 - 1 / (alpha * expected_S)).clamp(min=lam_min).to(dtype)
