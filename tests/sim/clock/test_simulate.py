"""The clock's identities: PPO is a full window, tokens are counted once, better hardware is never slower."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from sim.clock.asynchronous import simulate_async
from sim.clock.equilibrium import expected
from sim.clock.fitted import FittedCost
from sim.clock.roofline import RooflineTraining
from sim.clock.serving import Limits, serve
from sim.clock.simulate import HARDWARE, MODELS, PPO, TPPO, Cluster, Lengths, Machine, Partial, Task, rollout, simulate

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


@pytest.mark.parametrize("schedule", [PPO(), TPPO(64), TPPO(300, ignore_last=8), Partial(40), Partial(95)])
@pytest.mark.parametrize("limits", [None, Limits(max_rows=5), Limits(kv_tokens=6000)])
def test_every_token_of_a_finished_response_is_generated_once(schedule: Any, limits: Limits | None) -> None:
    made: dict[int, list[int]] = {}
    final: dict[int, int] = {}
    finished: list[int] = []
    for step in islice(rollout(schedule, TASK, limits=limits, replicas=4, equilibrium=False), 40):
        assert len(step.uid_S) == TASK.slots == len(set(step.uid_S.tolist()))
        for uid, length, start, new, done in zip(
            step.uid_S.tolist(), step.length_S.tolist(), step.start_S.tolist(), step.new_S.tolist(),
            step.done_S.tolist(), strict=True,
        ):  # fmt: skip
            assert start == sum(made.get(uid, []))
            made.setdefault(uid, []).append(new)
            final[uid] = length
            if done:
                finished.append(uid)
    assert len(finished) == len(set(finished)) > 100
    assert all(sum(made[uid]) == final[uid] for uid in finished)
    assert all(sum(made[uid]) < final[uid] for uid in set(made) - set(finished))
    # Every response but those still in flight finishes: none is lost.
    assert len(made) - len(finished) < TASK.slots


def test_partial_rollouts_stop_with_enough_responses() -> None:
    for step in islice(rollout(Partial(30), TASK, replicas=4), 10):
        assert step.done_S.sum() >= 30
        # One decode step fewer and there would not be enough.
        earlier = np.maximum(step.new_S - 1, 0)
        assert (step.start_S + earlier == step.length_S).sum() < 30
        assert (step.trained_S == np.where(step.done_S, step.length_S, 0)).all()


def test_windows_train_each_token_once_but_the_ignored_last() -> None:
    for step in islice(rollout(TPPO(64, ignore_last=8), TASK), 10):
        left = step.length_S - step.start_S
        assert (step.new_S == np.minimum(left, 64)).all()
        assert (step.new_S - step.trained_S == np.where(step.done_S, 0, 8)).all()


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


def test_without_staleness_asynchronous_is_ppo() -> None:
    """One replica, the same lengths: the same seconds an update, to rounding."""
    one = Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H800"], gpus=2, tensor_parallel=2)
    task, machine = Task(LENGTHS, slots=24, prompt_tokens=50), Machine.of(one)
    ppo = simulate(PPO(), task, machine, steps=5, seed=2)
    apart = simulate_async(task, machine, RooflineTraining(one), batch=24, staleness=0, updates=5, warmup=0, seed=2)
    assert apart.seconds == pytest.approx(ppo.seconds, rel=1e-9)
    assert apart.tokens == ppo.tokens_R.mean()
    assert apart.stalest == 0


def test_staleness_overlaps_generation_and_training() -> None:
    """Never slower than apart, and never faster than the slower of the two alone."""
    one = Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H800"], gpus=2, tensor_parallel=2)
    one = one.with_efficiency(step_s=0.0)
    task, machine, trainer = Task(LENGTHS, 24, 50), Machine.of(one), RooflineTraining(one)
    runs = [simulate_async(task, machine, trainer, batch=24, staleness=s, updates=30) for s in (0, 1, 4)]
    assert runs[0].seconds > runs[1].seconds
    for run in runs:
        assert run.generating <= 1
        assert run.training <= 1
    assert runs[0].generating + runs[0].training < 1 < runs[2].generating + runs[2].training
    assert 0 == runs[0].staleness < runs[1].staleness < runs[2].staleness


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: TPPO(8, ignore_last=8), "ignore_last"),
        (lambda: Partial(0), "finish"),
        (lambda: Task(LENGTHS, 0), "slots"),
        (lambda: next(rollout(Partial(97), TASK)), "slots"),
        (lambda: simulate(PPO(), TASK, Machine.of(CLUSTER), steps=0), "steps"),
        (lambda: expected(TASK, 0), "window"),
        (lambda: serve(np.array([5]), np.array([6]), Limits(kv_tokens=10)), "tensor parallelism"),
        (lambda: serve(np.array([5]), np.array([0])), "at least 1"),
        (
            lambda: simulate_async(
                TASK, Machine.of(CLUSTER), RooflineTraining(CLUSTER), batch=7, staleness=0
            ),
            "replicas",
        ),
    ],
)  # fmt: skip
def test_nonsense_is_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
