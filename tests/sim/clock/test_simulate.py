"""The clock's identities: PPO is a full window, tokens are counted once, better hardware is never slower."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.clock.equilibrium import expected
from sim.clock.fitted import FittedCost
from sim.clock.hardware import HARDWARE, MODELS, Cluster
from sim.clock.lengths import Lengths
from sim.clock.schedules import PPO, TPPO, Partial, Task
from sim.clock.simulate import Machine, simulate

CLUSTER = Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H800"], gpus=16, tensor_parallel=2)
LENGTHS = Lengths.log_normal(300, 1.0, 4000)
TASK = Task(LENGTHS, slots=96, prompt_tokens=50)


def ppo_by_hand(task: Task, cluster: Cluster, seed: int) -> float:
    """One PPO step priced token by token, with none of the clock's closed forms."""
    m, hw, e = cluster.model, cluster.hardware, cluster.efficiency
    lengths = task.lengths.draw(np.random.default_rng(seed), task.slots)
    t, slowest = cluster.tensor_parallel, 0.0
    reduce_s = 2 * m.layers * 2 * (t - 1) / t * m.hidden * m.bytes_per_weight / (hw.link / 2 * e.link)
    weights = (m.body_weights + m.output_weights) * m.bytes_per_weight
    per_row, per_key = 2 * (m.body_weights + m.output_weights), 4 * m.layers * m.heads * m.head_dim
    for replica in range(cluster.replicas):
        mine = lengths[replica :: cluster.replicas]
        prompt = task.prompt_tokens
        flops = len(mine) * (2 * m.body_weights * prompt + 2 * m.output_weights + per_key * prompt * (prompt + 1) / 2)
        calls = -(-len(mine) * prompt // e.prefill_call_tokens)
        seconds = max(flops / (t * hw.peak_flops * e.prefill_flops), calls * weights / (t * hw.bandwidth * e.bandwidth))
        seconds += calls * e.prefill_call_s + len(mine) * prompt * reduce_s
        for k in range(mine.max() - 1):
            rows = int((mine - 1 > k).sum())
            keys = rows * (prompt + 1 + k)
            moved = (weights + m.kv_bytes_per_token * keys) / (t * hw.bandwidth * e.bandwidth)
            computed = (per_row * rows + per_key * keys) / (t * hw.peak_flops * e.decode_flops)
            seconds += max(moved, computed) + e.decode_step_s + rows * reduce_s
        slowest = max(slowest, seconds)
    sequence = lengths + task.prompt_tokens
    body = 2 * m.body_weights * sequence.sum() + per_key * (sequence * (sequence + 1) // 2).sum()
    output = 2 * m.output_weights * lengths.sum()
    rate = cluster.gpus * hw.peak_flops * e.train_flops
    passes = 1 + e.recompute + 3  # one to score, then the update
    return float(slowest + passes * (2 * body + output) / rate + cluster.load_s + e.step_s)


def test_ppo_agrees_with_a_token_by_token_price() -> None:
    report = simulate(PPO(), TASK, Machine.of(CLUSTER), steps=1, seed=3)
    assert report.seconds == pytest.approx(ppo_by_hand(TASK, CLUSTER, 3), rel=1e-12)


@pytest.mark.parametrize("window", [4000, 5000])
@pytest.mark.parametrize("max_rows", [None, 3])
def test_a_window_of_the_longest_length_is_ppo(window: int, max_rows: int | None) -> None:
    machine = Machine.of(CLUSTER, max_rows=max_rows)
    # The slots of T-PPO begin in equilibrium, which for such a window is "new".
    ppo = simulate(PPO(), TASK, machine, steps=5, seed=1, equilibrium=False)
    cut = simulate(TPPO(window, ignore_last=8), TASK, machine, steps=5, seed=1, equilibrium=False)
    partial = simulate(Partial(TASK.slots), TASK, machine, steps=5, seed=1)
    for other in (cut, partial):
        assert (other.seconds_R == ppo.seconds_R).all()
        assert other.phases == ppo.phases
        assert (other.trained_R == ppo.trained_R).all()


def linear_machine() -> Machine:
    """Decoding priced linearly, so that only the schedule matters."""
    return Machine(FittedCost(0.0, 1e-3, 2e-5, 0.0, 1e-7, 3e-5, 1e-9))


@pytest.mark.parametrize("window", [1, 7, 64, 100, 199, 200, 300])
def test_constant_lengths_gain_nothing(window: int) -> None:
    """No tail, nothing to win: every window re-reads what PPO keeps. In any phase of the slots."""
    task = Task(Lengths.constant(200), slots=32, prompt_tokens=20)
    for machine, equilibrium in ((linear_machine(), True), (linear_machine(), False), (Machine.of(CLUSTER), False)):
        # All slots in phase: whole cycles compare. Mixed phases: the average does.
        cycle = -(-200 // window)
        ppo = simulate(PPO(), task, machine, steps=1)
        cut = simulate(TPPO(window), task, machine, steps=cycle, equilibrium=equilibrium, seed=1)
        if equilibrium:
            e = expected(task, window)
            per_response = cut.seconds / e.finished
        else:
            per_response = cut.seconds_R.sum() / cut.finished_R.sum()
            assert cut.finished_R.sum() == task.slots
        assert per_response * (1 + 1e-9) >= ppo.seconds / task.slots


@pytest.mark.parametrize(
    ("field", "better"),
    [
        ("bandwidth", 1.0), ("link", 1.0), ("decode_flops", 1.0), ("prefill_flops", 1.0), ("train_flops", 1.0),
        ("network", 1e12), ("decode_step_s", 0.0), ("prefill_call_s", 0.0), ("step_s", 0.0), ("recompute", 0.0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("schedule", [PPO(), TPPO(256)])
def test_better_software_is_faster(schedule: Any, field: str, better: float) -> None:
    before = simulate(schedule, TASK, Machine.of(CLUSTER), steps=2)
    after = simulate(schedule, TASK, Machine.of(CLUSTER.with_efficiency(**{field: better})), steps=2)
    assert after.seconds < before.seconds or (field == "decode_flops" and after.seconds == before.seconds)
    assert (after.tokens_R == before.tokens_R).all()


def test_better_hardware_is_faster() -> None:
    """H200 over H100 over H800: bandwidth and links; more memory only ever admits more rows."""
    tight = Task(LENGTHS, slots=4096, prompt_tokens=50)
    seconds = []
    for name in ("H800", "H100", "H200"):
        cluster = Cluster(MODELS["Qwen2.5-32B"], HARDWARE[name], gpus=8, tensor_parallel=2)
        seconds.append(simulate(PPO(), tight, Machine.of(cluster), steps=1).seconds)
    assert seconds[0] > seconds[1] > seconds[2]


def test_shares_are_shares() -> None:
    for schedule in (PPO(), TPPO(128), Partial(60)):
        r = simulate(schedule, TASK, Machine.of(CLUSTER), steps=3)
        assert 0 < r.slots_busy <= 1
        assert 0 < r.roofline < 1
        assert 0 < r.mfu < 1
        assert r.seconds == pytest.approx(sum(r.phases.values()))
    perfect = CLUSTER.with_efficiency(
        bandwidth=1.0, decode_flops=1.0, prefill_flops=1.0, link=1.0, decode_step_s=0.0, prefill_call_s=0.0
    )
    alone = Cluster(perfect.model, perfect.hardware, 1, 1, perfect.efficiency)  # no all-reduce on one accelerator
    assert simulate(PPO(), TASK, Machine.of(alone), steps=2).roofline == pytest.approx(1.0)


def test_same_seed_same_bits() -> None:
    a, b, c = (simulate(TPPO(128), TASK, Machine.of(CLUSTER), steps=4, seed=s) for s in (5, 5, 6))
    assert (a.seconds_R == b.seconds_R).all()
    assert (a.seconds_R != c.seconds_R).any()


def test_no_steps_are_refused() -> None:
    with pytest.raises(ValueError, match="steps"):
        simulate(PPO(), TASK, Machine.of(CLUSTER), steps=0)
