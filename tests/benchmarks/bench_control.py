"""What every rank does for itself in a step, beside models and engine, at the paper's scale.

    python -m tests.benchmarks.bench_control [slots] [mean length]

Each rank holds all responses in flight (`tppo.ranks.ranks`), so this time and memory does not shrink with more ranks.
"""

from __future__ import annotations

import resource
import sys
import time
from array import array

import numpy as np
import torch

from tppo.algorithms import TPPO
from tppo.algorithms.auxiliaries import Critic
from tppo.algorithms.auxiliaries.critic import store_values
from tppo.algorithms.base import Rollout
from tppo.algorithms.parts.select import every_window
from tppo.loop.slots import Slots
from tppo.models.call import deal
from tppo.types import Batch, Prompt, Response, Status

WINDOW, CAP = 8192, 24576


def responses(slots: int, mean: int) -> list[Response]:
    """Log-normal lengths, cut at the cap; a window of it is new."""
    rng = np.random.default_rng(0)
    out = []
    prompt = Prompt("p", tuple(range(200)))
    for uid, length in enumerate(np.minimum(rng.lognormal(np.log(mean), 0.9, slots), CAP).astype(int) + 1):
        start = length // WINDOW * WINDOW if length % WINDOW else length - WINDOW
        r = Response(uid=uid, group=uid // 16, prompt=prompt, window_starts=[int(start)])
        r.tokens = array("q", rng.integers(0, 152_000, length).tobytes())
        r.logprobs = array("d", rng.random(length).tobytes())
        r.values = array("d", rng.random(start).tobytes())
        r.versions = array("q", bytes(8 * length))
        r.status = Status.EOS if uid % 3 else Status.UNFINISHED
        r.reward = 1.0 if uid % 3 else None
        out.append(r)
    return out


def main(slots: int, mean: int) -> None:
    """Print seconds of each part, and the memory they took."""
    held = responses(slots, mean)
    window = Slots(
        lambda i: held[0].prompt, slots=slots, group_size=16, window=WINDOW, max_response_tokens=CAP,
        select=every_window,
    )  # fmt: skip
    window.in_flight = held
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    total = sum(len(r.tokens) for r in held)
    print(f"{slots} responses, {total:,} tokens in flight; the responses themselves take {before / 2**20:.1f} GiB")

    def timed(name: str, work):  # type: ignore[no-untyped-def]
        began = time.perf_counter()
        result = work()
        print(f"{name:<28} {time.perf_counter() - began:7.2f} s")
        return result

    parts = TPPO(window=WINDOW).parts(Rollout(slots=slots, max_response_tokens=CAP))
    [critic] = parts.auxiliaries
    assert isinstance(critic, Critic)
    assert parts.advantage is not None
    estimate = parts.advantage.estimate
    timed("a 64th of the requests", lambda: window.requests()[::64])
    batch = timed("Batch.of", lambda: Batch.of(held))
    values = torch.rand(total)
    timed("keep values", lambda: store_values(batch, values))
    columns = {"values": values, "rewards": batch.rewards_N}
    train_N = timed("tokens that train", lambda: parts.tokens(batch))
    timed("advantages", lambda: estimate(batch, columns, train_N))
    timed("value targets", lambda: critic.targets(batch, columns))
    timed("settle the slots", lambda: window.settle(0))
    timed("deal micro-batches", lambda: deal(sorted(batch.lengths_S.tolist()), 32768, 64))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak above the responses: {(peak - before) / 2**20:.1f} GiB")


if __name__ == "__main__":
    main(int((sys.argv[1:] or ["8192"])[0]), int((sys.argv[2:] or ["4000"])[0]))
