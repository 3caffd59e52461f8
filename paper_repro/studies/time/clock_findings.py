"""What the study `clock` finds in its rows: numbers and sentences. The figure is in `clock_figure`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from paper_repro.studies.time.cells import CAP, MEDIAN, Grid, Rows
from paper_repro.studies.time.measure import MODEL
from paper_repro.studies.time.validate import Validation
from sim.clock.fitted import FEATURES, FittedCost

ENGINE_NAMES = {"torch": "the embedded engine", "vllm": "vLLM"}
CLAIM = 2.5  # times PPO's efficiency, of the paper's abstract


class Cell(NamedTuple):
    """T-PPO over PPO in trained tokens a second, the mean over seeds, for one tail, number of slots and window."""

    speed_up: float
    sigma: float
    slots: int
    window: int


class Rates(NamedTuple):
    """What the fitted prices of an engine amount to."""

    flops: float  # in prefill [flop/s]
    bandwidth: float  # of keys and values [byte/s]
    decode_step: float  # [s]


@dataclass(frozen=True)
class EngineCheck:
    """One engine against the clock. Errors are relative and of schedules that no price was fitted to."""

    source: str  # where the measurements come from
    checked: int  # schedules
    error: float  # median size
    worst_error: float
    other_draws_error: float  # median size where the clock was given lengths drawn anew
    spread: float  # of repeats, in medians of a schedule
    waiting: float  # wall time over CPU time
    speed_ups: tuple[float, ...]  # T-PPO over PPO on equal slots and lengths, measured
    speed_up_error: float  # median size
    rates: Rates | None  # None where a price was too small to be found


@dataclass(frozen=True)
class Findings:
    """Speed-ups of T-PPO over PPO on the clock, and how far the clock is to be trusted."""

    grid: Grid
    cells: tuple[Cell, ...]  # every cell with a window below the cap
    best: Mapping[tuple[float, int], Cell]  # (sigma, slots) to the cell of the best window
    best_read_once: Mapping[tuple[float, int], Cell]  # the same if training read each token once
    decode_share: Mapping[int, float]  # slots to the share of PPO's step that decodes, mean over the tails
    phases: Mapping[str, float]  # schedule to seconds for a million trained tokens, at the reference
    asynchronous: Mapping[str, float]  # the same
    changed: Mapping[str, float]  # what was changed at the reference to the speed-up
    engines: Mapping[str, EngineCheck]
    absent: Mapping[str, str]  # engine to why it was not compared

    @property
    def reaching(self) -> int:
        """How many cells reach the paper's claim."""
        return sum(cell.speed_up >= CLAIM for cell in self.cells)

    @property
    def losing(self) -> int:
        """How many cells are slower than PPO."""
        return sum(cell.speed_up < 1 for cell in self.cells)


def measure(rows: Rows, grid: Grid, sources: Mapping[str, str]) -> Findings:
    """Compute the findings from the rows of data.csv.

    sources: where the measurements of each engine come from, or why there are none.
    """
    cells, once = _cells(rows, "speed_up"), _cells(rows, "speed_up_read_once")
    engines = list(dict.fromkeys(row["engine"] for row in rows if row["kind"] == "validation"))
    first = {(r["slots"], r["sigma"]): r["ppo_decode_share"] for r in reversed(rows) if r["kind"] == "speed-up"}
    phases = {
        name: float(np.mean([
            sum(v for k, v in r.items() if k.endswith("_s_per_million") and v is not None)
            for r in rows if r["kind"] == "phases" and r["schedule"] == name
        ]))
        for name in _schedules(rows, "phases")
    }  # fmt: skip
    return Findings(
        grid=grid,
        cells=cells,
        best=_best(cells),
        best_read_once=_best(once),
        decode_share={n: float(np.mean([first[n, s] for s in grid.sigmas])) for n in grid.slots},
        phases=phases,
        asynchronous={
            name: 1e6 / float(_mean(rows, "trained_per_second", kind="asynchronous", schedule=name))
            for name in _schedules(rows, "asynchronous")
        },
        changed={
            name: _mean(rows, "speed_up", kind="sensitivity", schedule=name) for name in _schedules(rows, "sensitivity")
        },
        engines={engine: _check(validation_of(rows, engine), sources[engine]) for engine in engines},
        absent={engine: why for engine, why in sources.items() if engine not in engines},
    )


def _cells(rows: Rows, column: str) -> tuple[Cell, ...]:
    """The means over seeds of all cells with a window below the cap, in the order of the grid."""
    keys = dict.fromkeys(
        (r["sigma"], r["slots"], r["window"]) for r in rows if r["kind"] == "speed-up" and r["window"] < CAP
    )
    return tuple(Cell(_mean(rows, column, kind="speed-up", sigma=s, slots=n, window=w), s, n, w) for s, n, w in keys)


def _best(cells: tuple[Cell, ...]) -> dict[tuple[float, int], Cell]:
    """The cell of the best window for each tail and number of slots."""
    return {key: max(c for c in cells if (c.sigma, c.slots) == key) for key in {(c.sigma, c.slots): 0 for c in cells}}


def _mean(rows: Rows, column: str, **where: Any) -> float:
    """The mean of one column over the rows that match."""
    return float(np.mean([row[column] for row in rows if all(row.get(k) == v for k, v in where.items())]))


def _schedules(rows: Rows, kind: str) -> list[str]:
    """The schedules of one kind of rows, in order."""
    return list(dict.fromkeys(row["schedule"] for row in rows if row["kind"] == kind))


def validation_of(rows: Rows, engine: str) -> Validation:
    """What an engine was held against, from the rows of data.csv."""
    mine = [row for row in rows if row.get("engine") == engine]
    price = {row["schedule"]: row["price_s"] for row in mine if row["kind"] == "price"}
    prices = FittedCost(*(price[name] for name in FEATURES))
    return Validation(engine, prices, [row for row in mine if row["kind"] == "validation"])


def _check(v: Validation, source: str) -> EngineCheck:
    """The numbers of one engine."""
    errors, pairs = np.abs(v.errors()), v.speed_ups()
    try:
        cpu = v.prices.hardware(MODEL, memory=1.0)
        rates = Rates(cpu.peak_flops, cpu.bandwidth, v.prices.decode_step_s)
    except ValueError:
        rates = None
    return EngineCheck(
        source=source,
        checked=len(errors),
        error=float(np.median(errors)),
        worst_error=float(errors.max()),
        other_draws_error=float(np.median(np.abs(v.errors("other_draws_error")))),
        spread=v.spread,
        waiting=v.waiting,
        speed_ups=tuple(measured for _, _, measured in pairs),
        speed_up_error=float(np.median([abs(predicted / measured - 1) for _, predicted, measured in pairs])),
        rates=rates,
    )


def place(grid: Grid) -> str:
    """The machine and model of the cells."""
    return f"{grid.model} on {grid.gpus} {grid.hardware}"


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    low, top = (of(found.best.values(), key=lambda cell: cell.speed_up) for of in (min, max))
    total = len(found.cells)
    claim = f"is reached in {found.reaching or 'none'} of {total} cells"
    errors = " and ".join(
        f"**{check.error:.1%}** for {ENGINE_NAMES[engine]} (worst {check.worst_error:.0%})"
        for engine, check in found.engines.items()
    )
    answer = (
        f"On the clock, {place(found.grid)}, T-PPO with the best window below the cap trains from "
        f"**{low.speed_up:.2f}** ({low.slots:,} slots, σ = {low.sigma:g}, window {low.window:,}) to "
        f"**{top.speed_up:.2f}** times ({top.slots:,} slots, σ = {top.sigma:g}, window {top.window:,}) as many tokens "
        f"a second as PPO, and the paper's {CLAIM:g} times {claim} of tail, slots and window. Held against real "
        f"engines, the clock predicts {next(iter(found.engines.values())).checked} schedules that it was not fitted to "
        f"with a median error of {errors}."
    )
    return answer, [
        *(_slots(found, slots) for slots in found.decode_share),
        _losses(found),
        _read_once(found),
        _phases(found),
        _changes(found),
        *(_engine(engine, check) for engine, check in found.engines.items()),
        *(f"{_named(engine)}: {why}." for engine, why in found.absent.items()),
    ]


def _slots(found: Findings, slots: int) -> str:
    """The best window for each tail."""
    cells = ", ".join(
        f"{cell.speed_up:.2f} at {cell.window:,} (σ = {cell.sigma:g})"
        for cell in found.best.values()
        if cell.slots == slots
    )
    return (
        f"{slots:,} slots, {slots / found.grid.cluster.replicas:g} a replica: best window {cells}; PPO spends "
        f"{found.decode_share[slots]:.0%} of a step decoding."
    )


def _losses(found: Findings) -> str:
    """How many cells win and lose."""
    worst = min(found.cells)
    return (
        f"{found.reaching} of {len(found.cells)} cells reach {CLAIM:g}; in {found.losing} T-PPO loses, at worst "
        f"{worst.speed_up:.2f} (σ = {worst.sigma:g}, {worst.slots:,} slots, window {worst.window:,}): many slots keep "
        "PPO busy, and a short window prefills and trains on what it carries again and again."
    )


def _read_once(found: Findings) -> str:
    """What is lost by training on the context again in every window."""
    gains = {key: once.speed_up / found.best[key].speed_up for key, once in found.best_read_once.items()}
    key = max(gains, key=gains.__getitem__)
    return (
        "If training read each token once instead of a response's whole context in every window, the best of a cell "
        f"would rise by up to {gains[key]:.2f} times (σ = {key[0]:g}, {key[1]:,} slots: "
        f"{found.best[key].speed_up:.2f} to {found.best_read_once[key].speed_up:.2f})."
    )


def _phases(found: Findings) -> str:
    """What the reference's schedules cost."""
    sigma, slots, _ = found.grid.reference
    parts = [f"{name} {seconds:.0f} s" for name, seconds in found.phases.items()]
    parts += [f"asynchronous with {name} on two halves {seconds:.0f} s" for name, seconds in found.asynchronous.items()]
    return f"A million trained tokens take ({slots:,} slots, σ = {sigma:g}): {', '.join(parts)}."


def _changes(found: Findings) -> str:
    """How far the reference's speed-up depends on what was assumed."""
    changed = dict(found.changed)
    base = changed.pop("as assumed")
    low, high = (of(changed, key=changed.__getitem__) for of in (min, max))
    sigma, slots, window = found.grid.reference
    return (
        f"At σ = {sigma:g}, {slots:,} slots and window {window:,} the speed-up is {base:.2f}; with one assumption "
        f"changed at a time it runs from {changed[low]:.2f} ({low}) to {changed[high]:.2f} ({high})."
    )


def _engine(engine: str, check: EngineCheck) -> str:
    """How one engine was measured and how well it is predicted."""
    text = (
        f"{_named(engine)}, {check.source}: repeats of a schedule differ by {check.spread:.0%} of their median; "
        f"wall time was {check.waiting:.2f} times CPU time, which is what is predicted. With lengths drawn anew the "
        f"median error is {check.other_draws_error:.0%}. T-PPO against PPO on equal slots and lengths, "
        f"{len(check.speed_ups)} pairs: measured {min(check.speed_ups):.2f} to {max(check.speed_ups):.2f} times, "
        f"predicted with a median error of {check.speed_up_error:.0%}."
    )
    if check.rates is None:
        return text
    return text + (
        f" Its prices amount to {check.rates.flops / 1e9:.0f} Gflop/s in prefill, {check.rates.bandwidth / 1e9:.1f} "
        f"GB/s of keys and values, and {1e3 * check.rates.decode_step:.1f} ms a decode step."
    )


def _named(engine: str) -> str:
    """The engine's name at the start of a sentence."""
    name = ENGINE_NAMES[engine]
    return name if name.startswith("vLLM") else name[0].upper() + name[1:]


def caption(found: Findings, seeds: int) -> str:
    """What the figure shows."""
    sigma, slots, _ = found.grid.reference
    return (
        f"Left: T-PPO over PPO in trained tokens a second, {place(found.grid)}, lognormal lengths of median "
        f"{MEDIAN:,.0f} tokens cut at {CAP:,}; lines are means of {seeds} seeds, bands their range, dotted "
        f"{CLAIM:g}. Middle: seconds by phase for a million trained tokens, {slots} slots, σ = {sigma:g}. "
        "Right: predicted against measured seconds of schedules that no price was fitted "
        "to; whiskers: range of the repeats; band: ±10%."
    )
