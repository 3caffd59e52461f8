"""The last two parts of a reproduction: the policies judged alike, and one page about them."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from paper_repro.reproduction.figures import write_all
from paper_repro.reproduction.pipeline import result_of_stage
from paper_repro.reproduction.records import read_runs
from tppo.config.run import RunConfig
from tppo.evaluation.paired import Paired, compare
from tppo.evaluation.scores import Score, avg_at, pass_at
from tppo.files import write_whole
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import load_network

SOLVED = "solved"


class ScoreRecord(TypedDict):
    """A score of a policy; an interval is null where it cannot be known."""

    value: float
    same_problems: list[float] | None
    new_problems: list[float] | None


class Evaluated(TypedDict):
    """What the stage of an evaluation keeps."""

    problems: int
    samples: int
    scores: dict[str, ScoreRecord]
    mean_length: float
    truncated: float
    solved: dict[str, list[bool]]


class Stopped(TypedDict):
    """How value pretraining ended."""

    ended: str
    explained_variance_finished: float | None


class PretrainingSummary(TypedDict):
    """Of the run."""

    steps: int
    stop: Stopped


class Pretrained(TypedDict):
    """What the stage of value pretraining keeps."""

    summary: PretrainingSummary


def evaluate_policy(config: RunConfig, checkpoint: Path | None) -> dict[str, Any]:
    """Ask every held-out problem of ``config.evaluation``; the policy is a checkpoint's, or the task's own if None.

    The same code as during training, so it runs on as many ranks as training does. Returns each problem's verdicts,
    and avg@k and pass@k with 95% intervals for the same problems and for new ones.
    """
    trainer = build_trainer(config)
    try:
        if checkpoint is not None:
            load_network("policy", trainer.policy, checkpoint)
        found = trainer.evaluate()
    finally:
        trainer.engine.close()
    del trainer
    gc.collect()  # the next stage needs the memory
    table = np.array(list(found.solved.values()))
    samples = table.shape[1]
    ks = sorted({samples, *(2**i for i in range(1, 12) if 2**i <= samples)} - {1})
    return {
        "problems": len(table),
        "samples": samples,
        "scores": {score.name: _score(score) for score in [avg_at(table), *(pass_at(table, k) for k in ks)]},
        "mean_length": float(np.mean(found.lengths)),
        "truncated": found.truncated,
        SOLVED: {problem: list(map(bool, row)) for problem, row in found.solved.items()},
    }


def write_report(out: Path, trained: Sequence[str], folder: Path, *, target: float, dry_run: bool) -> dict[str, Any]:
    """report.md on the runs ``trained``, with the figures and tables of ``paper_repro.reproduction.figures``
    beside it. Returns the differences of the policies.
    """
    table = write_all(read_runs([out / name / "run" for name in trained]), folder, target=target)
    results = {name: result_of_stage(out, f"evaluate-{name}", Evaluated) for name in ["base", *trained]}
    solved = {name: result[SOLVED] for name, result in results.items()}
    pairs = [(name, "base") for name in trained]
    pairs += [(f"tppo-{name.partition('-')[2]}", name) for name in trained if name.startswith("ppo-")]
    compared = {f"{a} - {b}": compare(solved[a], solved[b]) for a, b in pairs}
    summary = result_of_stage(out, "value", Pretrained)["summary"]
    value = summary["stop"]
    explained = value["explained_variance_finished"]
    lines = [
        "# Reproduction",
        "",
        *(["**Dry run: a small random model. None of these numbers means anything.**", ""] if dry_run else []),
        f"Value pretraining: {summary['steps']} steps; {value['ended']}; explained variance at the end "
        f"{'unknown, all returns were equal' if explained is None else f'{explained:.3f}'}.",
        "",
        "## Held-out evaluation of the policies",
        "",
        _scores(results),
        "",
        "Differences over the same problems, with 95% intervals for new problems:",
        "",
        *(f"- {name}: {_difference(paired)}" for name, paired in compared.items()),
        "",
        "## Training",
        "",
        table,
        "Times are those of this machine at the time, one run after the other: other work on it during one of them "
        "looks like a difference.",
        "",
        "![figure](figure.png)",
    ]
    write_whole(folder / "report.md", "\n".join(lines) + "\n")
    return {"differences": {name: paired.difference for name, paired in compared.items()}}


def _scores(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Markdown table: a policy a row, avg@k with both intervals and pass@k."""
    first = next(iter(results.values()))
    names = list(dict.fromkeys([next(iter(first["scores"])), list(first["scores"])[-1]]))  # one where k is 1
    heads = ["policy", names[0], "95%, same problems", "95%, new problems", *names[1:], "mean length", "cut at cap"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name, result in results.items():
        score = result["scores"][names[0]]
        cells = [f"{score['value']:.3f}", _between(score["same_problems"]), _between(score["new_problems"])]
        cells += [f"{result['scores'][last]['value']:.3f}" for last in names[1:]]
        cells += [f"{result['mean_length']:.0f}", f"{result['truncated']:.1%}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"\n{first['problems']} problems, samples of each: {first['samples']}.")
    return "\n".join(lines)


def _score(score: Score) -> dict[str, Any]:
    return {
        "value": score.value,
        "same_problems": _known(score.interval_sampling),
        "new_problems": _known(score.interval_total),
    }


def _known(ends: tuple[float, float]) -> list[float] | None:
    """None where an interval cannot be known: JSON has no NaN."""
    return None if math.isnan(ends[0]) else list(ends)


def _between(ends: Sequence[float] | None) -> str:
    return "not identifiable" if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def _difference(paired: Paired) -> str:
    return f"{paired.difference:+.3f} ({_between(_known(paired.interval_total))}), p = {paired.p_value:.3g}"
