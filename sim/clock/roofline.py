"""Seconds of the work in `sim.clock.serving` and of training passes, as a roofline of an accelerator.

The roofline of a decode step: the slower of moving bytes (weights once, keys and values of every token so far) and of
arithmetic, then the all-reduces of tensor parallelism and a fixed cost. Within a run of steps with the same rows, bytes
and operations are linear in the step, so the sum of the slower of the two has a closed form.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sim.clock.hardware import Cluster
from sim.clock.lengths import Floats, Ints
from sim.clock.serving import DecodeTrace, Limits


@dataclass(frozen=True)
class Call:
    """What one generation call of one replica costs. What a cost cannot know stays 0."""

    prefill_s: float  # time of prefill [s]
    decode_s: float  # time of all decode steps [s]
    ideal_s: float = 0.0  # the same work at full data-sheet rates, the slower of memory and arithmetic at each step [s]
    decode_bytes: float = 0.0  # weights, keys and values that decode steps read [byte]
    decode_flops: float = 0.0  # arithmetic of decode steps [flop]
    prefill_flops: float = 0.0  # arithmetic of prefill [flop]

    @property
    def seconds(self) -> float:
        """Duration of the whole call [s]."""
        return self.prefill_s + self.decode_s


class GenerationCost(Protocol):
    """What generation calls of one replica cost."""

    @property
    def limits(self) -> Limits:
        """How many sequences and tokens the replica takes at a time."""

    def call(self, context_S: Ints, trace: DecodeTrace) -> Call:
        """Price a call that prefills contexts of these lengths [S] and decodes this trace."""


def sum_of_larger(a0: Floats, a1: Floats, b0: Floats, b1: Floats, steps: Ints) -> Floats:
    """Sum over k = 0 .. steps - 1 of max(a0 + a1 k, b0 + b1 k), elementwise.

    The difference of two lines changes its sign once at most, so the sum falls into two arithmetic series.
    """
    e0, e1 = a0 - b0, a1 - b1
    with np.errstate(over="ignore"):  # all but parallel lines cross beyond the largest number
        crossing = np.divide(-e0, e1, out=np.full(e0.shape, np.inf), where=e1 != 0)
    a_first = e0 >= 0
    changes = np.where(a_first, e1 < 0, e1 > 0)
    # First k of the second part; on the crossing itself both are equal.
    split = np.asarray(np.where(changes, np.clip(np.ceil(crossing), 0, steps), steps), dtype=np.float64)

    def series(c0: Floats, c1: Floats, n: Floats) -> Floats:
        return np.asarray(c0 * n + c1 * n * (n - 1) / 2, dtype=np.float64)

    whole = steps.astype(np.float64)
    a_all, b_all = series(a0, a1, whole), series(b0, b1, whole)
    a_head, b_head = series(a0, a1, split), series(b0, b1, split)
    return np.where(a_first, a_head + b_all - b_head, b_head + a_all - a_head)


@dataclass(frozen=True)
class RooflineCost:
    """Roofline costs of one replica of a cluster."""

    cluster: Cluster
    max_rows: int | None = None  # most sequences decoded together; None leaves memory as the only limit

    @property
    def limits(self) -> Limits:
        """The replica batches continuously and is bound by its memory."""
        return Limits(self.max_rows, self.cluster.kv_tokens)

    def call(self, context_S: Ints, trace: DecodeTrace) -> Call:
        """Price a call that prefills contexts of these lengths [S] and decodes this trace."""
        c, model, hw, eff = self.cluster, self.cluster.model, self.cluster.hardware, self.cluster.efficiency
        bandwidth = c.tensor_parallel * hw.bandwidth * eff.bandwidth
        decode_rate = c.tensor_parallel * hw.peak_flops * eff.decode_flops
        prefill_rate = c.tensor_parallel * hw.peak_flops * eff.prefill_flops
        weights, kv, per_key = model.decode_weight_bytes, model.kv_bytes_per_token, model.attention_flops_per_key

        rows_K, context_K = trace.rows_K.astype(float), trace.context_K.astype(float)
        per_row = model.body_flops_per_token + model.output_flops_per_token

        def roofline(bandwidth: float, rate: float) -> float:
            seconds_K = sum_of_larger(
                (weights + kv * context_K) / bandwidth,
                kv * rows_K / bandwidth,
                (per_row * rows_K + per_key * context_K) / rate,
                per_key * rows_K / rate,
                trace.steps_K,
            )
            return float(seconds_K.sum())

        decode_s = roofline(bandwidth, decode_rate)
        decode_s += trace.steps * eff.decode_step_s + self._reduce_s(trace.row_steps)

        tokens, pairs = int(context_S.sum()), float((context_S * (context_S + 1) // 2).sum())
        calls = -(-tokens // eff.prefill_call_tokens)
        flops = model.body_flops_per_token * tokens + model.output_flops_per_token * len(context_S) + per_key * pairs
        prefill_s = max(flops / prefill_rate, calls * weights / bandwidth)
        prefill_s += calls * eff.prefill_call_s + self._reduce_s(tokens)
        full_bandwidth, full_rate = c.tensor_parallel * hw.bandwidth, c.tensor_parallel * hw.peak_flops
        return Call(
            prefill_s=prefill_s,
            decode_s=decode_s,
            ideal_s=roofline(full_bandwidth, full_rate) + max(flops / full_rate, calls * weights / full_bandwidth),
            decode_bytes=weights * trace.steps + kv * float(trace.keys_read),
            decode_flops=per_row * float(trace.row_steps) + per_key * float(trace.keys_read),
            prefill_flops=flops,
        )

    def _reduce_s(self, tokens: int) -> float:
        """Time of two ring all-reduces a layer of one hidden vector a token [s]."""
        c, t = self.cluster, self.cluster.tensor_parallel
        each = 2 * (t - 1) / t * c.model.hidden * c.model.bytes_per_weight
        return 2 * c.model.layers * each * tokens / (c.hardware.link / 2 * c.efficiency.link)


class TrainingCost(Protocol):
    """What training passes over whole sequences cost."""

    def forward_s(self, sequence_S: Ints, outputs: int) -> float:
        """Time of a forward pass over sequences of these lengths [s], with the output layer at so many positions."""

    def update_s(self, sequence_S: Ints, outputs: int) -> float:
        """Time of a forward and a backward pass [s]."""

    def flops_in(self, seconds: float) -> float:
        """Arithmetic of passes that take so long [flop]."""


@dataclass(frozen=True)
class RooflineTraining:
    """Training on all accelerators of a cluster, bound by arithmetic; communication is inside the MFU.

    The critic has the policy's size. A response of k windows is read from its first token in each of its k steps:
    training keeps no keys.
    """

    cluster: Cluster

    def flops(self, sequence_S: Ints, outputs: int) -> float:
        """Arithmetic of a forward pass [flop]."""
        m = self.cluster.model
        pairs = float((sequence_S * (sequence_S + 1) // 2).sum())
        matrices = m.body_flops_per_token * float(sequence_S.sum()) + m.output_flops_per_token * outputs
        return matrices + m.attention_flops_per_key * pairs

    def forward_s(self, sequence_S: Ints, outputs: int) -> float:
        """Time of a forward pass over sequences of these lengths [s], with the output layer at so many positions."""
        c = self.cluster
        return self.flops(sequence_S, outputs) / (c.gpus * c.hardware.peak_flops * c.efficiency.train_flops)

    def update_s(self, sequence_S: Ints, outputs: int) -> float:
        """Time of an update [s]: backward costs two forward passes, and one more for each recomputation."""
        return (3 + self.cluster.efficiency.recompute) * self.forward_s(sequence_S, outputs)

    def flops_in(self, seconds: float) -> float:
        """Arithmetic of passes that take so long [flop], at the assumed share of peak."""
        c = self.cluster
        return seconds * c.gpus * c.hardware.peak_flops * c.efficiency.train_flops
