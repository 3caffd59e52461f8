"""Finished or unfinished runs read back from their folders: names, evaluations, and the table that compares them."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypedDict

import numpy as np

from tppo.errors import ConfigError, DataError
from tppo.evaluation.scores import wilson
from tppo.files import read_object
from tppo.ranges import Range
from tppo.runs.folder import read_metrics, read_summary
from tppo.shapes import misfit

_Leaves = TypedDict(
    "_Leaves",
    {
        "recipe": str,
        "seed": int,
        "algorithm.class": str,
        "rollout.slots": Annotated[int, Range(1)],
        "evaluation.problems": Annotated[int, Range(1)],
    },
)


@dataclass(frozen=True)
class Point:
    """One held-out evaluation."""

    step: int
    """Steps done."""
    seconds: float
    """Training time so far [s]."""
    tokens: int
    """Generated in training so far."""
    rate: float
    """Share of problems solved."""
    error: float | None
    """Its standard error over problems, None where there is only one problem."""
    problems: int
    """Problems in the evaluation."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """95%, Wilson's with as many trials as give this standard error, and no more trials than problems where all
        problems have the same rate; None without a standard error.
        """
        if self.error is None:
            return None
        return wilson(self.rate, self.rate * (1 - self.rate) / self.error**2 if self.error else self.problems)


@dataclass(frozen=True)
class RunRecord:
    """One run, read back from its folder."""

    folder: Path
    recipe: str
    algorithm: str
    seed: int
    rows: tuple[dict[str, Any], ...]
    """Lines of metrics.jsonl, at least one."""
    points: tuple[Point, ...]
    """Evaluations in order of steps, at least one."""
    leaves: dict[str, Any] = field(repr=False)
    """The configuration, dotted names to values."""
    group: str = ""
    """Shared by runs that differ by the seed alone."""
    mark: str = ""
    """Tells runs of equal configuration and seed apart."""

    @property
    def label(self) -> str:
        """For legends and tables, unique."""
        return f"{self.group or self.recipe}, seed {self.seed}{self.mark}"

    @property
    def slots(self) -> int:
        """Responses in flight."""
        return int(self.leaves["rollout.slots"])

    def reached(self, target: float) -> Point | None:
        """The first evaluation whose solve rate is at least ``target``."""
        return next((point for point in self.points if point.rate >= target), None)


def read_run(folder: Path) -> RunRecord:
    """A run folder as ``tppo train`` writes it; a summary.json may still be missing.

    Raises ConfigError for what is not a run folder, DataError for one without a step or without an evaluation.
    """
    if not os.path.isdir(folder):
        raise ConfigError("run", str(folder), "the folder of a run", "give folders that 'tppo train' wrote")
    for name in ("config.json", "metrics.jsonl"):
        if not (folder / name).is_file():
            raise ConfigError("run", str(folder), f"a run folder, with {name}", "give folders that 'tppo train' wrote")
    leaves = dict(_leaves(read_object(folder / "config.json").get("config")))
    if wrong := misfit(_Leaves, leaves):
        raise DataError(f"{folder / 'config.json'}: expected the configuration of a run: {wrong}")
    rows = read_metrics(folder / "metrics.jsonl")
    if not rows:
        raise DataError(f"{folder / 'metrics.jsonl'} has no step: expected at least one line; let the run do a step")
    for number, row in enumerate(rows, 1):
        if lacking := {"train_seconds", "tokens_generated"} - set(row):
            raise DataError(f"{folder / 'metrics.jsonl'}, line {number}: expected a number {min(lacking)!r} in it")
    summary = read_summary(folder) if os.path.lexists(folder / "summary.json") else {}
    points = _points(rows, summary, int(leaves["evaluation.problems"]))
    if not points:
        remedy = "set evaluation.every, or let the run end: an evaluation follows the last step"
        raise DataError(f"{folder} has no held-out evaluation: expected at least one; {remedy}")
    return RunRecord(
        folder=folder,
        recipe=str(leaves["recipe"]),
        algorithm=str(leaves["algorithm.class"]).rpartition(":")[2],
        seed=int(leaves["seed"]),
        rows=tuple(rows),
        points=points,
        leaves=leaves,
    )


def read_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """All runs, named so that runs of one group differ by their seed alone. Raises as ``read_run``, and ConfigError
    for a folder that is given twice.
    """
    if not folders:
        raise ConfigError("runs", [], "at least one folder of a run")
    seen: set[Path] = set()
    for folder in folders:
        if folder.resolve() in seen:
            raise ConfigError("runs", str(folder), "every folder once")
        seen.add(folder.resolve())
    return _grouped([read_run(folder) for folder in folders])


def _grouped(runs: list[RunRecord]) -> list[RunRecord]:
    """Groups side by side. A group is named by its recipe, and by what differs where a recipe was run in two ways."""
    named: list[RunRecord] = []
    for run in runs:
        others = [other.leaves for other in runs if other.recipe == run.recipe]
        names = sorted({name for leaves in others for name in leaves} - {"seed", "started"})
        differ = [name for name in names if len({repr(leaves.get(name)) for leaves in others}) > 1]
        shown = ", ".join(f"{name.rpartition('.')[2]} {run.leaves.get(name)}" for name in differ[:2])
        more = f" and {len(differ) - 2} more" if len(differ) > 2 else ""
        named.append(dataclasses.replace(run, group=f"{run.recipe} ({shown}{more})" if differ else run.recipe))
    groups, labels = list(dict.fromkeys(run.group for run in named)), [run.label for run in named]
    named = [dataclasses.replace(run, mark=f" [{run.folder}]") if labels.count(run.label) > 1 else run for run in named]
    return sorted(named, key=lambda run: (groups.index(run.group), run.seed))


def _points(rows: list[dict[str, Any]], summary: dict[str, Any], problems: int) -> tuple[Point, ...]:
    """Base, evaluations during training, and the final one where no row of the metrics has it."""
    found: dict[int, Point] = {}
    if summary.get("solve_rate_base") is not None:
        found[0] = Point(0, 0.0, 0, summary["solve_rate_base"], summary.get("solve_rate_base_se"), problems)
    for row in rows:
        if row.get("held_out_solve_rate") is not None:
            step = row["step"] + 1
            rate, error = row["held_out_solve_rate"], row.get("held_out_standard_error")
            found[step] = Point(step, row["train_seconds"], row["tokens_generated"], rate, error, problems)
    last = rows[-1]
    if summary.get("solve_rate_final") is not None and last["step"] + 1 not in found:
        rate, error = summary["solve_rate_final"], summary.get("solve_rate_final_se")
        step, spent = last["step"] + 1, (last["train_seconds"], last["tokens_generated"])
        found[step] = Point(step, *spent, rate, error, problems)
    return tuple(found[step] for step in sorted(found))


def table_of(runs: Sequence[RunRecord], target: float | None = None) -> list[dict[str, Any]]:
    """One row a run; with a target also what it took to reach it (None: never reached)."""
    table = []
    for run in runs:
        last, final = run.rows[-1], run.points[-1]
        low, high = final.interval or (None, None)
        row: dict[str, Any] = {
            "run": run.label,
            "algorithm": run.algorithm,
            "steps": last["step"] + 1,
            "tokens": last["tokens_generated"],
            "training_seconds": last["train_seconds"],
            "score_at_step": final.step,
            "score": final.rate,
            "score_low": low,
            "score_high": high,
        }
        if target is not None:
            at = run.reached(target)
            for name in ("seconds", "step", "tokens"):
                row[f"{name}_to_target"] = None if at is None else getattr(at, name)
        table.append(row | {"folder": str(run.folder)})
    return table


def markdown(table: Sequence[dict[str, Any]], target: float | None = None) -> str:
    """The table for a reader. 'not reached' is said, and never a number."""
    heads = ["run", "steps", "tokens generated", "training seconds", "final score (95% interval)"]
    if target is not None:
        heads += [f"{what} to {target:g}" for what in ("seconds", "steps", "tokens")]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for row in table:
        score = f"{row['score']:.3f}"
        score += " (one problem: no interval)" if row["score_low"] is None else _between(row)
        score += "" if row["score_at_step"] == row["steps"] else f" at step {row['score_at_step']}"
        cells = [row["run"], f"{row['steps']:,}", f"{row['tokens']:,}", _number(row["training_seconds"]), score]
        if target is not None:
            cells += [_number(row[f"{what}_to_target"]) for what in ("seconds", "step", "tokens")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ratios(runs: Sequence[RunRecord], target: float) -> str:
    """PPO / T-PPO to the target over seeds that both reached it, a sentence a pair of recipes; empty without a pair."""
    out = []
    by = {(run.group, run.seed): run.reached(target) for run in runs}
    for group in dict.fromkeys(run.group for run in runs):
        rival = next((r.group for r in runs if r.recipe == _recipe(runs, group) + "-ppo"), None)
        seeds = sorted(seed for g, seed in by if g == group and by.get((rival or "", seed)) and by[g, seed])
        if rival is None or not seeds:
            continue
        parts = []
        for name in ("seconds", "step", "tokens"):
            x = np.array([getattr(by[rival, s], name) / max(getattr(by[group, s], name), 1e-9) for s in seeds])
            parts.append(f"{name.rstrip('s')}s {np.median(x):.2f} ({x.min():.2f} to {x.max():.2f})")
        which = ", ".join(map(str, seeds))
        out.append(f"{rival} / {group} to {target:g}, median (range) over seeds {which}: {'; '.join(parts)}.")
    return "\n".join(out)


def csv_text(table: Sequence[dict[str, Any]]) -> str:
    """The table for a program; an absent number is an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def _recipe(runs: Sequence[RunRecord], group: str) -> str:
    return next(run.recipe for run in runs if run.group == group)


def _between(row: dict[str, Any]) -> str:
    return f" ({row['score_low']:.3f} to {row['score_high']:.3f})"


def _number(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return "not reached"
    return f"{value:,.0f}" if value >= 100 or float(value).is_integer() else f"{value:.2f}"


def _leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, value in tree.items() for leaf in _leaves(value, f"{path}.{key}" if path else key)]
