"""Prices of an engine's work fitted to measured runs: no roofline, seven numbers and a knee.

Shape suffixes: _S requests, _K runs of decode steps with the same rows, _R measured runs, _F features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.clock.hardware import Hardware, ModelProfile
from sim.clock.lengths import Floats, Ints
from sim.clock.roofline import Call
from sim.clock.serving import DecodeTrace, Limits, padded_prefill

FEATURES = ("call", "decode_step", "decoded_token", "few_rows_token", "key_read", "prefill_token", "prefill_pair")
KNEES = (2, 4, 8, 16, 32)  # candidates for few_rows
Work = Sequence[tuple[Ints, DecodeTrace]]  # contexts and trace of each call of a run


@dataclass(frozen=True)
class FittedCost:
    """An engine that was measured: seconds are a non-negative combination of seven counts (`FEATURES`)."""

    call_s: float  # price of one call [s]
    decode_step_s: float  # price of one decode step, however many rows [s]
    decoded_token_s: float  # price of each token of a decode step [s]
    few_rows_token_s: float  # extra price of each of the first few_rows tokens of a decode step [s]
    key_read_s: float  # price of each key that a decode step reads [s]
    prefill_token_s: float  # price of each position prefilled [s]
    prefill_pair_s: float  # price of each key that one of these positions looks at [s]
    few_rows: int = 8
    # The engine reads as many keys for every row as the longest has, and prefills rectangles of at most
    # prefill_call_tokens (the embedded engine). Otherwise no position is padding (vLLM).
    padded: bool = False
    prefill_call_tokens: int = 32768
    limits: Limits = field(default_factory=Limits)

    @property
    def prices(self) -> Floats:
        """[F] the seven prices in the order of FEATURES [s]."""
        return np.array([getattr(self, f"{name}_s") for name in FEATURES])

    def call(self, context_S: Ints, trace: DecodeTrace) -> Call:
        """Price a call that prefills contexts of these lengths [S] and decodes this trace."""
        counts = features(
            context_S, trace, padded=self.padded, few_rows=self.few_rows, prefill_call_tokens=self.prefill_call_tokens
        )
        price = counts * self.prices
        return Call(prefill_s=float(price[5:].sum()), decode_s=float(price[:5].sum()))

    def hardware(self, model: ModelProfile, *, memory: float, name: str = "cpu") -> Hardware:
        """The data sheet that this engine, running ``model``, amounts to: what it reached, not what it could.

        Its peak arithmetic is that of prefill, its bandwidth that of keys and values in decode steps. The fixed costs
        (`call_s`, `decode_step_s`) are no rate and go into `Efficiency`. Raises ValueError where a rate was too fast
        to be priced.

        Args:
            memory: of the machine [byte].
        """
        if not (self.prefill_token_s > 0 and self.key_read_s > 0):
            raise ValueError(
                f"FittedCost.hardware: found prefill_token_s {self.prefill_token_s}, key_read_s {self.key_read_s}; "
                "expected both above 0; fit to runs with longer contexts."
            )
        bandwidth = model.kv_bytes_per_token / self.key_read_s
        return Hardware(
            name, model.body_flops_per_token / self.prefill_token_s, bandwidth, memory, bandwidth, "measured"
        )

    def seconds(self, work: Work) -> float:
        """Time of all calls of a run [s]."""
        return sum(self.call(context_S, trace).seconds for context_S, trace in work)


def features(
    context_S: Ints, trace: DecodeTrace, *, padded: bool, few_rows: int, prefill_call_tokens: int = 32768
) -> Floats:
    """[F] counts of one call in the order of FEATURES."""
    if padded:
        keys, (positions, pairs) = trace.padded_keys_read, padded_prefill(context_S, prefill_call_tokens)
    else:
        keys, positions = trace.keys_read, int(context_S.sum())
        pairs = int((context_S * (context_S + 1) // 2).sum())
    few = int(trace.steps_K @ np.minimum(trace.rows_K, few_rows))
    return np.array([1.0, trace.steps, trace.row_steps, few, keys, positions, pairs], dtype=float)


def fit_cost(runs: Sequence[Work], seconds_R: Floats, *, padded: bool, prefill_call_tokens: int = 32768) -> FittedCost:
    """Non-negative least squares of *relative* errors over measured runs, for the best of KNEES.

    Args:
        runs: [R] contexts and trace of each call of each run.
        seconds_R: [R] measured duration of each run [s].
    """
    seconds_R = np.asarray(seconds_R, dtype=float)
    if len(runs) != len(seconds_R) or len(runs) <= len(FEATURES) or not (seconds_R > 0).all():
        raise ValueError(
            f"fit_cost: found {len(runs)} runs and {len(seconds_R)} times; expected as many of both, more than "
            f"{len(FEATURES)}, and all times above 0."
        )
    best, least = None, np.inf
    for knee in KNEES:
        counts_RF = np.array([_counts(work, padded, knee, prefill_call_tokens) for work in runs])
        scale_F = np.maximum(counts_RF.max(0), 1.0)
        relative_RF = counts_RF / scale_F / seconds_R[:, None]
        x_F = non_negative_least_squares(relative_RF, np.ones(len(seconds_R)))
        error = float(((relative_RF @ x_F - 1) ** 2).sum())
        if error < least:
            least = error
            call_s, step_s, token_s, few_s, key_s, position_s, pair_s = (x_F / scale_F).tolist()
            best = FittedCost(
                call_s, step_s, token_s, few_s, key_s, position_s, pair_s, knee, padded, prefill_call_tokens
            )
    assert best is not None
    return best


def _counts(work: Work, padded: bool, knee: int, prefill_call_tokens: int) -> Floats:
    """[F] counts of all calls of a run together."""
    rows = [features(c, t, padded=padded, few_rows=knee, prefill_call_tokens=prefill_call_tokens) for c, t in work]
    return np.array(rows).sum(0)


def non_negative_least_squares(a_RF: Floats, b_R: Floats) -> Floats:
    """argmin |a x - b| over x >= 0, exact, for a few unknowns: the best feasible solution over all supports.

    The optimum is the unconstrained solution on its own support, so for F unknowns 2^F small solves find it.
    """
    unknowns = a_RF.shape[1]
    best_F, least = np.zeros(unknowns), float(b_R @ b_R)
    for mask in range(1, 2**unknowns):
        support = [f for f in range(unknowns) if mask >> f & 1]
        x = np.linalg.lstsq(a_RF[:, support], b_R, rcond=None)[0]
        error = a_RF[:, support] @ x - b_R
        if (x >= 0).all() and float(error @ error) < least:
            least = float(error @ error)
            best_F = np.zeros(unknowns)
            best_F[support] = x
    return best_F
