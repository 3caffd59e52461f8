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

import numpy as np

from paper_repro.studies.time.cells import (
    CAP,
    CHANGES,
    FULL,
    MEDIAN,
    Grid,
    Rows,
    asynchronous_cell,
    phase_cell,
    schedules,
    sensitivity_cell,
    speed_up_cell,
)
from paper_repro.studies.time.figure import draw
from paper_repro.studies.time.measure import MODEL, measure, plans, read_measurements
from paper_repro.studies.time.validate import Validation, validate
from sim.clock.fitted import FEATURES
from tppo.studies.study import Progress, Study, StudyOptions, StudyResult

KEPT = Path(__file__).parents[2] / "evidence" / "clock" / "measurements.csv"
ENGINE_NAMES = {"torch": "the embedded engine", "vllm": "vLLM"}
CLAIM = 2.5  # times PPO's efficiency, of the paper's abstract
STALENESS = (0, 1, 4)


def run(options: StudyOptions, progress: Progress) -> StudyResult:
    """Cells first, in as many processes as asked for; then the measurements, alone."""
    grid = FULL if options.full else Grid()
    seeds = range(options.seed, options.seed + options.seeds)
    kinds: list[tuple[Callable[[Any], Rows], list[Any]]] = [
        (speed_up_cell, [(grid, sigma, slots, s) for sigma in grid.sigmas for slots in grid.slots for s in seeds]),
        (phase_cell, [(grid, name, s) for name in schedules(grid) for s in seeds]),
        (asynchronous_cell, [(grid, staleness, s) for staleness in STALENESS for s in seeds]),
        (sensitivity_cell, [(grid, name, s) for name in CHANGES for s in seeds]),
    ]
    jobs = [(cell, job) for cell, parts in kinds for job in parts]
    rows = [row for part in progress.map(_apply, jobs, unit="cell") for row in part]
    validations, sources = _measurements(options.seeds, progress)
    for v in validations:
        rows += [{"kind": "validation"} | row for row in v.rows]
        rows += [
            {"kind": "price", "engine": v.engine, "schedule": name, "price_s": float(x)}
            for name, x in zip(FEATURES, v.prices.prices, strict=True)
        ]
    columns = dict.fromkeys(key for row in rows for key in row)
    return StudyResult(
        rows=[{key: row.get(key) for key in columns} for row in rows],
        figure=draw(rows, grid, validations),
        caption=(
            f"Left: T-PPO over PPO in trained tokens a second, {_place(grid)}, lognormal lengths of median "
            f"{MEDIAN:,.0f} tokens cut at {CAP:,}; lines are means of {len(seeds)} seeds, bands their range, dotted "
            f"{CLAIM:g}. Middle: seconds by phase for a million trained tokens, {grid.reference[1]} slots, σ = "
            f"{grid.reference[0]:g}. Right: predicted against measured seconds of schedules that no price was fitted "
            "to; whiskers: range of the repeats; band: ±10%."
        ),
        answer=_answer(rows, grid, validations),
        details=_details(rows, grid, validations, sources),
        limits=[
            "No accelerator was measured: the roofline's efficiency factors are assumptions (`sim/clock/hardware.py`) "
            "and the engines that were measured run a tiny model on one CPU core.",
            "Time is a clock's, not learning's: a token of T-PPO is counted as worth as much as one of PPO.",
            "A replica admits a request only when it fits to its end (vLLM admits earlier and preempts); no prompt is "
            "shared within a group; training is balanced over all accelerators; lengths do not react to the schedule.",
            "The critic is as large as the policy, and each model is read once forward to score and once to update.",
            "Timing varies from run to run; everything but the measured rows is the same for the same seed.",
        ],
    )


def _apply(job: tuple[Callable[[Any], Rows], Any]) -> Rows:
    cell, part = job
    return cell(part)


def _measurements(repeats: int, progress: Progress) -> tuple[list[Validation], dict[str, str]]:
    """What each engine was held against, and where that came from."""
    engines = ["torch"]
    sources = {"torch": "measured in this run"}
    if importlib.util.find_spec("vllm") is not None:
        engines.append("vllm")
        sources["vllm"] = "measured in this run"
    done = [validate(name, measure(name, plans(), repeats=repeats, show=False)) for name in progress.track(engines)]
    if "vllm" not in engines:
        if KEPT.exists():
            kept = [row for row in read_measurements(KEPT) if row["engine"] == "vllm"]
            done.append(validate("vllm", kept))
            sources["vllm"] = f"not installed here, so from the kept measurements of one {kept[0]['machine']}"
        else:
            sources["vllm"] = "not installed here, and no kept measurements were found: not compared"
    return done, sources


def select(rows: Rows, column: str, **where: Any) -> np.ndarray:
    """One column of the rows that match, in order."""
    return np.array([row[column] for row in rows if all(row.get(k) == v for k, v in where.items())])


def best_windows(rows: Rows, grid: Grid, column: str = "speed_up") -> dict[tuple[float, int], tuple[float, int]]:
    """Largest speed-up (mean of the seeds) of a window below the cap, and that window, by tail and slots."""
    out = {}
    for sigma in grid.sigmas:
        for slots in grid.slots:
            means = [
                (float(select(rows, column, kind="speed-up", sigma=sigma, slots=slots, window=w).mean()), w)
                for w in grid.windows
                if w < CAP
            ]
            out[sigma, slots] = max(means)
    return out


def _place(grid: Grid) -> str:
    return f"{grid.model} on {grid.gpus} {grid.hardware}"


def _answer(rows: Rows, grid: Grid, validations: list[Validation]) -> str:
    best = best_windows(rows, grid)
    top, low = max(best, key=lambda k: best[k][0]), min(best, key=lambda k: best[k][0])
    reached, cells = sum(c[0] >= CLAIM for c in _cells(rows, grid)), len(_cells(rows, grid))
    claim = f"is reached in {reached} of {cells} cells" if reached else f"is reached in none of {cells} cells"
    errors = " and ".join(
        f"**{np.median(np.abs(v.errors())):.1%}** for {ENGINE_NAMES[v.engine]} (worst {np.abs(v.errors()).max():.0%})"
        for v in validations
    )
    return (
        f"On the clock, {_place(grid)}, T-PPO with the best window below the cap trains from **{best[low][0]:.2f}** "
        f"({low[1]:,} slots, σ = {low[0]:g}, window {best[low][1]:,}) to **{best[top][0]:.2f}** times ({top[1]:,} "
        f"slots, σ = {top[0]:g}, window {best[top][1]:,}) as many tokens a second as PPO, and the paper's {CLAIM:g} "
        f"times {claim} of tail, slots and window. Held against real engines, the clock predicts "
        f"{len(validations[0].errors())} schedules that it was not fitted to with a median error of {errors}."
    )


def _cells(rows: Rows, grid: Grid) -> list[tuple[float, float, int, int]]:
    """Mean speed-up, sigma, slots and window of all cells with a window below the cap."""
    return [
        (float(select(rows, "speed_up", kind="speed-up", sigma=s, slots=n, window=w).mean()), s, n, w)
        for s in grid.sigmas for n in grid.slots for w in grid.windows if w < CAP
    ]  # fmt: skip


def _details(rows: Rows, grid: Grid, validations: list[Validation], sources: dict[str, str]) -> list[str]:
    best, once = best_windows(rows, grid), best_windows(rows, grid, "speed_up_read_once")
    out = []
    for slots in grid.slots:
        cells = ", ".join(f"{best[s, slots][0]:.2f} at {best[s, slots][1]:,} (σ = {s:g})" for s in grid.sigmas)
        share = np.mean(
            [select(rows, "ppo_decode_share", kind="speed-up", slots=slots, sigma=s)[0] for s in grid.sigmas]
        )
        out.append(
            f"{slots:,} slots, {slots / grid.cluster.replicas:g} a replica: best window {cells}; PPO spends "
            f"{share:.0%} of a step decoding."
        )
    speed = _cells(rows, grid)
    over, under = [c for c in speed if c[0] >= CLAIM], [c for c in speed if c[0] < 1]
    worst = min(speed)
    out.append(
        f"{len(over)} of {len(speed)} cells reach {CLAIM:g}; in {len(under)} T-PPO loses, at worst {worst[0]:.2f} "
        f"(σ = {worst[1]:g}, {worst[2]:,} slots, window {worst[3]:,}): many slots keep PPO busy, and a short window "
        "prefills and trains on what it carries again and again."
    )
    gain = max(once, key=lambda k: once[k][0] / best[k][0])
    out.append(
        "If training read each token once instead of a response's whole context in every window, the best of a cell "
        f"would rise by up to {once[gain][0] / best[gain][0]:.2f} times (σ = {gain[0]:g}, {gain[1]:,} slots: "
        f"{best[gain][0]:.2f} to {once[gain][0]:.2f})."
    )
    out += [_phases(rows, grid), _changes(rows, grid)]
    for v in validations:
        pairs = v.speed_ups()
        off = np.median([abs(p / m - 1) for _, p, m in pairs])
        other = np.median(np.abs(v.errors("other_draws_error")))
        out.append(
            f"{_named(v.engine)}, {sources[v.engine]}: repeats of a schedule differ by {v.spread:.0%} of their median; "
            f"wall time was {v.waiting:.2f} times CPU time, which is what is predicted. With lengths drawn anew the "
            f"median error is {other:.0%}. T-PPO against PPO on equal slots and lengths, {len(pairs)} pairs: measured "
            f"{min(m for *_, m in pairs):.2f} to {max(m for *_, m in pairs):.2f} times, predicted with a median error "
            f"of {off:.0%}.{_rates(v)}"
        )
    out += [f"{_named(name)}: {text}." for name, text in sources.items() if "not compared" in text]
    return out


def _named(engine: str) -> str:
    name = ENGINE_NAMES[engine]
    return name if name.startswith("vLLM") else name[0].upper() + name[1:]


def _rates(v: Validation) -> str:
    """What the fitted prices amount to; nothing where one was too small to be found."""
    try:
        cpu = v.prices.hardware(MODEL, memory=1.0)
    except ValueError:
        return ""
    return (
        f" Its prices amount to {cpu.peak_flops / 1e9:.0f} Gflop/s in prefill, {cpu.bandwidth / 1e9:.1f} GB/s of keys "
        f"and values, and {1e3 * v.prices.decode_step_s:.1f} ms a decode step."
    )


def _phases(rows: Rows, grid: Grid) -> str:
    """The reference's schedules in one sentence."""
    sigma, slots, _ = grid.reference
    cost = {
        name: float(np.mean([
            sum(v for k, v in r.items() if k.endswith("_s_per_million"))
            for r in rows if r["kind"] == "phases" and r["schedule"] == name
        ]))
        for name in schedules(grid)
    }  # fmt: skip
    parts = [f"{name} {seconds:.0f} s" for name, seconds in cost.items()]
    for staleness in STALENESS:
        rate = select(rows, "trained_per_second", kind="asynchronous", schedule=f"staleness {staleness}").mean()
        parts.append(f"asynchronous with staleness {staleness} on two halves {1e6 / rate:.0f} s")
    return f"A million trained tokens take ({slots:,} slots, σ = {sigma:g}): {', '.join(parts)}."


def _changes(rows: Rows, grid: Grid) -> str:
    """How far the reference's speed-up depends on what was assumed."""
    mean = {name: float(select(rows, "speed_up", kind="sensitivity", schedule=name).mean()) for name in CHANGES}
    base = mean.pop("as assumed")
    low, high = min(mean, key=lambda k: mean[k]), max(mean, key=lambda k: mean[k])
    sigma, slots, window = grid.reference
    return (
        f"At σ = {sigma:g}, {slots:,} slots and window {window:,} the speed-up is {base:.2f}; with one assumption "
        f"changed at a time it runs from {mean[low]:.2f} ({low}) to {mean[high]:.2f} ({high})."
    )


STUDY = Study(
    name="clock",
    chapter="time",
    question="When does cutting responses into windows save time, and does a clock predict real engines?",
    run=run,
    seeds=3,
    full_seeds=8,
)
