"""Exact expectations of T-PPO's schedule in equilibrium, without simulation.

A slot is a renewal process: it holds a response for ceil(L / W) steps, then the next one begins. Slots are independent.
In equilibrium the chance that a slot is at window k of a response of length l is p(l) / E[ceil(L / W)] for each
k = 1 .. ceil(l / W), so everything a step generates, prefills and trains on follows from the length distribution by
sums. With W at least the longest length this is PPO.

Shape suffixes: _L lengths, _J numbers of tokens in a window.
"""

from dataclasses import dataclass

import numpy as np

from sim.clock.lengths import Floats
from sim.clock.schedules import Task


@dataclass(frozen=True)
class Expected:
    """Expectations of one step over all slots, in equilibrium."""

    windows_per_response: float  # E[ceil(L / W)]
    finished: float  # responses that finish
    new_tokens: float  # tokens generated
    decode_steps: float  # decode steps until the last slot is done
    row_steps: float  # tokens that decode steps yield; prefill yields the first token of each slot
    keys_read: float  # keys that decode steps read, without padding
    prefill_tokens: float  # prompts and carried tokens
    sequence_tokens: float  # prompts, carried and new tokens, which is what training reads
    slots_busy: float  # new_tokens over slots times (decode_steps + 1), a ratio of expectations


def expected(task: Task, window: int) -> Expected:
    """Exact expectations for this window [token], where all slots decode together without limits of rows or memory."""
    if window < 1:
        raise ValueError(f"expected: found window {window}; expected at least 1 token.")
    lengths, prompt = task.lengths, task.prompt_tokens
    p_L, l_L = lengths.prob_L, lengths.support_L
    n_L = lengths.windows_L(window)
    cycle = float(p_L @ n_L)
    last_L = l_L - (n_L - 1) * window  # tokens of the last window

    def per_slot(total_L: Floats) -> float:
        """Expectation, a slot and step, of a quantity that adds up to this over a response's windows [L]."""
        return float(p_L @ total_L) / cycle

    carried_L = window * n_L * (n_L - 1) / 2.0
    full_L = n_L - 1.0
    # Full window k starts from prompt + (k - 1) W keys and reads one more at each of its W - 1 decode steps.
    keys_L = (window - 1) * (prompt * full_L + window * full_L * (full_L - 1) / 2) + full_L * _triangle(window)
    keys_L = keys_L + (last_L - 1) * (prompt + full_L * window) + last_L * (last_L - 1) / 2.0

    # P(a slot's new tokens > j) for j = 0 .. W - 1: every full window, and last windows longer than j.
    longest = int(min(window, lengths.cap))
    last_prob_J = np.bincount(last_L, weights=p_L, minlength=longest + 1)  # of a last window of exactly j tokens
    more_J = (float(p_L @ full_L) + 1.0 - np.cumsum(last_prob_J)[:longest]) / cycle
    log_none_J = task.slots * np.log1p(-np.clip(more_J, 0.0, 1.0 - 1e-16))
    most = float((-np.expm1(log_none_J)).sum())  # E[max over slots] = sum over j of P(max > j)

    slots = task.slots
    new_tokens = slots * per_slot(l_L.astype(float))
    prefill = slots * (prompt + per_slot(carried_L))
    return Expected(
        windows_per_response=cycle,
        finished=slots / cycle,
        new_tokens=new_tokens,
        decode_steps=most - 1.0,
        row_steps=new_tokens - slots,
        keys_read=slots * per_slot(keys_L),
        prefill_tokens=prefill,
        sequence_tokens=prefill + new_tokens,
        slots_busy=new_tokens / (slots * most),
    )


def _triangle(n: int) -> float:
    """0 + 1 + ... + (n - 1)."""
    return n * (n - 1) / 2.0
