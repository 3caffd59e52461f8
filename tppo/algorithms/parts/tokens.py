"""Which tokens of the selected responses train the policy, bool [N]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tppo.maths.masks import window_mask
from tppo.types import Batch


def finished_tokens(batch: Batch) -> Tensor:
    """Every token of finished responses."""
    return batch.finished_N


def uncapped_tokens(batch: Batch) -> Tensor:
    """The same without responses that the cap ended (overlong filtering, DAPO, arXiv 2503.14476)."""
    return batch.finished_N & ~batch.spread(batch.capped_S)


def new_tokens(*, ignore_last: int) -> Callable[[Batch], Tensor]:
    """This window's tokens of every response, less the last ``ignore_last`` of an unfinished window (T-PPO)."""

    def tokens(batch: Batch) -> Tensor:
        new_N = batch.window_N
        kept = window_mask(batch.offsets_within(new_N), batch.finished_S, ignore_last=ignore_last)
        return torch.zeros_like(new_N).masked_scatter(new_N, kept)

    return tokens
