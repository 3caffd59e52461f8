"""How outcomes are shaped before advantages are estimated; equations are in ``tppo.maths.shaping``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tppo.algorithms.base import Columns, Reward
from tppo.algorithms.parts.advantages import outcomes
from tppo.maths.objectives import kl_estimate
from tppo.maths.shaping import overlong_penalty
from tppo.types import Batch


def outcome_change(change: Callable[[Tensor, Batch], Tensor]) -> Reward:
    """Added to the reward at the last token of every finished response. change: (outcomes [S], batch) -> [S]."""

    def shape(rewards_N: Tensor, batch: Batch, columns: Columns) -> Tensor:
        ends_S = batch.finished_S & (batch.lengths_S > 0)
        added_S = change(outcomes(batch, rewards_N), batch).to(rewards_N.dtype)
        return rewards_N.index_add(0, batch.offsets[1:][ends_S] - 1, added_S[ends_S])

    return Reward(shape)


def overlong(cap: int, share: float) -> Reward:
    """DAPO's soft punishment (arXiv 2503.14476) over the last ``share`` of the cap."""
    buffer = max(1, round(share * cap))
    return outcome_change(lambda R_S, batch: overlong_penalty(batch.lengths_S, max_length=cap, buffer=buffer))


def kl_in_reward(coef: float) -> Reward:
    """-coef (log pi_old - log reference) at every token that trains, k1 of the KL to the initial policy."""

    def shape(rewards_N: Tensor, batch: Batch, columns: Columns) -> Tensor:
        kl_N = kl_estimate(columns["old"], columns["reference"].to(columns["old"].dtype), kind="k1")
        return rewards_N - coef * torch.where(columns["train"], kl_N, 0.0).to(rewards_N.dtype)

    return Reward(shape, reads=frozenset({"old", "reference", "train"}))
