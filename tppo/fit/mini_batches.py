"""How the responses of a step are dealt out to the updates of one model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from tppo.fit.options import Optimizer
from tppo.types import Batch


def mini_batches(
    options: Optimizer, batch: Batch, need_N: torch.Tensor, *, key: tuple[int, int], name: str
) -> Iterator[list[int]]:
    """Random parts of nearly equal size: a remainder of two responses must not weigh as much as a full mini-batch.

    need_N: bool, the tokens that some term reads; responses without any are in no part. key: seed of the run and number
    of the step. name: of the model. The order depends on key, name and epoch alone.
    """
    rows = (torch.bincount(batch.row_N[need_N], minlength=batch.num_responses) > 0).nonzero().squeeze(-1).numpy()
    if not len(rows):
        return
    parts = -(-len(rows) // options.mini_batch)
    for epoch in range(options.epochs):
        generator = np.random.default_rng([*key, epoch, int.from_bytes(name.encode(), "little")])
        for part in np.array_split(generator.permutation(rows), parts):
            yield part.tolist()
