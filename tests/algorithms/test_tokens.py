"""Which tokens train, by a batch small enough to read."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from tests.support.helpers import response
from tppo.algorithms.base import no_tokens
from tppo.algorithms.parts.tokens import finished_tokens, new_tokens, uncapped_tokens
from tppo.types import Batch, Status

BATCH = Batch.of(
    [
        response(0, [5, 6, 7], windows=(0, 2)),  # ended in its second window
        response(1, [5, 6, 7], windows=(0, 1), status=Status.UNFINISHED),
        response(2, [5, 6], status=Status.LENGTH, reward=0.0),  # ended by the cap
        response(3, [], status=Status.EMPTY, reward=0.0),
    ]
)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (finished_tokens, "111 000 11"),
        (uncapped_tokens, "111 000 00"),
        (new_tokens(ignore_last=0), "001 011 11"),
        (new_tokens(ignore_last=1), "001 010 11"),
        (no_tokens, "000 000 00"),
    ],
)
def test_tokens_that_train(tokens: Callable[[Batch], Tensor], expected: str) -> None:
    assert tokens(BATCH).int().tolist() == [int(bit) for bit in expected.replace(" ", "")]
