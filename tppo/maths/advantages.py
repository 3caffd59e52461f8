"""Advantages and value targets of ragged batches.

Shapes: `_N` one entry per token, all responses end to end; `_S` one entry per response. `offsets` is an int64 tensor
[S+1]: response i holds the tokens offsets[i] <= t < offsets[i+1]. A response may be empty; it then has no advantage.

Sources: T-PPO is arXiv 2506.15050, GAE arXiv 1506.02438, the length-adaptive lambda arXiv 2504.05118 (VAPO). Of the
T-PPO paper only the abstract and Eq. 6 (through a published review) were available when this was written. What rests
on less says so.

Advantages and targets are data for a loss, so none of them carries a gradient.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Boundary = Literal["repeat", "critic", "terminal"]
BOUNDARIES: tuple[str, ...] = ("repeat", "critic", "terminal")


class Segments(NamedTuple):
    """Where the responses of a ragged batch lie, checked once."""

    lengths_S: Tensor  # int64, tokens of each response
    left_N: Tensor  # int, tokens from this one to the end of its response, itself included
    longest: int

    def spread(self, per_response_S: Tensor) -> Tensor:
        """Repeats one entry per response for each of its tokens: [S] -> [N]."""
        return torch.repeat_interleave(per_response_S, self.lengths_S, output_size=self.left_N.shape[0])


def segments(offsets: Tensor, like_N: Tensor | None = None, *, lam_S: Tensor | None = None) -> Segments:
    """Checks `offsets`, against the length and device of `like_N` where given, and lays the responses out.

    `lam_S` rides along so that a single transfer to the host checks both.

    >>> segments(torch.tensor([0, 2, 2, 5])).left_N.tolist()
    [2, 1, 3, 2, 1]
    """
    if offsets.ndim != 1 or offsets.shape[0] == 0 or offsets.dtype != torch.int64:
        raise ValueError(
            f"offsets: found shape {tuple(offsets.shape)} and {offsets.dtype}, expected int64 [S+1] that starts with 0"
        )
    if like_N is not None and like_N.device != offsets.device:
        raise ValueError(f"offsets: found on {offsets.device}, expected on {like_N.device} like the tokens")
    lengths_S = offsets.diff()
    facts = torch.stack((offsets[0], offsets[-1], *torch.aminmax(torch.cat((lengths_S, lengths_S.new_zeros(1))))))
    if lam_S is not None and lam_S.numel():
        facts = torch.cat((facts.double(), torch.stack(torch.aminmax(lam_S)).double()))
    first, last, shortest, longest, *lam_range = facts.tolist()
    if first != 0 or shortest < 0 or (like_N is not None and last != like_N.shape[0]):
        end = "the number of tokens" if like_N is None else f"{like_N.shape[0]} tokens"
        raise ValueError(
            f"offsets: found first {first:.0f}, last {last:.0f}, smallest step {shortest:.0f}; "
            f"expected 0 first, {end} last, never decreasing"
        )
    if lam_range and not (lam_range[0] >= 0 and lam_range[1] <= 1):
        raise ValueError(f"lam: found entries from {lam_range[0]} to {lam_range[1]}, expected all within [0, 1]")
    count = int(last)
    index = torch.int32 if count < 2**31 else torch.int64  # Half the memory traffic of the recursion's comparisons.
    ends_N = torch.repeat_interleave(offsets[1:].to(index), lengths_S, output_size=count)
    return Segments(lengths_S, ends_N.sub_(torch.arange(count, dtype=index, device=offsets.device)), int(longest))


def check_like(name: str, found: Tensor, expected: Tensor | int, *, what: str) -> None:
    """Raises unless `found` is flat and has the length (and the device) of `expected`, which is called `what`."""
    length = expected if isinstance(expected, int) else expected.shape[0]
    if found.ndim != 1 or found.shape[0] != length:
        raise ValueError(f"{name}: found shape {tuple(found.shape)}, expected [{length}], one entry per {what}")
    if isinstance(expected, Tensor) and found.device != expected.device:
        raise ValueError(f"{name}: found on {found.device}, expected on {expected.device} like the entry per {what}")


def check_flat_float(name: str, found: Tensor) -> None:
    """Raises unless `found` is a flat float32 or float64 tensor."""
    if found.ndim != 1:
        raise ValueError(f"{name}: found rank {found.ndim}, shape {tuple(found.shape)}, expected a flat tensor [N]")
    if found.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{name}: found {found.dtype}, expected float32 or float64; cast it first")


def check_flags(name: str, found: Tensor, expected: Tensor | int, *, what: str) -> None:
    """Raises unless `found` is a boolean tensor with one entry per `what`."""
    check_like(name, found, expected, what=what)
    if found.dtype != torch.bool:
        # An integer flag invites `~flag`, which is -1 or -2 and not a condition.
        raise ValueError(f"{name}: found {found.dtype}, expected bool")


def check_unit(name: str, found: float) -> None:
    """Raises unless 0 <= found <= 1."""
    if not 0 <= found <= 1:
        raise ValueError(f"{name}: found {found}, expected a number within [0, 1]")


def _decayed_suffix_sums(x_N: Tensor, decay: float | Tensor, layout: Segments) -> Tensor:
    """S_t = x_t + c_i S_{t+1} inside each response i, with S = 0 past its end. Overwrites and returns `x_N`.

    c_i is constant along a response, so sums over spans of 2^k tokens double:
    S_t over 2^(k+1) tokens = S_t over 2^k tokens + c_i^(2^k) S_{t+2^k} over 2^k tokens.
    ceil(log2(longest)) passes over N entries replace one step per token.
    """
    span = 1
    while span < layout.longest:
        # A copy, selected and not multiplied: a NaN of the next response stays there.
        ahead_N = torch.where(layout.left_N[:-span] > span, x_N[span:], 0.0)
        if isinstance(decay, Tensor):
            # From float64 each time; squaring float32 weights would double their rounding error every pass.
            x_N[:-span].addcmul_(ahead_N, layout.spread((decay**span).to(x_N.dtype))[:-span])
        else:
            x_N[:-span].add_(ahead_N, alpha=decay**span)
        span *= 2
    return x_N


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
    decay: float | Tensor
    if isinstance(lam, Tensor) and lam.ndim:
        check_like("lam", lam, finished_S, what="response")
        layout = segments(offsets, values_N, lam_S=lam)
        decay = gamma * lam.double()
    else:
        check_unit("lam", float(lam))
        layout = segments(offsets, values_N)
        decay = gamma * float(lam)
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
    return _decayed_suffix_sums(delta_N, decay, layout)


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
    return _decayed_suffix_sums(rewards_N.clone(), float(gamma), segments(offsets, rewards_N))


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
