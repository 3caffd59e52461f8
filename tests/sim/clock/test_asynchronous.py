"""Asynchronous rollouts: PPO without staleness, overlap with it."""

from __future__ import annotations

import pytest

from sim.clock.asynchronous import simulate_async
from sim.clock.hardware import HARDWARE, MODELS, Cluster
from sim.clock.lengths import Lengths
from sim.clock.roofline import RooflineTraining
from sim.clock.schedules import PPO, Task
from sim.clock.simulate import Machine, simulate

LENGTHS = Lengths.log_normal(300, 1.0, 4000)


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


def test_a_batch_is_a_multiple_of_the_replicas() -> None:
    cluster = Cluster(MODELS["Qwen2.5-7B"], HARDWARE["H800"], gpus=16, tensor_parallel=2)
    task, machine = Task(LENGTHS, slots=96, prompt_tokens=50), Machine.of(cluster)
    with pytest.raises(ValueError, match="replicas"):
        simulate_async(task, machine, RooflineTraining(cluster), batch=7, staleness=0)
