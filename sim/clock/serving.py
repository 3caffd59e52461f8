"""What a batch of requests makes an inference engine do: decode steps, rows and keys read at each, prefill.

A request is a context to prefill (prompt, and what earlier windows generated: its keys and values are gone with the
weights that made them) and a number of new tokens. Prefill yields the first new token; every other one takes a decode
step, which feeds the newest token and reads the keys of all tokens so far, the newest included. Rows leave when they
are done, so the batch empties towards its longest row.

Nothing here knows of seconds.

Shape suffixes: _S requests, _K runs of decode steps with the same rows.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from sim.clock.lengths import Ints


@dataclass(frozen=True)
class Limits:
    """What one engine takes at a time.

    A request enters when it fits to the end of the call, so nothing is ever preempted. vLLM admits earlier and
    preempts: this is a little slower where memory binds, or faster where preemption thrashes.
    """

    max_rows: int | None = None  # most sequences decoded together; None is no limit
    kv_tokens: int | None = None  # most tokens whose keys and values fit; None is no limit
    # A waiting request enters as soon as another has left (continuous batching). Otherwise the next batch waits for
    # the whole of the present one, shortest contexts first.
    refill: bool = True


@dataclass(frozen=True, eq=False)
class DecodeTrace:
    """Runs of decode steps between which no row enters or leaves."""

    steps_K: Ints  # [K] decode steps of the run
    rows_K: Ints  # [K] sequences in each step
    context_K: Ints  # [K] keys read by all rows together in the first step; each step reads as many more as it has rows
    width_K: Ints  # [K] keys of the longest row in the first step; each step adds one

    @property
    def steps(self) -> int:
        """Number of decode steps."""
        return int(self.steps_K.sum())

    @property
    def row_steps(self) -> int:
        """Number of tokens that decode steps yield."""
        return int(self.steps_K @ self.rows_K)

    @property
    def keys_read(self) -> int:
        """Number of keys read by all rows in all steps, per layer."""
        return int(self.steps_K @ self.context_K + self.rows_K @ _triangle(self.steps_K))

    @property
    def padded_keys_read(self) -> int:
        """Number of keys read by an engine that reads as many for every row as the longest row has, per layer."""
        return int((self.steps_K * self.rows_K) @ self.width_K + self.rows_K @ _triangle(self.steps_K))

    @staticmethod
    def join(traces: "list[DecodeTrace]") -> "DecodeTrace":
        """The trace of calls that run one after another."""
        names = ("steps_K", "rows_K", "context_K", "width_K")
        empty = np.zeros(0, dtype=np.int64)
        return DecodeTrace(*(np.concatenate([empty, *(getattr(t, n) for t in traces)]) for n in names))


def _triangle(n_K: Ints) -> Ints:
    """0 + 1 + ... + (n - 1)."""
    return n_K * (n_K - 1) // 2


def serve(context_S: Ints, new_S: Ints, limits: Limits | None = None) -> tuple[DecodeTrace, Ints]:
    """Serve requests with these contexts and numbers of new tokens [S].

    Returns the trace and, for each request, the number of decode steps done when its last token was there [S]. Raises
    ValueError for a request without a token or one that can never fit.
    """
    limits = limits or Limits()
    if len(new_S) and (new_S.min() < 1 or context_S.min() < 1):
        raise ValueError("serve: found a request without context or without new tokens; expected at least 1 of each.")
    need_S = context_S + new_S
    if limits.kv_tokens is not None and len(need_S) and need_S.max() > limits.kv_tokens:
        raise ValueError(
            f"serve: a request needs keys and values of {need_S.max()} tokens; expected at most {limits.kv_tokens}, "
            "what one replica holds; use more tensor parallelism or a shorter cap."
        )
    everything_fits = (limits.max_rows is None or len(new_S) <= limits.max_rows) and (
        limits.kv_tokens is None or need_S.sum() <= limits.kv_tokens
    )
    if everything_fits:
        return _together(context_S, new_S), new_S - 1
    return (_refilled if limits.refill else _in_turns)(context_S, new_S, limits)


def _together(context_S: Ints, new_S: Ints) -> DecodeTrace:
    """The trace of requests that all start at once."""
    decode_S = new_S - 1
    order = np.argsort(decode_S, kind="stable")
    end_K, first_K = np.unique(decode_S[order], return_index=True)
    begin_K = np.concatenate([[0], end_K[:-1]]).astype(np.int64)
    keys_S = context_S[order] + 1  # in the first decode step
    sum_K = np.cumsum(keys_S[::-1])[::-1][first_K]
    longest_K = np.maximum.accumulate(keys_S[::-1])[::-1][first_K]
    rows_K = len(new_S) - first_K
    real = end_K > begin_K  # a run of no steps: requests that prefill has finished
    return DecodeTrace(
        (end_K - begin_K)[real], rows_K[real], (sum_K + rows_K * begin_K)[real], (longest_K + begin_K)[real]
    )


def _in_turns(context_S: Ints, new_S: Ints, limits: Limits) -> tuple[DecodeTrace, Ints]:
    """Serve batch after batch, shortest contexts first."""
    order = np.argsort(context_S, kind="stable")
    traces, finish_S, done, first = [], np.zeros_like(new_S), 0, 0
    while first < len(order):
        count = limits.max_rows or len(order)
        if limits.kv_tokens is not None:
            fits = np.cumsum((context_S + new_S)[order[first:]]) <= limits.kv_tokens
            count = min(count, int(fits.sum()))
        batch = order[first : first + count]
        traces.append(_together(context_S[batch], new_S[batch]))
        finish_S[batch] = done + new_S[batch] - 1
        done, first = done + traces[-1].steps, first + count
    return DecodeTrace.join(traces), finish_S


def _refilled(context_S: Ints, new_S: Ints, limits: Limits) -> tuple[DecodeTrace, Ints]:
    """Serve by continuous batching, first come first served."""
    count, max_rows = len(new_S), limits.max_rows or len(new_S)
    room = limits.kv_tokens if limits.kv_tokens is not None else int((context_S + new_S).sum())
    contexts, news = context_S.tolist(), new_S.tolist()
    finish = [0] * count
    active: list[tuple[int, int]] = []  # (decode step at which it is done, request)
    longest: list[tuple[int, int]] = []  # (step at which its context would have been empty, request), lazily pruned
    now = waiting = keys = reserved = 0
    runs: list[tuple[int, int, int, int]] = []
    while waiting < count or active:
        while waiting < count and len(active) < max_rows and reserved + contexts[waiting] + news[waiting] <= room:
            finish[waiting] = now + news[waiting] - 1
            if news[waiting] > 1:
                heapq.heappush(active, (finish[waiting], waiting))
                heapq.heappush(longest, (now - contexts[waiting] - 1, waiting))
                keys += contexts[waiting] + 1
                reserved += contexts[waiting] + news[waiting]
            waiting += 1
        if not active:
            continue
        steps = active[0][0] - now
        while finish[longest[0][1]] <= now:
            heapq.heappop(longest)
        runs.append((steps, len(active), keys, now - longest[0][0]))
        keys += steps * len(active)
        now += steps
        while active and active[0][0] == now:
            _, row = heapq.heappop(active)
            keys -= contexts[row] + news[row]
            reserved -= contexts[row] + news[row]
    table = np.array(runs, dtype=np.int64).reshape(-1, 4)
    return DecodeTrace(*(table[:, i] for i in range(4))), np.array(finish, dtype=np.int64)


def tokens_by(step: int, finish_S: Ints, new_S: Ints) -> Ints:
    """[S] new tokens of each request when ``step`` decode steps are done; 0 where it has not begun.

    Requests that prefill has just admitted at that step have their first token.
    """
    return np.clip(step - finish_S + new_S, 0, new_S)


def padded_prefill(context_S: Ints, call_tokens: int) -> tuple[int, int]:
    """Number of positions, and of pairs of a position and a key, of prefill in rectangles of rows of like length.

    A rectangle takes rows, shortest first, while rows times longest stays within ``call_tokens``; one row always fits.
    Padding counts, and so do the masked keys after a position: a rectangle of B rows and T positions has B T positions
    and B T^2 pairs.

    >>> padded_prefill(np.array([2, 3, 10]), 10)
    (16, 118)
    """
    lengths = np.sort(context_S).tolist()
    positions = pairs = first = 0
    for row in range(1, len(lengths) + 1):
        if row == len(lengths) or (row + 1 - first) * lengths[row] > call_tokens:
            area = (row - first) * lengths[row - 1]
            positions, pairs, first = positions + area, pairs + area * lengths[row - 1], row
    return positions, pairs
