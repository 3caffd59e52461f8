"""Prices of an engine's work fitted to measured runs: no roofline, seven numbers and a knee."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from sim.clock.hardware import Hardware, ModelProfile
from sim.clock.roofline import Call
from sim.clock.serving import DecodeTrace, Floats, Ints, Limits, padded_prefill

FEATURES = ("call", "decode_step", "decoded_token", "few_rows_token", "key_read", "prefill_token", "prefill_pair")
KNEES = (2, 4, 8, 16, 32)
Work = Sequence[tuple[Ints, DecodeTrace]]  # contexts and trace of each call of a run


@dataclass(frozen=True)
class FittedCost:
    """An engine that was measured: seconds are a non-negative combination of seven counts (`FEATURES`).

    call_s: of one call. decode_step_s: of one decode step, however many rows. decoded_token_s: of each token of a
    decode step. few_rows_token_s: what each of the first ``few_rows`` tokens of a step costs on top; kernels are less
    efficient on few rows. key_read_s: of each key read by a decode step. prefill_token_s: of each position prefilled.
    prefill_pair_s: of each key that one of them looks at. padded: the engine reads as many keys for every row as the
    longest has and prefills rectangles of at most ``prefill_call_tokens`` (the embedded engine); otherwise no position
    is padding (vLLM).
    """

    call_s: float
    decode_step_s: float
    decoded_token_s: float
    few_rows_token_s: float
    key_read_s: float
    prefill_token_s: float
    prefill_pair_s: float
    few_rows: int = 8
    padded: bool = False
    prefill_call_tokens: int = 32768
    limits: Limits = field(default_factory=Limits)

    @property
    def prices(self) -> Floats:
        """The seven prices in the order of FEATURES [s]."""
        return np.array([getattr(self, f"{name}_s") for name in FEATURES])

    def call(self, context_S: Ints, trace: DecodeTrace) -> Call:
        """Price of one call."""
        counts = features(
            context_S, trace, padded=self.padded, few_rows=self.few_rows, prefill_call_tokens=self.prefill_call_tokens
        )
        price = counts * self.prices
        return Call(prefill_s=float(price[5:].sum()), decode_s=float(price[:5].sum()))

    def hardware(self, model: ModelProfile, *, memory: float, name: str = "cpu") -> Hardware:
        """The data sheet that this engine, running ``model``, amounts to: what it reached, not what it could.

        peak_flops: matrix products of prefill, its best arithmetic. bandwidth: keys and values read by decode steps.
        The fixed costs (`call_s`, `decode_step_s`) are no rate and go into `Efficiency`. memory: of the machine
        [byte]. Raises ValueError where a rate was too fast to be priced.
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
        """Price of the calls of a run [s]."""
        return sum(self.call(context_S, trace).seconds for context_S, trace in work)


def features(
    context_S: Ints, trace: DecodeTrace, *, padded: bool, few_rows: int, prefill_call_tokens: int = 32768
) -> Floats:
    """The counts of one call in the order of FEATURES."""
    if padded:
        keys, (positions, pairs) = trace.padded_keys_read, padded_prefill(context_S, prefill_call_tokens)
    else:
        keys, positions = trace.keys_read, int(context_S.sum())
        pairs = int((context_S * (context_S + 1) // 2).sum())
    few = int(trace.steps_K @ np.minimum(trace.rows_K, few_rows))
    return np.array([1.0, trace.steps, trace.row_steps, few, keys, positions, pairs], dtype=float)


def fit_cost(runs: Sequence[Work], seconds_R: Floats, *, padded: bool, prefill_call_tokens: int = 32768) -> FittedCost:
    """Non-negative least squares of *relative* errors over measured runs, for the best of KNEES.

    runs: calls of each run. seconds_R: measured, of each run [s].
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
