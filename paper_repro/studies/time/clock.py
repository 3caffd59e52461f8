"""Does truncation save time, and where? The rollout clock, held against measured engines.

The embedded engine is measured anew in every run. vLLM is measured where it can be imported; otherwise the kept
measurements stand in, and the findings say so. To make those:

    python -m paper_repro.studies.time.measure --engine vllm --out paper_repro/evidence/clock/measurements.csv
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from paper_repro.studies.time.cells import (
    CHANGES,
    FULL,
    Grid,
    Rows,
    asynchronous_cell,
    phase_cell,
    schedules,
    sensitivity_cell,
    speed_up_cell,
)
from paper_repro.studies.time.clock_figure import draw
from paper_repro.studies.time.clock_findings import caption, measure, say
from paper_repro.studies.time.measure import measure_engine, plans, read_measurements
from paper_repro.studies.time.validate import Validation, validate
from sim.clock.fitted import FEATURES
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

KEPT = Path(__file__).parents[2] / "evidence" / "clock" / "measurements.csv"
STALENESS = (0, 1, 4)
LIMITS = (
    "No accelerator was measured: the roofline's efficiency factors are assumptions (`sim/clock/hardware.py`) "
    "and the engines that were measured run a tiny model on one CPU core.",
    "Time is a clock's, not learning's: a token of T-PPO is counted as worth as much as one of PPO.",
    "A replica admits a request only when it fits to its end (vLLM admits earlier and preempts); no prompt is "
    "shared within a group; training is balanced over all accelerators; lengths do not react to the schedule.",
    "The critic is as large as the policy, and each model is read once forward to score and once to update.",
    "Timing varies from run to run; everything but the measured rows is the same for the same seed.",
)


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Compute the cells in as many processes as asked for; then measure the engines, alone."""
    grid = FULL if options.full else Grid()
    rows = [row for part in progress.map(_apply, _jobs(grid, options), unit="cell") for row in part]
    validations, sources = _measurements(options.seeds, progress)
    for v in validations:
        rows += [{"kind": "validation"} | row for row in v.rows]
        rows += [
            {"kind": "price", "engine": v.engine, "schedule": name, "price_s": float(x)}
            for name, x in zip(FEATURES, v.prices.prices, strict=True)
        ]
    columns = dict.fromkeys(key for row in rows for key in row)
    rows = [{key: row.get(key) for key in columns} for row in rows]
    found = measure(rows, grid, sources)
    answer, details = say(found)
    return StudyResult(rows, draw(rows, found), caption(found, options.seeds), answer, details, LIMITS)


def _jobs(grid: Grid, options: StudyOptions) -> list[tuple[Callable[[Any], Rows], Any]]:
    """The function and the argument of every cell."""
    seeds = range(options.seed, options.seed + options.seeds)
    kinds: list[tuple[Callable[[Any], Rows], list[Any]]] = [
        (speed_up_cell, [(grid, sigma, slots, s) for sigma in grid.sigmas for slots in grid.slots for s in seeds]),
        (phase_cell, [(grid, name, s) for name in schedules(grid) for s in seeds]),
        (asynchronous_cell, [(grid, staleness, s) for staleness in STALENESS for s in seeds]),
        (sensitivity_cell, [(grid, name, s) for name in CHANGES for s in seeds]),
    ]
    return [(cell, job) for cell, parts in kinds for job in parts]


def _apply(job: tuple[Callable[[Any], Rows], Any]) -> Rows:
    """Compute one cell, wherever it is sent."""
    cell, part = job
    return cell(part)


def _measurements(repeats: int, progress: Ticks) -> tuple[list[Validation], dict[str, str]]:
    """Measure each engine and hold it against the clock; also where the measurements came from."""
    engines = ["torch"]
    sources = {"torch": "measured in this run"}
    if importlib.util.find_spec("vllm") is not None:
        engines.append("vllm")
        sources["vllm"] = "measured in this run"
    done = [
        validate(name, measure_engine(name, plans(), repeats=repeats, show=False)) for name in progress.track(engines)
    ]
    if "vllm" not in engines:
        if KEPT.exists():
            kept = [row for row in read_measurements(KEPT) if row["engine"] == "vllm"]
            done.append(validate("vllm", kept))
            sources["vllm"] = f"not installed here, so from the kept measurements of one {kept[0]['machine']}"
        else:
            sources["vllm"] = "not installed here, and no kept measurements were found: not compared"
    return done, sources


STUDY = Study(
    name="clock",
    chapter="time",
    question="When does cutting responses into windows save time, and does a clock predict real engines?",
    run=run,
    seeds=3,
    full_seeds=8,
)
