"""One engine a rank, or one a group of ranks: requests are dealt out, answers are put together on every rank."""

from __future__ import annotations

import itertools
import time
from array import array
from collections.abc import Callable, Sequence

import torch

from tppo.engines.base import Engine, Wrapped
from tppo.ranks.ranks import Ranks
from tppo.types import Continuation, GenerationRequest, Sampling


class ShardedEngine(Wrapped):
    """One engine on each rank, or one for each group of ranks.

    Responses in flight come first in a window, in the order of their age, so dealing requests out in turns gives every
    replica the same mixture of long and short. What a response says does not depend on the replica that continues it.
    ``busy``: seconds that each replica took for the last call; the difference to the longest is idle time.
    """

    def __init__(self, engine: Engine, ranks: Ranks, tensor_parallel: int = 1) -> None:
        """engine: this rank's. tensor_parallel: neighbouring ranks that share one engine and make the same requests."""
        super().__init__(engine)
        self.ranks, self.tensor_parallel = ranks, tensor_parallel
        self.busy: list[float] = []

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: Sampling,
        done: Callable[[Continuation], None] | None = None,
    ) -> list[Continuation]:
        """Continue every request, in order. ``done`` is a callback on this replica's answers, on its first rank.

        Raises EngineError on every rank when an engine failed on one.
        """
        ranks = self.ranks
        replicas, replica = ranks.size // self.tensor_parallel, ranks.rank // self.tensor_parallel
        leads = ranks.rank % self.tensor_parallel == 0
        mine, answers, failures = list(requests[replica::replicas]), list[Continuation](), list[Exception]()

        def hear(answer: Continuation) -> None:
            # Raised at the end: the other ranks of the replica go on, and wait for this one in every step.
            try:
                if done is not None and not failures:
                    done(answer)
            except Exception as error:
                failures.append(error)

        began = time.perf_counter()
        try:
            answers = self.engine.generate(mine, sampling, hear if leads else None) if mine else []
        except Exception as error:
            failures.insert(0, error)
        seconds = time.perf_counter() - began
        heads = [(c.uid, len(c.tokens), c.stopped) for c in answers] if leads else []
        parts = ranks.together((heads, seconds), failures[0] if failures else None)[:: self.tensor_parallel]
        self.busy = [s for _, s in parts]
        if ranks.size == 1:
            return answers
        out: list[Continuation | None] = [None] * len(requests)
        for k, (told, _) in enumerate(parts):
            out[k::replicas] = _relay(ranks, told, answers if k == replica else [], k * self.tensor_parallel)
        return [c for c in out if c is not None]

    def metrics(self) -> dict[str, float]:
        """Share of the last call that the average replica waited for the slowest."""
        slowest = max(self.busy, default=0.0)
        idle = {"generate_idle": 1 - sum(self.busy) / (len(self.busy) * slowest)} if slowest else {}
        return self.engine.metrics() | idle


def _relay(
    ranks: Ranks, heads: list[tuple[int, int, bool]], answers: Sequence[Continuation], source: int
) -> list[Continuation]:
    """One replica's answers on every rank, as flat arrays: gathered as objects, each would cost one for every rank.

    heads: response, number of tokens and whether it stopped, of each answer. answers: on the rank ``source``.
    """
    total = sum(count for _, count, _ in heads)
    tokens, logprobs = torch.empty(total, dtype=torch.int64), torch.empty(total, dtype=torch.float64)
    if ranks.rank == source and total:
        flat = itertools.chain.from_iterable
        tokens = torch.frombuffer(array("q", flat(c.tokens for c in answers)), dtype=torch.int64)
        logprobs = torch.frombuffer(array("d", flat(c.logprobs for c in answers)), dtype=torch.float64)
    tokens_l, logprobs_l = ranks.relay(tokens, source).tolist(), ranks.relay(logprobs, source).tolist()
    out, first = [], 0
    for uid, count, stopped in heads:
        part = slice(first, first + count)
        out.append(Continuation(uid, tuple(tokens_l[part]), tuple(logprobs_l[part]), stopped))
        first += count
    return out
