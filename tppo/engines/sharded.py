"""One engine a rank, or one a group of ranks: requests are dealt out, answers are put together on every rank."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from tppo.distributed import current
from tppo.engines.base import Continuation, Engine, GenerationRequest, Sampling

if TYPE_CHECKING:
    import torch


class ShardedEngine:
    """engine: this rank's. tensor_parallel: neighbouring ranks whose engine is one and takes the same requests.

    Responses in flight come first in a window, in the order of their age, so dealing requests out in turns gives every
    replica the same mixture of long and short. What a response says does not depend on the replica that continues it.
    ``busy``: seconds that each replica took for the last call; the difference to the longest is idle time.
    """

    def __init__(self, engine: Engine, tensor_parallel: int = 1) -> None:
        self.engine, self.tensor_parallel = engine, tensor_parallel
        self.busy: list[float] = []

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Every rank loads."""
        self.engine.load_policy(named_tensors, version)

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """Continue every request, in order. ``done`` hears on each rank of the answers of its own replica only, and of
        several ranks that are one replica the first one hears.

        Raises EngineError on every rank when an engine failed on one.
        """
        ranks = current()
        replicas, replica = ranks.size // self.tensor_parallel, ranks.rank // self.tensor_parallel
        leads = ranks.rank % self.tensor_parallel == 0
        mine, answers, failure = list(requests[replica::replicas]), list[Continuation](), None
        began = time.perf_counter()
        try:
            answers = self.engine.generate(mine, sampling, done if leads else None) if mine else []
        except Exception as error:
            failure = error
        seconds = time.perf_counter() - began
        told = _pack(answers) if leads and ranks.size > 1 else None
        parts = ranks.together((told, seconds), failure)[:: self.tensor_parallel]
        self.busy = [s for _, s in parts]
        if ranks.size == 1:
            return answers
        out: list[Continuation | None] = [None] * len(requests)
        for k, (packed, _) in enumerate(parts):
            assert packed is not None
            out[k::replicas] = _unpack(packed)
        return [c for c in out if c is not None]

    def score(self, tokens: Sequence[int], first: int) -> list[float]:
        """By this rank's engine."""
        return self.engine.score(tokens, first)

    def idle(self) -> dict[str, float]:
        """Share of the last call that the average replica waited for the slowest, for the metrics."""
        slowest = max(self.busy, default=0.0)
        return {"generate_idle": 1 - sum(self.busy) / (len(self.busy) * slowest)} if slowest else {}

    def close(self) -> None:
        """Close this rank's engine."""
        self.engine.close()


_Packed = tuple[list[tuple[int, int, bool]], "array[int]", "array[float]"]


def _pack(answers: Sequence[Continuation]) -> _Packed:
    """Flat arrays travel a hundred times faster than tuples of Python numbers."""
    tokens, logprobs = array("q"), array("d")
    for c in answers:
        tokens.extend(c.tokens)
        logprobs.extend(c.logprobs)
    return [(c.uid, len(c.tokens), c.stopped) for c in answers], tokens, logprobs


def _unpack(packed: _Packed) -> list[Continuation]:
    heads, tokens, logprobs = packed
    out, first = [], 0
    for uid, count, stopped in heads:
        part = slice(first, first + count)
        out.append(Continuation(uid, tuple(tokens[part]), tuple(logprobs[part]), stopped))
        first += count
    return out
