"""A whole run: base evaluation, training steps, final evaluation, and everything written down."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from tqdm import tqdm

from tppo.config.run import RunConfig
from tppo.environment import warn
from tppo.errors import EngineError, OutputError, TPPOError
from tppo.loop.held_out import EvalResult
from tppo.loop.trainer import Trainer
from tppo.ranks.ranks import Ranks, current
from tppo.runs.beginnings import begin, find_beginnings
from tppo.runs.build import build_trainer, with_start
from tppo.runs.checkpoint.contents import capture, restore
from tppo.runs.checkpoint.store import CheckpointStore, Choice, choose, set_aside
from tppo.runs.checkpoint.stored import Progress
from tppo.runs.curves import draw_curves
from tppo.runs.folder import NoFolder, Resumed, RunFolder, check_run_folder, read_metrics
from tppo.runs.replay import DumpFolder
from tppo.runs.signals import Termination
from tppo.runs.watchdog import Watchdog


def run(
    config: RunConfig,
    out: Path,
    *,
    progress: bool = True,
    resume: str | None = None,
    allow_change: Sequence[str] = (),
    dump: Path | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Train and return the summary that is also in ``out/summary.json``.

    resume: 'auto' or the folder of a checkpoint in ``out``; None starts a run. allow_change: fields that may differ
    from those the checkpoint was made with. dump: a folder for the tokens of every step (see ``tppo.runs.replay``).
    ranks: None is those of this process.

    An interrupt (Ctrl-C) ends the run between or inside steps; what was done so far is written all the same, with
    ``interrupted`` true. SIGTERM saves a checkpoint when the step ends, and ends the run (``terminated``). Any other
    error is noted in the summary as ``error`` and raised.
    """
    start = time.perf_counter()
    ranks = current() if ranks is None else ranks
    config = dataclasses.replace(config, task=config.task.pinned())
    choice = ranks.lead(lambda: _choose(config, out, resume, allow_change))
    config = with_start(config, ranks, choice.started)
    dumps = None if dump is None else ranks.lead(lambda: DumpFolder(dump, resume=resume is not None))
    for reason in choice.skipped:
        warn(f"skipped {reason}")
    if choice.packages:
        other = ", ".join(choice.packages)
        warn(f"the checkpoint was made with other versions, equal bits are not to be expected: {other}")
    beginnings = ranks.lead(lambda: find_beginnings(config)) if choice.checkpoint is None else {}
    trainer = build_trainer(config, ranks=ranks)
    totals = Progress() if choice.checkpoint is None else restore(trainer, choice.checkpoint)
    begin(trainer, beginnings)
    resumed = None if resume is None else Resumed(trainer.steps_done, totals.metrics_bytes, choice.changed)
    folder = _open(out, config, resumed, ranks)
    watchdog = Watchdog(config.phase_limit_seconds)
    trainer.watch = watchdog.enter
    store = CheckpointStore(out, config.checkpoint, ranks, watch=watchdog.enter)
    if choice.checkpoint is not None:
        store.saved_step = trainer.steps_done
    before = totals.wall_seconds
    summary: dict[str, Any] = {"recipe": config.recipe, "seed": config.seed, "algorithm": config.algorithm.name}
    summary |= {"interrupted": False}
    try:
        ranks.lead(lambda: set_aside(choice.aside))
        with Termination() as termination:
            _Run(trainer, folder, store, dumps, totals, termination, start - before).train(summary, progress)
    except KeyboardInterrupt:
        summary["interrupted"] = True
    except BaseException as error:
        summary["error"] = f"{type(error).__name__}: {error}"
        raise
    finally:
        store.wait()
        watchdog.close()
        summary |= {"steps": trainer.steps_done, "tokens_generated": totals.tokens_generated}
        summary |= {"train_seconds": totals.train_seconds, "wall_seconds": before + time.perf_counter() - start}
        try:
            folder.write("summary.json", summary)
        except OSError as error:
            warn(f"summary.json was not written ({error.strerror}); free disk space and resume the run")
        folder.close()
    if summary["interrupted"] and ranks.size > 1:
        raise KeyboardInterrupt  # ranks stopped at different places: nothing they would do together fits
    trainer.engine.close()
    try:
        trainer.workload.save(trainer.policy, out / "policy")
        ranks.lead(lambda: draw_curves(read_metrics(out / "metrics.jsonl"), summary, out / "curves.png"))
    except (OSError, SafetensorError) as error:
        remedy = "free disk space; --resume auto repeats what came after the last checkpoint"
        raise OutputError(f"{out}: the policy or the curves were not written ({error}): {remedy}") from None
    return summary


def _choose(config: RunConfig, out: Path, resume: str | None, allow_change: Sequence[str]) -> Choice:
    check_run_folder(out, config, resume=resume is not None)
    return Choice(None) if resume is None else choose(out, resume, config, allow_change)


def _open(out: Path, config: RunConfig, resumed: Resumed | None, ranks: Ranks) -> RunFolder | NoFolder:
    """The folder on rank 0, and nothing on the others."""
    folder: RunFolder | NoFolder = NoFolder()
    failure: TPPOError | None = None
    if ranks.main:
        try:
            folder = RunFolder(out, config, resumed)
        except TPPOError as error:
            failure = error
    ranks.together(None, failure)
    return folder


class _Run:
    """The parts of a run that is under way. ``began``: when the run began, in this process's clock [s]."""

    def __init__(
        self,
        trainer: Trainer,
        folder: RunFolder | NoFolder,
        store: CheckpointStore,
        dumps: DumpFolder | None,
        totals: Progress,
        termination: Termination,
        began: float,
    ) -> None:
        self.trainer, self.folder, self.store, self.dumps = trainer, folder, store, dumps
        self.totals, self.termination, self.began = totals, termination, began
        self.options, self.ranks = trainer.config.checkpoint, trainer.ranks
        self.stalled = 0.0  # seconds that training waited for checkpoints since the last line of metrics

    def train(self, summary: dict[str, Any], progress: bool) -> None:
        """From where the trainer stands to the end, or to the first reason to stop."""
        c, totals, trainer = self.trainer.config, self.totals, self.trainer
        if self.options.every:
            self.store.open()
            if totals.base_rate is None:
                self.save(first=True)
        if totals.base_rate is None:
            base = self.evaluate()
            totals.base_rate, totals.base_se = base.solve_rate, base.standard_error
        summary |= {"solve_rate_base": totals.base_rate, "solve_rate_base_se": totals.base_se}
        bar = tqdm(
            total=c.steps, initial=trainer.steps_done, disable=not (progress and self.ranks.main), file=sys.stderr,
            dynamic_ncols=True, desc=c.recipe, unit="step",
        )  # fmt: skip
        with bar:
            while not self.ended and not self.terminated():
                try:
                    metrics = self.step()
                except EngineError as error:
                    # Nothing of this step is done yet: what was in flight before it is what will be resumed. Ranks that
                    # know nothing of it cannot take part; torchrun ends them, and the last checkpoint has to do.
                    if self.ranks.size == 1 or self.ranks.agreed(error):
                        self.save()
                        self.store.wait()
                    raise
                bar.set_postfix(_watch(metrics, totals.last_rate), refresh=False)
                bar.update()
        if self.terminated():
            self.save()
            self.store.wait()
            summary |= {"terminated": True, "checkpoint_step": self.store.saved_step}
            return
        trainer.networks.check_finite(trainer.steps_done)
        if totals.reached_target:
            summary["stopped_at_target"] = True
        if trainer.parts.stop is not None:
            last = totals.watched[-1] if totals.watched else None
            summary["stop"] = {"ended": totals.enough or "all steps were done", trainer.parts.stop.metric: last}
        if totals.evaluated_at != trainer.steps_done:
            self.evaluate()
        summary |= {"solve_rate_final": totals.last_rate, "solve_rate_final_se": totals.last_se}
        summary |= trainer.workload.report(trainer.policy) | trainer.grader.report()

    def terminated(self) -> bool:
        """Whether some rank was asked to end."""
        return self.ranks.any(self.termination.requested)

    def step(self) -> dict[str, Any]:
        """A step, its evaluation, its line of metrics and its checkpoint; in this order, so that each has the last."""
        c, totals, trainer = self.trainer.config, self.totals, self.trainer
        began = time.perf_counter()
        done = trainer.step()
        # Held-out evaluation is not part of training time: it can be done by anyone, at any time.
        seconds, metrics = time.perf_counter() - began, done.metrics
        totals.train_seconds += seconds
        totals.tokens_generated += metrics["new_tokens"]
        metrics |= {"seconds_step": seconds, "train_seconds": totals.train_seconds}
        metrics |= {"tokens_generated": totals.tokens_generated, "seconds_checkpoint": self.stalled}
        self.stalled = 0.0
        record = False
        if c.evaluation.every and trainer.steps_done % c.evaluation.every == 0:
            held_out = self.evaluate()
            metrics |= held_out.summary()
            record = totals.best is None or held_out.solve_rate > totals.best
            totals.best = held_out.solve_rate if record else totals.best
            totals.reached_target = c.evaluation.stop_at is not None and held_out.solve_rate >= c.evaluation.stop_at
        if self.dumps is not None:
            self.dumps.write(trainer, done.responses)
        self.folder.log(metrics)
        self.note(metrics)
        due = self.options.every and (trainer.steps_done % self.options.every == 0 or self.ended)
        if due or (record and self.options.every and self.options.keep_best):
            self.save()
        return metrics

    def note(self, metrics: dict[str, Any]) -> None:
        """Ask the algorithm whether it has done enough."""
        stop, totals = self.trainer.parts.stop, self.totals
        if stop is not None and metrics.get(stop.metric) is not None:
            totals.watched.append(metrics[stop.metric])
            # Rank 0 decides: its sums may be rounded otherwise than those of another machine.
            totals.enough = self.ranks.broadcast(stop.why(totals.watched))

    @property
    def ended(self) -> bool:
        """All steps are done, or a criterion of the configuration was reached."""
        done = self.trainer.steps_done >= self.trainer.config.steps
        return done or self.totals.reached_target or bool(self.totals.enough)

    def save(self, *, first: bool = False) -> None:
        """Copy the run's state and write it in the background. The first one is written now: a disk that refuses it
        is an error before any work (ConfigError). A later failure is a warning, and the run goes on.
        """
        began, at = time.perf_counter(), self.trainer.steps_done
        self.trainer.watch("checkpoint_wait")
        self.store.wait()  # one copy in memory, not two
        if self.store.saved_step == at:
            return
        self.trainer.watch("checkpoint_copy")
        refused = False
        try:
            self.totals.metrics_bytes = self.folder.flush()
        except OSError as error:
            refused = True
            warn(f"no checkpoint of step {at}: metrics.jsonl cannot be written ({error.strerror}); training goes on")
        if self.ranks.any(refused):  # on rank 0, which alone has the file: then no rank may begin a checkpoint
            return
        self.totals.wall_seconds = began - self.began
        self.trainer.networks.check_finite(at)
        contents = capture(self.trainer, self.totals)
        self.trainer.watch(None)
        self.store.save(contents, now=first)
        self.stalled += time.perf_counter() - began

    def evaluate(self) -> EvalResult:
        """Held-out evaluation, noted in the totals."""
        self.trainer.watch("evaluate")
        result = self.trainer.evaluate()
        self.trainer.watch(None)
        self.totals.last_rate, self.totals.last_se = result.solve_rate, result.standard_error
        self.totals.evaluated_at = self.trainer.steps_done
        return result


def _watch(metrics: dict[str, Any], held_out: float | None) -> dict[str, str]:
    """The numbers a person watches."""
    show = lambda x, form: "-" if x is None else format(x, form)  # noqa: E731
    return {
        "held-out": show(held_out, ".3f"),
        "solved": show(metrics["solve_rate"], ".2f"),
        "length": show(metrics["length_mean"], ".0f"),
        "open": str(metrics["unfinished"]),
        "entropy": show(metrics["entropy"], ".2f"),
        "tok/s": show(metrics["new_tokens"] / metrics["seconds_step"], ".0f"),
    }
