"""Sampled windows of a table, and what the library's own functions make of them.

The mix of windows is that of a T-PPO run whose policy stands still: every window of every response is met once. Rows
are shuffled before they are cut into batches, so that whitening sees the mix that a step of `slots` slots would.

Shapes: _N tokens end to end, _S windows (rows), _R responses, _H time, _A tokens of the table.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from paper_repro.studies.exact.tables import ESTIMATORS, Table
from sim.mdp.table import Floats, Ints
from tppo.maths.advantages import egae
from tppo.maths.masks import shape_advantages, window_mask


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows of sampled responses."""

    response_N: Ints
    time_N: Ints
    state_N: Ints
    token_N: Ints
    reward_N: Floats
    offsets: Ints  # [S+1]
    finished_S: NDArray[np.bool_]
    cut_state_S: Ints  # the state after the last token; -1 where the response ended by itself


@dataclass(frozen=True)
class Shaping:
    """What becomes of the estimates before the loss."""

    ignore_last: int = 0
    whiten: bool = False
    clamp: float | None = None


def sample(table: Table, rng: np.random.Generator, responses: int, window: int) -> Windows:
    """Whole responses, cut into windows, rows in random order."""
    mdp = table.mdp
    shape = (responses, mdp.horizon)
    state_RH, token_RH, after_RH = (np.full(shape, -1, np.int64) for _ in range(3))
    reward_RH = np.zeros(shape)
    cdf_SA = np.cumsum(table.policy_SA, axis=-1)
    cdf_SA[:, -1] = 1.0
    alive, state = np.arange(responses), mdp.start(rng.random(responses))
    for t in range(mdp.horizon):
        token = (rng.random(len(alive))[:, None] >= cdf_SA[state]).sum(axis=-1)
        step = mdp.step(state, token, rng.random(len(alive)))
        state_RH[alive, t], token_RH[alive, t], reward_RH[alive, t] = state, token, step.reward
        after_RH[alive, t] = step.next_state
        alive, state = alive[~step.terminated], step.next_state[~step.terminated]
        if not len(alive):
            break
    response_N, time_N = np.nonzero(token_RH >= 0)
    starts_S = np.flatnonzero(time_N % window == 0)
    lengths_S = np.diff(np.append(starts_S, len(time_N)))
    order_S = rng.permutation(len(starts_S))
    lengths_S = lengths_S[order_S]
    offsets = np.concatenate([[0], np.cumsum(lengths_S)])
    take_N = np.repeat(starts_S[order_S] - offsets[:-1], lengths_S) + np.arange(len(time_N))
    response_N, time_N = response_N[take_N], time_N[take_N]
    last_S = offsets[1:] - 1
    cut_state_S = after_RH[response_N, time_N][last_S]
    finished_S = (cut_state_S < 0) | (time_N[last_S] == mdp.horizon - 1)
    at = (response_N, time_N)
    return Windows(response_N, time_N, state_RH[at], token_RH[at], reward_RH[at], offsets, finished_S, cut_state_S)


def estimates(windows: Windows, critic_HS: Floats, name: str, *, gamma: float, lam: float) -> torch.Tensor:
    """Advantages [N] by `tppo.maths.advantages.egae`, an entry of ESTIMATORS with a boundary; or by GAE."""
    last_S = windows.offsets[1:] - 1
    after_S = critic_HS[windows.time_N[last_S] + 1, windows.cut_state_S]  # not read where the response has ended
    return egae(
        torch.from_numpy(windows.reward_N),
        torch.from_numpy(critic_HS[windows.time_N, windows.state_N]),
        torch.from_numpy(windows.offsets),
        torch.from_numpy(windows.finished_S),
        gamma=gamma,
        lam=lam,
        boundary=ESTIMATORS[name][1] or "terminal",
        cut_values_S=torch.from_numpy(after_S),
    )


def shaped(windows: Windows, advantages_N: torch.Tensor, shaping: Shaping, slots: int) -> tuple[torch.Tensor, float]:
    """Filtered, whitened, clamped by the library's functions in batches of `slots` rows; and the share clamped."""
    offsets = torch.from_numpy(windows.offsets)
    keep_N = window_mask(offsets, torch.from_numpy(windows.finished_S), ignore_last=shaping.ignore_last)
    result_N = torch.empty_like(advantages_N)
    for first in range(0, len(windows.finished_S), slots):
        begin, end = (int(windows.offsets[min(row, len(windows.finished_S))]) for row in (first, first + slots))
        result_N[begin:end] = shape_advantages(
            advantages_N[begin:end], keep_N[begin:end], whiten=shaping.whiten, clamp=shaping.clamp, bias=0.0
        )
    at_bound = 0.0 if shaping.clamp is None else float((result_N.abs() >= shaping.clamp).double().mean())
    return result_N, at_bound
