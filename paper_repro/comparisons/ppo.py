"""T-PPO against its PPO twin: training time to a held-out solve rate, several seeds, one table and one figure.

    python -m paper_repro.comparisons.ppo --seeds 3 --target 0.9

Runs take turns (T-PPO, PPO, T-PPO, ...), so a machine that drifts does not favour one. Time is training time: held-out
evaluation is not in it. A run that is already in the output folder is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from tppo.config.recipes import load_recipe
from tppo.config.stored import read_config
from tppo.ranks.ranks import current
from tppo.runs.folder import read_metrics
from tppo.runs.run import run

PAIR = {"T-PPO": "", "PPO": "-ppo"}
COLOURS = {"T-PPO": "#0072B2", "PPO": "#E69F00"}


def reached(rows: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    """The first step whose evaluation reaches the target: training seconds, steps, generated tokens."""
    for row in rows:
        if (row.get("held_out_solve_rate") or 0.0) >= target:
            return {"seconds": row["train_seconds"], "steps": row["step"] + 1, "tokens": row["tokens_generated"]}
    return None


def run_all(recipe: str, seeds: int, target: float, out: Path, every: int, problems: int) -> list[dict[str, Any]]:
    """One row per run. Raises SystemExit when a run never reaches the target."""
    table = []
    for seed in range(seeds):
        for name, suffix in PAIR.items():
            folder = out / f"{recipe}{suffix}-seed{seed}"
            config = load_recipe(recipe + suffix).with_values(
                seed=seed,
                evaluation__every=every,
                evaluation__problems=problems,
                evaluation__stop_at=target,
            )
            if not (folder / "summary.json").exists():
                run(config, folder, current())
            elif read_config(folder) != config:
                raise SystemExit(f"{folder} holds a run with another configuration: choose another --out")
            summary = json.loads((folder / "summary.json").read_text())
            if summary.get("interrupted") or "error" in summary:
                raise SystemExit(f"{folder} was not finished: move it away and start again")
            at = reached(read_metrics(folder / "metrics.jsonl"), target)
            if at is None:
                raise SystemExit(f"{folder} never reached a held-out solve rate of {target}: give it more steps")
            table.append({"algorithm": name, "seed": seed, **at})
    return table


def ratios(table: list[dict[str, Any]], key: str) -> np.ndarray:
    """PPO / T-PPO of each seed."""
    by = {(r["algorithm"], r["seed"]): r[key] for r in table}
    return np.array([by["PPO", seed] / by["T-PPO", seed] for seed in sorted({r["seed"] for r in table})])


def markdown(table: list[dict[str, Any]], target: float) -> str:
    """The table of the README."""
    lines = [
        f"| to a held-out solve rate of {target:g} | training seconds | steps | tokens generated |",
        "|---|---|---|---|",
    ]
    for name in PAIR:
        rows = [r for r in table if r["algorithm"] == name]
        cells = [" / ".join(format(r[k], ",.0f") for r in rows) for k in ("seconds", "steps", "tokens")]
        lines.append(f"| {name}, seeds {', '.join(str(r['seed']) for r in rows)} | " + " | ".join(cells) + " |")
    cells = []
    for key in ("seconds", "steps", "tokens"):
        x = ratios(table, key)
        cells.append(f"{np.median(x):.2f} ({x.min():.2f} to {x.max():.2f})")
    lines.append("| PPO / T-PPO, median (smallest to largest seed) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(recipe: str, table: list[dict[str, Any]], target: float, out: Path) -> None:
    """Held-out solve rate against training time and against tokens, a line a seed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for row in table:
        name, seed = row["algorithm"], row["seed"]
        folder = out / f"{recipe}{PAIR[name]}-seed{seed}"
        base = json.loads((folder / "summary.json").read_text())["solve_rate_base"]
        points = [r for r in read_metrics(folder / "metrics.jsonl") if r.get("held_out_solve_rate") is not None]
        y = [base, *(r["held_out_solve_rate"] for r in points)]
        for ax, key in zip(axes, ("train_seconds", "tokens_generated"), strict=True):
            scale = 1.0 if key == "train_seconds" else 1e-3
            x = [0.0, *(r[key] * scale for r in points)]
            ax.plot(x, y, color=COLOURS[name], lw=1.6, alpha=0.85, label=name if seed == 0 else None)
            ax.plot(
                row["seconds" if key == "train_seconds" else "tokens"] * scale, y[-1], "o", color=COLOURS[name], ms=5
            )
    for ax, label in zip(axes, ("training time [s]", "tokens generated [thousands]"), strict=True):
        ax.axhline(target, color="k", lw=0.8, ls=":")
        ax.set(xlabel=label, xlim=(0, None), ylim=(0.3, 1))
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("held-out solve rate")
    axes[0].legend(title="one line a seed", loc="lower right")
    figure.suptitle(f"{recipe}: runs end at a held-out solve rate of {target:g} (dotted)")
    figure.savefig(out / "compare.png", dpi=110)


def main() -> None:
    """Run, tabulate, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="toy-language")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.9)
    parser.add_argument("--every", type=int, default=2, help="steps between evaluations")
    parser.add_argument("--problems", type=int, default=512, help="held-out problems of an evaluation")
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    args = parser.parse_args()
    table = run_all(args.recipe, args.seeds, args.target, args.out, args.every, args.problems)
    with (args.out / "compare.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    text = markdown(table, args.target)
    (args.out / "compare.md").write_text(text + "\n", encoding="utf-8")
    draw(args.recipe, table, args.target, args.out)
    print(text)
    print(f"written to {args.out}: compare.csv, compare.md, compare.png")


if __name__ == "__main__":
    main()
