"""Exact expectations of T-PPO's schedule against brute force over a small table, and against simulation."""

from __future__ import annotations

from itertools import islice, product

import numpy as np
import pytest

from sim.clock.equilibrium import expected
from sim.clock.fitted import FittedCost
from sim.clock.lengths import Lengths
from sim.clock.schedules import PPO, TPPO, Task, rollout, trace_of
from sim.clock.serving import serve
from sim.clock.simulate import Machine, simulate

SMALL = Lengths.sample([1, 2, 2, 5, 9], name="small")
TAILED = Task(Lengths.log_normal(60, 1.2, 900), slots=48, prompt_tokens=30)
NAMES = ("finished", "new_tokens", "decode_steps", "row_steps", "keys_read", "prefill_tokens", "sequence_tokens")
Z = 4.5  # standard errors; a false alarm in one of 4 x 8 comparisons has probability below 3e-4


def slot_states(lengths: Lengths, window: int) -> list[tuple[float, int, int]]:
    """Equilibrium probability, tokens there and new tokens of every state of one slot, from its Markov chain.

    A state is (length, window index); the chain goes to the next window, or to a new response.
    """
    states = [(n, k) for n in range(1, lengths.cap + 1) for k in range(-(-n // window))]
    at = {s: i for i, s in enumerate(states)}
    chain = np.zeros((len(states), len(states)))
    for (n, k), i in at.items():
        if (n, k + 1) in at:
            chain[i, at[n, k + 1]] = 1.0
        else:
            for m in range(1, lengths.cap + 1):
                chain[i, at[m, 0]] += lengths.prob_L[m - 1]
    # Left null vector with unit sum.
    system = np.vstack([chain.T - np.eye(len(states)), np.ones(len(states))])
    p = np.linalg.lstsq(system, np.r_[np.zeros(len(states)), 1.0], rcond=None)[0]
    return [(float(p[i]), k * window, min(window, n - k * window)) for (n, k), i in at.items()]


@pytest.mark.parametrize("window", [1, 2, 3, 4, 5, 8, 9, 20])
def test_expectations_against_all_states_of_two_slots(window: int) -> None:
    states = [s for s in slot_states(SMALL, window) if s[0] > 1e-15]
    prompt = 3
    sums = dict.fromkeys(NAMES, 0.0)
    for one, two in product(states, repeat=2):
        p = one[0] * two[0]
        start, new = np.array([one[1], two[1]]), np.array([one[2], two[2]])
        trace, _ = serve(start + prompt, new)
        sums["new_tokens"] += p * new.sum()
        sums["decode_steps"] += p * trace.steps
        sums["row_steps"] += p * trace.row_steps
        sums["keys_read"] += p * trace.keys_read
        sums["prefill_tokens"] += p * (start + prompt).sum()
        sums["sequence_tokens"] += p * (start + prompt + new).sum()
    e = expected(Task(SMALL, slots=2, prompt_tokens=prompt), window)
    cycle = sum(p * -(-n // window) for n, p in enumerate(SMALL.prob_L, 1))
    sums["finished"] = 2 / cycle
    assert e.windows_per_response == pytest.approx(cycle)
    for name, value in sums.items():
        assert getattr(e, name) == pytest.approx(value, rel=1e-9), name
    assert e.slots_busy == pytest.approx(e.new_tokens / (2 * (e.decode_steps + 1)))


@pytest.mark.parametrize("window", [40, 128, 300, 900])
def test_simulation_agrees_with_expectations(window: int) -> None:
    """Independent short runs, each from equilibrium: every mean within Z standard errors."""
    e = expected(TAILED, window)
    samples: dict[str, list[float]] = {name: [] for name in NAMES}
    for seed in range(150):
        steps = list(islice(rollout(TPPO(window), TAILED, seed=seed), 3))
        step = steps[-1]  # two steps on, still in equilibrium
        context, trace = trace_of(step, TAILED)
        samples["finished"].append(float(step.done_S.sum()))
        samples["new_tokens"].append(float(step.new_S.sum()))
        samples["decode_steps"].append(trace.steps)
        samples["keys_read"].append(trace.keys_read)
        samples["prefill_tokens"].append(float(context.sum()))
        samples["row_steps"].append(trace.row_steps)
        samples["sequence_tokens"].append(float((context + step.new_S).sum()))
    for name, values in samples.items():
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        # A step shorter than the window can be too rare to be seen in 150 runs: a share of 1e-6 is let pass.
        assert abs(np.mean(values) - getattr(e, name)) <= Z * error + 1e-6 * getattr(e, name), name


def test_a_run_from_new_slots_comes_to_the_same_rate() -> None:
    """The renewal theorem: finished responses a step tend to slots / E[ceil(L / W)]."""
    task = Task(TAILED.lengths, slots=400, prompt_tokens=5)
    done = [int(s.done_S.sum()) for s in islice(rollout(TPPO(64), task, equilibrium=False), 400)][30:]
    rate = expected(task, 64).finished
    # Batches of ten steps are close to independent.
    batches = np.array(done).reshape(-1, 10).mean(1)
    assert abs(batches.mean() - rate) <= Z * batches.std(ddof=1) / np.sqrt(len(batches))


def test_expected_time_is_exact_where_the_price_is_linear() -> None:
    price = FittedCost(0.0, 1e-3, 2e-5, 0.0, 1e-7, 3e-5, 0.0)
    e = expected(TAILED, 128)
    seconds = 1e-3 * e.decode_steps + 2e-5 * e.row_steps + 1e-7 * e.keys_read + 3e-5 * e.prefill_tokens
    runs = [simulate(TPPO(128), TAILED, Machine(price), steps=2, seed=s).seconds for s in range(150)]
    assert abs(np.mean(runs) - seconds) <= Z * np.std(runs, ddof=1) / np.sqrt(len(runs))


def test_a_full_window_expects_what_ppo_does() -> None:
    e = expected(TAILED, 900)
    assert e.windows_per_response == pytest.approx(1.0)
    assert e.prefill_tokens == pytest.approx(48 * 30)
    assert e == expected(TAILED, 10_000)
    report = simulate(PPO(), TAILED, Machine(FittedCost(0, 1, 0, 0, 0, 0, 0)), steps=400)
    error = report.seconds_R.std(ddof=1) / 20
    assert abs(report.seconds - e.decode_steps) <= Z * error


def test_no_window_is_refused() -> None:
    with pytest.raises(ValueError, match="window"):
        expected(TAILED, 0)
