"""What a run changed: the same held-out problems before and after training, paired, with intervals and a figure.

    python -m paper_repro.comparisons.before_after runs/smollm2-135m --problems 256 --samples 4

Both policies answer the same problems with the same random numbers, sampled as in training and greedily. The run's
engine and settings are used; only ``policy/`` of the run folder is loaded.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tppo.config.run import validate
from tppo.config.stored import read_config
from tppo.errors import ConfigError, TPPOError
from tppo.evaluation.paired import Paired, compare
from tppo.evaluation.scores import Score, avg_at
from tppo.figures import BLUE, GREY, ORANGE, new_figure, save_figure
from tppo.files import write_json, write_whole, writing_to
from tppo.runs.build import build_trainer
from tppo.runs.folder import read_metrics, read_summary

Outcomes = dict[str, tuple[bool, ...]]


def measure(run: Path, problems: int, samples: int, engine: str | None) -> dict[str, dict[str, Outcomes]]:
    """{'sampled' or 'greedy': {'before' or 'after': problem id to whether each sample is right}}."""
    config = read_config(run).with_values(evaluation__problems=problems, evaluation__samples=samples)
    if engine is not None:
        config = config.with_values(engine=engine)
    validate(config)
    if not os.path.isdir(run / "policy"):
        raise ConfigError("run", str(run), "a run with a policy/ folder", "it ended before one was written")
    trainer = build_trainer(config)
    kinds = {
        "sampled": config.with_values(evaluation__temperature=config.rollout.temperature),
        "greedy": config.with_values(evaluation__temperature=0.0, evaluation__samples=1),
    }
    out: dict[str, dict[str, Outcomes]] = {kind: {} for kind in kinds}
    for when in ("before", "after"):
        if when == "after":
            trainer.workload.load(trainer.policy, run / "policy")
            trainer.version += 1
        for kind, settings in kinds.items():
            print(f"{kind}, {when} training ...", file=sys.stderr)
            trainer.config = settings
            out[kind][when] = trainer.evaluate().solved
    trainer.engine.close()
    return out


def table(outcomes: dict[str, dict[str, Outcomes]]) -> tuple[str, dict[str, Any]]:
    """A Markdown table and its numbers."""
    lines = ["| answers | before | after | difference | p |", "|---|---|---|---|---|"]
    numbers: dict[str, Any] = {}
    for kind, parts in outcomes.items():
        scores = {when: avg_at(np.array(list(solved.values()))) for when, solved in parts.items()}
        paired = compare(parts["after"], parts["before"])
        cells = [_shown(scores[when].value, scores[when].interval_total) for when in ("before", "after")]
        change = _shown(paired.difference, paired.interval_total)
        lines.append(f"| {kind} | {cells[0]} | {cells[1]} | {change} | {_p(paired)} |")
        numbers[kind] = {
            "problems": len(parts["before"]),
            "samples": len(next(iter(parts["before"].values()))),
            "before": _numbers(scores["before"]),
            "after": _numbers(scores["after"]),
            "difference": {"value": paired.difference, "interval": list(paired.interval_total), "p": paired.p_value},
        }
    return "\n".join(lines), numbers


def _shown(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _p(paired: Paired) -> str:
    least = 1 / paired.patterns
    return f"< {least:.1g}" if paired.p_value <= least else f"{paired.p_value:.2g}"


def _numbers(score: Score) -> dict[str, Any]:
    return {"value": score.value, "interval": list(score.interval_total)}


def draw(run: Path, numbers: dict[str, Any], path: Path) -> None:
    """Left: the run. Right: before and after on the same problems, 95% intervals for new problems."""
    rows = read_metrics(run / "metrics.jsonl")
    summary = read_summary(run)
    figure = new_figure(11, 4.4)
    left, right = figure.subplots(1, 2, width_ratios=(1.7, 1))
    trained = [(r["step"] + 1, r["solve_rate"]) for r in rows if r.get("solve_rate") is not None]
    x, y = (np.array(v, dtype=float) for v in zip(*trained, strict=True))
    left.plot(x, y, ".", color=GREY, ms=5, alpha=0.6, label="training problems, each step")
    held = [(0, summary["solve_rate_base"], summary["solve_rate_base_se"])]
    held += [
        (r["step"] + 1, r["held_out_solve_rate"], r["held_out_standard_error"])
        for r in rows
        if r.get("held_out_solve_rate") is not None
    ]
    if held[-1][0] != len(rows):
        held.append((len(rows), summary["solve_rate_final"], summary["solve_rate_final_se"]))
    hx, hy, se = (np.array(v, dtype=float) for v in zip(*held, strict=True))
    left.errorbar(hx, hy, 1.96 * se, color=BLUE, marker="o", ms=4, lw=1.6, capsize=3, label="held-out problems, 95%")
    left.set(xlabel="training step", ylabel="solve rate", ylim=(0, 1), xlim=(-0.5, None))
    left.legend(loc="upper left", frameon=False)
    for i, entry in enumerate(numbers.values()):
        for offset, when, colour in ((-0.12, "before", ORANGE), (0.12, "after", BLUE)):
            value, (low, high) = entry[when]["value"], entry[when]["interval"]
            bar = [[value - low], [high - value]]
            label = when if i == 0 else None
            right.errorbar([i + offset], [value], bar, fmt="o", color=colour, capsize=4, ms=7, label=label)
            right.annotate(f"{value:.2f}", (i + offset, value), (9, 0), textcoords="offset points", va="center")
    right.set(ylim=(0, 1), xlim=(-0.5, len(numbers) - 0.3), ylabel="held-out solve rate, 95%")
    right.set_xticks(
        range(len(numbers)), [f"{k}\n{v['problems']} problems × {v['samples']}" for k, v in numbers.items()]
    )
    right.legend(loc="lower right", frameon=False)
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    hours = summary["train_seconds"] / 3600
    spent = f"{hours:.1f} h" if hours >= 1 else f"{60 * hours:.0f} min"
    figure.suptitle(
        f"{summary['recipe']} ({summary['algorithm']}, seed {summary['seed']}): {len(rows)} steps, {spent} of training"
    )
    save_figure(figure, path)


def main(argv: list[str] | None = None) -> int:
    """Measure, tabulate, draw. Exit status 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--problems", type=int, default=256)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--engine", choices=["torch", "vllm"], help="instead of the run's")
    parser.add_argument("--out", type=Path, help="folder for before_after.{json,md,png}; the run's if not given")
    args = parser.parse_args(argv)
    try:
        outcomes = measure(args.run, args.problems, args.samples, args.engine)
        text, numbers = table(outcomes)
        out = args.out or args.run
        with writing_to(out):
            out.mkdir(parents=True, exist_ok=True)
            write_json(out / "before_after.json", numbers)
            write_whole(out / "before_after.md", text + "\n")
        draw(args.run, numbers, out / "before_after.png")
    except TPPOError as error:
        print(f"before_after: {error}", file=sys.stderr)
        return 2
    print(text)
    print(f"written to {out}: before_after.json, before_after.md, before_after.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
