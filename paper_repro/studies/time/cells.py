"""What the study `clock` computes: speed-ups over tails, slots and windows, seconds by phase, sensitivities."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from sim.clock.asynchronous import simulate_async
from sim.clock.hardware import HARDWARE, MODELS, Cluster
from sim.clock.lengths import Lengths
from sim.clock.roofline import RooflineTraining
from sim.clock.schedules import PPO, TPPO, Partial, Schedule, Task
from sim.clock.simulate import PHASES, Machine, Report, simulate

Rows = list[dict[str, Any]]
CAP, PROMPT, MEDIAN, IGNORE_LAST = 24576, 200, 2000.0, 8


@dataclass(frozen=True)
class Grid:
    """The values of everything that is varied.

    sigmas: of the logarithm of lengths. steps: simulated for each cell; fewer for many slots.
    """

    sigmas: tuple[float, ...] = (0.5, 1.0, 1.5)
    slots: tuple[int, ...] = (128, 1024, 8192)
    windows: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384, CAP)
    steps: int = 8
    model: str = "Qwen2.5-32B"
    hardware: str = "H800"
    gpus: int = 64
    tensor_parallel: int = 8
    reference: tuple[float, int, int] = (1.0, 512, 4096)  # sigma, slots and window of phases and sensitivities

    @property
    def cluster(self) -> Cluster:
        """The machine of all cells but those of the sensitivities."""
        return Cluster(MODELS[self.model], HARDWARE[self.hardware], self.gpus, self.tensor_parallel)

    def cell_steps(self, slots: int) -> int:
        """How many steps are simulated; many slots need few, for they average by themselves."""
        return max(2, self.steps // 2) if slots > 2048 else self.steps


FULL = Grid(
    sigmas=(0.25, 0.5, 0.75, 1.0, 1.25, 1.5),
    slots=(64, 128, 256, 512, 1024, 2048, 4096, 8192),
    windows=(512, 1024, 2048, 3072, 4096, 6144, 8192, 12288, 16384, CAP),
    steps=16,
)


def lengths(sigma: float, median: float = MEDIAN) -> Lengths:
    """Log-normal response lengths, cut at the cap."""
    return Lengths.log_normal(median, sigma, CAP)


def speed_up_cell(job: tuple[Grid, float, int, int]) -> Rows:
    """Simulate all windows of one tail and number of slots for one seed, a row each."""
    grid, sigma, slots, seed = job
    machine, task = Machine.of(grid.cluster), Task(lengths(sigma), slots, PROMPT)

    def run(schedule: Schedule) -> Report:
        return simulate(schedule, task, machine, steps=grid.cell_steps(slots), seed=seed)

    ppo = run(PPO())
    rows: Rows = []
    for window in grid.windows:
        cut, ideal = (run(TPPO(window, min(IGNORE_LAST, window - 1), reread)) for reread in (True, False))
        rows.append(
            {
                "kind": "speed-up", "sigma": sigma, "slots": slots, "window": window, "seed": seed,
                "mean_length": task.lengths.mean,
                "speed_up": cut.trained_per_second / ppo.trained_per_second,
                "speed_up_finished": cut.finished_per_second / ppo.finished_per_second,
                "speed_up_read_once": ideal.trained_per_second / ppo.trained_per_second,
                "ppo_decode_share": ppo.phases["decode"] / ppo.seconds,
                "slots_busy": cut.slots_busy, "ppo_slots_busy": ppo.slots_busy, "roofline": cut.roofline,
                "intensity": cut.intensity, "mfu": cut.mfu, "ppo_mfu": ppo.mfu, "step_s": cut.seconds,
            }
        )  # fmt: skip
    return rows


def phase_cell(job: tuple[Grid, str, int]) -> Rows:
    """Simulate one schedule at the reference: seconds by phase for a million trained tokens."""
    grid, name, seed = job
    sigma, slots, _ = grid.reference
    machine, task = Machine.of(grid.cluster), Task(lengths(sigma), slots, PROMPT)
    schedule = schedules(grid)[name]
    warmup = 6 if isinstance(schedule, Partial) else 0
    report = simulate(schedule, task, machine, steps=grid.steps, warmup=warmup, seed=seed)
    scale = 1e6 * len(report.seconds_R) / report.trained_R.sum()
    return [
        {"kind": "phases", "sigma": sigma, "slots": slots, "schedule": name, "seed": seed,
         "slots_busy": report.slots_busy, "roofline": report.roofline, "mfu": report.mfu, "step_s": report.seconds}
        | {f"{phase}_s_per_million": report.phases[phase] * scale for phase in PHASES}
    ]  # fmt: skip


def schedules(grid: Grid) -> dict[str, Schedule]:
    """The schedules whose phases are shown."""
    slots = grid.reference[1]
    windows = {f"T-PPO {w:,}": TPPO(w, IGNORE_LAST) for w in (1024, 2048, 4096, 8192)}
    return {"PPO": PPO(), **windows, "partial, ¾": Partial(slots * 3 // 4), "partial, ½": Partial(slots // 2)}


def asynchronous_cell(job: tuple[Grid, int, int]) -> Rows:
    """Simulate half of the accelerators generating and half training, with the reference's slots and batch."""
    grid, staleness, seed = job
    sigma, slots, _ = grid.reference
    half = replace(grid.cluster, gpus=grid.gpus // 2)
    task = Task(lengths(sigma), slots, PROMPT)
    report = simulate_async(
        task, Machine.of(half), RooflineTraining(half), batch=slots, staleness=staleness, updates=8, warmup=3, seed=seed
    )
    return [
        {"kind": "asynchronous", "sigma": sigma, "slots": slots, "schedule": f"staleness {staleness}", "seed": seed,
         "step_s": report.seconds, "trained_per_second": report.trained_per_second,
         "slots_busy": report.generating}
    ]  # fmt: skip


CHANGES: dict[str, dict[str, Any]] = {
    "as assumed": {},
    "H100": {"hardware": "H100"},
    "H200": {"hardware": "H200"},
    "Qwen2.5-7B, tensor parallel 2": {"model": "Qwen2.5-7B", "tensor_parallel": 2},
    "MFU of training 0.3": {"train_flops": 0.3},
    "MFU of training 0.5": {"train_flops": 0.5},
    "bandwidth share 0.5": {"bandwidth": 0.5},
    "bandwidth share 0.9": {"bandwidth": 0.9},
    "2 ms a decode step": {"decode_step_s": 0.002},
    "20 ms a decode step": {"decode_step_s": 0.02},
    "no time between steps": {"step_s": 0.0},
    "60 s between steps": {"step_s": 60.0},
    "median 1,000": {"median": 1000.0},
    "median 4,000": {"median": 4000.0},
}


def sensitivity_cell(job: tuple[Grid, str, int]) -> Rows:
    """Simulate the reference's speed-up with one assumption changed."""
    grid, name, seed = job
    sigma, slots, window = grid.reference
    changes = dict(CHANGES[name])
    median = changes.pop("median", MEDIAN)
    where = {k: changes.pop(k) for k in ("hardware", "model", "tensor_parallel") if k in changes}
    cluster = replace(grid, **where).cluster.with_efficiency(**changes)
    task, machine = Task(lengths(sigma, median), slots, PROMPT), Machine.of(cluster)
    ppo, cut = (simulate(s, task, machine, steps=grid.steps, seed=seed) for s in (PPO(), TPPO(window, IGNORE_LAST)))
    return [
        {"kind": "sensitivity", "sigma": sigma, "slots": slots, "window": window, "schedule": name, "seed": seed,
         "speed_up": cut.trained_per_second / ppo.trained_per_second, "mean_length": task.lengths.mean}
    ]  # fmt: skip
