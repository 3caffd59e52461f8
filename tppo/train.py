"""A whole run: base evaluation, training steps, final evaluation, and everything written down."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from tppo.config import RunConfig
from tppo.evaluate import EvalResult
from tppo.parts import build_trainer
from tppo.plots import draw_curves
from tppo.runs import RunFolder, check_folder, read_metrics
from tppo.trainer import Trainer


def run(config: RunConfig, out: Path, *, progress: bool = True) -> dict[str, Any]:
    """Train and return the summary that is also in ``out/summary.json``.

    An interrupt (Ctrl-C) ends the run between or inside steps; what was done so far is written all the same, with
    ``interrupted`` true. Any other error is noted in the summary as ``error`` and raised.
    """
    start = time.perf_counter()
    check_folder(out, config)
    trainer = build_trainer(config)
    folder = RunFolder(out, config)
    summary: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed, "algorithm": config.algorithm.name}
    try:
        _train(trainer, folder, summary, progress)
    except KeyboardInterrupt:
        summary["interrupted"] = True
    except BaseException as error:
        summary["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        summary |= {"steps": trainer.steps_done, "wall_seconds": time.perf_counter() - start}
        folder.write("summary.json", summary)
        folder.close()
    trainer.workload.save(trainer.policy, out / "policy")
    trainer.engine.close()
    draw_curves(read_metrics(out / "metrics.jsonl"), summary, out / "curves.png")
    return summary


def _train(trainer: Trainer, folder: RunFolder, summary: dict[str, Any], progress: bool) -> None:
    c = trainer.config
    summary |= {"interrupted": False, "tokens_generated": 0, "train_seconds": 0.0}
    base = trainer.evaluate()
    final = base
    summary |= {"solve_rate_base": base.solve_rate, "solve_rate_base_se": base.standard_error}
    bar = tqdm(total=c.steps, disable=not progress, file=sys.stderr, dynamic_ncols=True, desc=c.recipe, unit="step")
    with bar:
        for step in range(c.steps):
            began = time.perf_counter()
            metrics = trainer.step()
            # Held-out evaluation is not part of training time: it can be done by anyone, at any time.
            seconds = time.perf_counter() - began
            summary["train_seconds"] += seconds
            summary["tokens_generated"] += metrics["new_tokens"]
            metrics |= {"seconds_step": seconds, "train_seconds": summary["train_seconds"]}
            metrics["tokens_generated"] = summary["tokens_generated"]
            due = c.evaluation.every and (step + 1) % c.evaluation.every == 0
            if due:
                final = trainer.evaluate()
                metrics |= final.summary()
            folder.log(metrics)
            bar.set_postfix(_watch(metrics, final), refresh=False)
            bar.update()
            if due and c.evaluation.stop_at is not None and final.solve_rate >= c.evaluation.stop_at:
                summary["stopped_at_target"] = True
                break
    if not due:
        final = trainer.evaluate()
    summary |= {"solve_rate_final": final.solve_rate, "solve_rate_final_se": final.standard_error}
    summary |= trainer.workload.report(trainer.policy)


def _watch(metrics: dict[str, Any], held_out: EvalResult) -> dict[str, str]:
    """The numbers a person watches."""
    show = lambda x, form: "-" if x is None else format(x, form)  # noqa: E731
    return {
        "held-out": show(held_out.solve_rate, ".3f"),
        "solved": show(metrics["solve_rate"], ".2f"),
        "length": show(metrics["length_mean"], ".0f"),
        "open": str(metrics["unfinished"]),
        "entropy": show(metrics["entropy"], ".2f"),
        "tok/s": show(metrics["new_tokens"] / metrics["seconds_step"], ".0f"),
    }
