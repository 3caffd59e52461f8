"""Small studies for the tests of what runs studies. Importable by spawned processes."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest

from paper_repro.studies.intervals import mean_interval
from tppo.figures import new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks


def draw(seed: int) -> float:
    return float(np.random.default_rng(seed).normal())


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """The mean of normal numbers, one a seed."""
    seeds = range(options.seed, options.seed + options.seeds)
    values = progress.map(draw, list(seeds))
    figure = new_figure(4, 3)
    ax = figure.subplots()
    ax.plot(list(seeds), values, "o", label="one draw")
    ax.set(xlabel="seed", ylabel="draw")
    ax.legend()
    interval = mean_interval(values).text()
    return StudyResult(
        rows=[{"seed": seed, "value": value, "note": None} for seed, value in zip(seeds, values, strict=True)],
        figure=figure,
        caption='One draw a seed; "<&>" is `code`.',
        answer=f"The mean is **{interval}** over {len(values)} seeds. It is small & <near> 0.",
        limits=["Nothing depends on it."],
    )


def broken(options: StudyOptions, progress: Ticks) -> StudyResult:
    raise ArithmeticError("the table has no end")


def interrupted(options: StudyOptions, progress: Ticks) -> StudyResult:
    raise KeyboardInterrupt


def without_limits(options: StudyOptions, progress: Ticks) -> StudyResult:
    whole = run(options, progress)
    return StudyResult(whole.rows, whole.figure, whole.caption, whole.answer)


TOY = Study("toy", "learning", "What is the mean of `seeds` draws?", run, seeds=4, full_seeds=6)
EXACT = Study("exact-toy", "exact", "Is an exact study exact?", lambda o, p: run(StudyOptions(seeds=3), p))
BROKEN = Study("broken", "time", "Does it end?", broken)
INTERRUPTED = Study("interrupted", "time", "Does it wait?", interrupted)
NO_LIMITS = Study("no-limits", "learning", "Is there a limit?", without_limits, seeds=2)
OTHER = Study("another name", "time", "Who am I?", broken)


def install(monkeypatch: pytest.MonkeyPatch, **studies: str) -> None:
    """Let these, name to attribute of this module (or a whole reference), be all the studies there are."""
    entries = [
        EntryPoint(
            name.replace("_", "-"), where if ":" in where else f"tests.support.toy_studies:{where}", "tppo.studies"
        )
        for name, where in studies.items()
    ]
    monkeypatch.setattr("tppo.environment.entry_points", lambda group: entries if group == "tppo.studies" else [])
