"""Policy updates of a table, [S, A] on its logits: exact, from samples, and where they point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from paper_repro.studies.exact.sampling import Windows
from paper_repro.studies.exact.tables import ESTIMATORS, Table, moments
from paper_repro.studies.intervals import Interval
from sim import exact
from sim.exact.filtered import kept_moments
from sim.mdp.table import Floats
from tppo.evaluation.scores import student_quantile


def true_gradient(table: Table) -> Floats:
    """[S, A] of the expected return with respect to the logits."""
    return exact.softmax_policy_gradient(table.mdp, table.logits_SA)


def expected_update(
    table: Table, critic_HS: Floats, estimator: str, window: int | None, lam: float | None, ignore_last: int = 0
) -> Floats:
    """[S, A] exactly, for an entry of ESTIMATORS. Only windows have a filter."""
    if window is None:
        mean_HSA = moments(table, critic_HS, estimator, window=None, gamma=1.0, lam=lam).mean_HSA
    else:
        boundary = ESTIMATORS[estimator][1]
        assert boundary is not None
        assert lam is not None
        mean_HSA = kept_moments(
            table.mdp, table.policy_SA, critic_HS,
            boundary=boundary, window=window, ignore_last=ignore_last, lam=lam,
        ).first_HSA  # fmt: skip
    return exact.softmax_policy_gradient(table.mdp, table.logits_SA, advantage_HSA=mean_HSA)


def update(table: Table, windows: Windows, advantages_N: torch.Tensor, responses: int) -> Floats:
    """Gradient of sum_N A log pi with respect to the logits [S, A], per response; ratio 1, as in the first step."""
    A_N = advantages_N.numpy()
    shape = table.policy_SA.shape
    chosen_SA = np.bincount(windows.state_N * shape[1] + windows.token_N, A_N, minlength=shape[0] * shape[1])
    total_S = np.bincount(windows.state_N, A_N, minlength=shape[0])
    return np.asarray((chosen_SA.reshape(shape) - total_S[:, None] * table.policy_SA) / responses)


def row_squares(table: Table, windows: Windows, advantages_N: torch.Tensor) -> Floats:
    """[S] squared length of each window's own contribution to `update`."""
    A_N, rows = advantages_N.numpy(), len(windows.finished_S)
    states, tokens = table.policy_SA.shape
    row_N = np.repeat(np.arange(rows), np.diff(windows.offsets))
    cell_N = (row_N * states + windows.state_N) * tokens + windows.token_N
    part_SSA = np.bincount(cell_N, A_N, minlength=rows * states * tokens).reshape(rows, states, tokens)
    part_SSA -= part_SSA.sum(axis=-1, keepdims=True) * table.policy_SA
    return np.asarray(np.einsum("rsa,rsa->r", part_SSA, part_SSA))


def cosine(x: Floats, y: Floats) -> float:
    """Cosine of the angle between two updates; 0 where one of them is zero."""
    size = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float((x * y).sum()) / size if size > 0.0 else 0.0


def direction(updates: Sequence[Floats], truth_SA: Floats) -> tuple[Interval, Interval]:
    """Cosine with, and length against, the true gradient of the expectation that independent `updates` estimate.

    The mean of noisy vectors is longer than their expectation, which would make every angle too large. So the squared
    length is taken from products of different updates only, which is unbiased. 95% intervals by the jackknife; what
    exceeds a cosine of 1 is noise and cut off.
    """
    n = len(updates)
    if n < 3:
        raise ValueError(f"updates: found {n}; expected at least 3 for a jackknife; run more seeds.")
    flat = np.stack([u.ravel() for u in updates])
    truth = truth_SA.ravel()
    size = float(np.linalg.norm(truth))

    def both(rows: Floats) -> tuple[float, float]:
        k, total = len(rows), rows.sum(axis=0)
        square = float(total @ total - (rows * rows).sum()) / (k * (k - 1))
        length = math.sqrt(max(square, 1e-300))
        return float(total @ truth) / (k * length * size), length / size

    whole = both(flat)
    left_out = np.array([both(np.delete(flat, i, axis=0)) for i in range(n)])
    error = np.sqrt((n - 1) / n * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
    half = student_quantile(n - 1) * error
    cos, length = (Interval(w, w - h, w + h) for w, h in zip(whole, half, strict=True))
    return Interval(*(min(bound, 1.0) for bound in cos)), length


def angle(cos: float) -> float:
    """Degrees."""
    return float(np.degrees(np.arccos(np.clip(cos, -1.0, 1.0))))
