"""How tokens get their advantage; equations are in ``tppo.maths``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tppo.algorithms.base import Advantage, Columns
from tppo.maths.advantages import Boundary, egae, length_adaptive_lambda
from tppo.maths.masks import shape_advantages
from tppo.types import Batch


def generalised(
    *,
    over: Literal["window", "finished"],
    gamma: float,
    lam: float,
    lam_alpha: float | None,
    window: int,
    max_length: int,
    whiten: bool,
    clamp: float | None,
    bias: float = 0.0,
    boundary: Boundary = "repeat",
) -> Advantage:
    """EGAE over the newest window of every response, or GAE over all tokens of the finished ones; shaped.

    In the first case only this window's values enter: the recursion runs backwards and stops at the window's first
    token. In the second nothing is cut, so EGAE is GAE.

    lam: lambda, or with ``lam_alpha`` the floor of the length-adaptive one. Gives "advantages" [N], "raw_advantages"
    [N] (before whitening and clamping) and "lambda" [S].
    """

    def estimate(batch: Batch, columns: Columns, train_N: Tensor) -> Columns:
        read_N = batch.window_N if over == "window" else batch.finished_N
        values = columns["values"][read_N]
        if lam_alpha is None:
            lam_S = torch.full((batch.num_responses,), lam, dtype=torch.float64)
        else:
            lam_S = length_adaptive_lambda(
                batch.lengths_S, batch.finished_S, alpha=lam_alpha, lam_min=lam, window=window, max_length=max_length
            )
        raw = egae(
            columns["rewards"][read_N].to(values.dtype),
            values,
            batch.offsets_within(read_N),
            batch.finished_S,
            gamma=gamma,
            lam=lam_S,
            boundary=boundary,
            cut_values_S=columns["cut_values"] if boundary == "critic" else None,
        )
        shaped = shape_advantages(raw, train_N[read_N], whiten=whiten, clamp=clamp, bias=bias)
        everywhere = torch.zeros_like(columns["values"])
        return {
            "advantages": everywhere.masked_scatter(read_N, shaped),
            "raw_advantages": everywhere.masked_scatter(read_N, raw),
            "lambda": lam_S,
        }

    reads = {"rewards", "values", *(["cut_values"] if boundary == "critic" else [])}
    return Advantage(estimate, frozenset(reads), frozenset({"advantages", "raw_advantages", "lambda"}))


def outcome(of_response: Callable[[Tensor, Batch], Tensor], *, reads: frozenset[str] = frozenset()) -> Advantage:
    """One advantage a response, for each of its tokens that trains.

    of_response: (outcome of each response [S], batch) -> advantage of each response [S].
    """

    def estimate(batch: Batch, columns: Columns, train_N: Tensor) -> Columns:
        advantage_S = of_response(outcomes(batch, columns["rewards"]), batch)
        return {"advantages": torch.where(train_N, batch.spread(advantage_S), 0.0)}

    return Advantage(estimate, frozenset({"rewards"}) | reads)


def outcomes(batch: Batch, rewards_N: Tensor) -> Tensor:
    """Outcome of each response [S]: the sum of its token rewards, shaped ones included."""
    return torch.zeros(batch.num_responses, dtype=rewards_N.dtype).index_add_(0, batch.row_N, rewards_N)
