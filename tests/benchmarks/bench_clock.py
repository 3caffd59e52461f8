"""How fast the clock is, and what its closed forms save over pricing every decode step.

    python -m tests.benchmarks.bench_clock

Runs take turns; times are medians of five (smallest to largest).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from sim.clock.equilibrium import expected
from sim.clock.hardware import HARDWARE, MODELS, Cluster
from sim.clock.lengths import Lengths
from sim.clock.roofline import RooflineCost
from sim.clock.schedules import PPO, TPPO, Task
from sim.clock.serving import DecodeTrace, Limits, serve
from sim.clock.simulate import Machine, simulate

CLUSTER = Cluster(MODELS["Qwen2.5-32B"], HARDWARE["H800"], gpus=64, tensor_parallel=8)
LENGTHS = Lengths.log_normal(2000, 1.0, 24576)
REPEATS = 5


def every_step(context_S: np.ndarray, new_S: np.ndarray) -> DecodeTrace:
    """The same trace with a run of one for each decode step."""
    steps = np.arange(new_S.max() - 1)
    ends = np.sort(new_S - 1)
    order = np.argsort(new_S - 1, kind="stable")
    first = np.searchsorted(ends, steps, side="right")
    suffix = np.r_[np.cumsum((context_S + 1)[order][::-1])[::-1], 0]
    rows = len(new_S) - first
    return DecodeTrace(np.ones_like(steps), rows, suffix[first] + rows * steps, np.zeros_like(steps))


def main() -> None:
    """Print the table."""
    rng = np.random.default_rng(0)
    new_S, context_S = LENGTHS.draw(rng, 512), np.full(512, 200)
    price = RooflineCost(CLUSTER).call
    both = (
        price(context_S, serve(context_S, new_S)[0]).decode_s,
        price(context_S, every_step(context_S, new_S)).decode_s,
    )
    assert abs(both[0] / both[1] - 1) < 1e-9, both
    machine = Machine.of(CLUSTER)

    def step(schedule: PPO | TPPO, slots: int) -> Callable[[], object]:
        task = Task(LENGTHS, slots, 200)
        return lambda: simulate(schedule, task, machine, steps=1)

    calls: dict[str, Callable[[], object]] = {
        "price 512 rows, runs": lambda: price(context_S, serve(context_S, new_S)[0]),
        "price 512 rows, every decode step": lambda: price(context_S, every_step(context_S, new_S)),
        "serve 1,024 rows in limited memory": lambda: serve(
            np.full(1024, 200), np.resize(new_S, 1024), Limits(None, 10**6)
        ),
        "PPO step, 512 slots": step(PPO(), 512),
        "PPO step, 8,192 slots": step(PPO(), 8192),
        "T-PPO step, 8,192 slots, window 4,096": step(TPPO(4096), 8192),
        "exact expectations, 8,192 slots": lambda: expected(Task(LENGTHS, 8192, 200), 4096),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):
        for name, call in calls.items():
            at = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - at)
    for name, s in seconds.items():
        print(f"{name:<42} {1e3 * statistics.median(s):>8.2f} ms ({1e3 * min(s):.2f} to {1e3 * max(s):.2f})")


if __name__ == "__main__":
    main()
