"""The same recipe on both inference engines, several seeds: do the learning curves overlap?

    python -m paper_repro.comparisons.engines --seeds 3 --steps 60

Both engines sample from the same policy with their own random numbers, so curves agree in distribution and not step by
step. Runs take turns; a run that is already in the output folder is not repeated. Needs vLLM.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tppo.config.recipes import load_recipe
from tppo.config.stored import read_config
from tppo.errors import TPPOError
from tppo.evaluation.scores import student_quantile
from tppo.ranks.ranks import current
from tppo.runs.folder import read_metrics
from tppo.runs.run import run

COLOURS = {"torch": "#0072B2", "vllm": "#D55E00"}


def curves(recipe: str, seeds: int, steps: int, every: int, out: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Steps of the evaluations [E], and held-out solve rates of each engine [seeds, E]; the first is before training.

    Raises SystemExit when a folder holds another run, or one that did not end.
    """
    rates: dict[str, list[list[float]]] = {name: [] for name in COLOURS}
    at: list[int] = []
    for seed in range(seeds):
        for engine in COLOURS:
            folder = out / f"{recipe}-{engine}-seed{seed}"
            config = load_recipe(recipe).with_values(seed=seed, steps=steps, engine=engine, evaluation__every=every)
            if not (folder / "summary.json").exists():
                run(config, folder, current())
            elif read_config(folder) != config:
                raise SystemExit(f"{folder} holds a run with another configuration: choose another --out")
            summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            if summary.get("interrupted") or "error" in summary:
                raise SystemExit(f"{folder} was not finished: move it away and start again")
            rows = [r for r in read_metrics(folder / "metrics.jsonl") if r.get("held_out_solve_rate") is not None]
            at = [0, *(r["step"] + 1 for r in rows)]
            rates[engine].append([summary["solve_rate_base"], *(r["held_out_solve_rate"] for r in rows)])
    return np.array(at), {name: np.array(rows) for name, rows in rates.items()}


def differences(rates: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean over seeds of vLLM minus torch at each evaluation [E], and the half-width of its 95% interval [E].

    Seeds are paired by what they share, the order of prompts. Student's interval with seeds - 1 degrees of freedom.

    >>> mean, half = differences({"torch": np.array([[0.5], [0.6], [0.7]]), "vllm": np.array([[0.6], [0.6], [0.6]])})
    >>> float(mean[0].round(3)), float(half[0].round(3))
    (0.0, 0.248)
    """
    change = rates["vllm"] - rates["torch"]
    seeds = len(change)
    return change.mean(0), student_quantile(seeds - 1) * change.std(0, ddof=1) / np.sqrt(seeds)


def markdown(at: np.ndarray, rates: dict[str, np.ndarray]) -> str:
    """One row an evaluation."""
    mean, half = differences(rates)
    lines = ["| step | torch, each seed | vLLM, each seed | vLLM − torch, 95% |", "|---|---|---|---|"]
    for e, step in enumerate(at):
        cells = [" / ".join(f"{x:.3f}" for x in rates[name][:, e]) for name in COLOURS]
        lines.append(f"| {step} | {cells[0]} | {cells[1]} | {mean[e]:+.3f} ± {half[e]:.3f} |")
    return "\n".join(lines)


def draw(recipe: str, at: np.ndarray, rates: dict[str, np.ndarray], path: Path) -> None:
    """Left: a line a seed. Right: the difference with its interval."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, colour in COLOURS.items():
        for seed, row in enumerate(rates[name]):
            left.plot(at, row, color=colour, lw=1.4, alpha=0.8, label=name if seed == 0 else None)
        left.fill_between(at, rates[name].min(0), rates[name].max(0), color=colour, alpha=0.12, lw=0)
    left.set(xlabel="training step", ylabel="held-out solve rate", xlim=(0, None))
    left.legend(title="engine, a line a seed", loc="lower right", frameon=False)
    mean, half = differences(rates)
    right.errorbar(at, mean, half, fmt="o-", color="k", capsize=3, lw=1.2, ms=4)
    right.axhline(0, color="#7F7F7F", lw=1)
    right.set(xlabel="training step", ylabel="vLLM − torch, mean over seeds and 95%")
    for ax in (left, right):
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{recipe} on two inference engines, {len(rates['torch'])} seeds each")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Run, tabulate, draw. Exit status 2 on bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="toy-language")
    parser.add_argument("--seeds", type=int, default=3, help="at least 2")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=5, help="steps between evaluations")
    parser.add_argument("--out", type=Path, default=Path("runs/engines"))
    args = parser.parse_args()
    if args.seeds < 2:
        parser.error(f"--seeds {args.seeds}: at least 2, or there is no spread to compare with")
    try:
        at, rates = curves(args.recipe, args.seeds, args.steps, args.every, args.out)
    except TPPOError as error:
        print(f"compare_engines: {error}", file=sys.stderr)
        return 2
    text = markdown(at, rates)
    (args.out / "engines.md").write_text(text + "\n", encoding="utf-8")
    draw(args.recipe, at, rates, args.out / "engines.png")
    print(text)
    print(f"written to {args.out}: engines.md, engines.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
