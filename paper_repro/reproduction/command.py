"""The whole reproduction, at any size of model: data, value pretraining, T-PPO and PPO, evaluation, figures.

    python -m paper_repro.reproduction --size toy --out reproductions/toy
    python -m paper_repro.reproduction --size 32b --out reproductions/dry --dry-run
    torchrun ... -m paper_repro.reproduction --size 32b --out /shared/32b --data /shared/data

Every stage has its folder in --out. The same command again skips what is done and goes on where it was stopped, however
it was stopped; with other inputs it is refused. --dry-run takes a small random model of the size's architecture, few
and short responses and three steps, through the very same code.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from paper_repro.reproduction import data as reproduce_data
from paper_repro.reproduction.pairs import EVALUATION_SEED, SIZES, RunPair, pair, parse_changes
from paper_repro.reproduction.pipeline import Stage, digest_of_stage, on_main, run_stage
from paper_repro.reproduction.report import evaluate_policy, write_report
from paper_repro.tasks.pretrained import MathDataTask
from tppo.config.idle import unused
from tppo.config.run import RunConfig
from tppo.config.stored import as_dict
from tppo.environment import warn
from tppo.errors import ConfigError, DataError, TPPOError
from tppo.ranges import Range, check_leaf
from tppo.ranks.ranks import Ranks, current, end
from tppo.runs.checkpoint.store import newest
from tppo.runs.run import run

PARTS = ("data", "value", "tppo", "ppo", "evaluate", "figures")
HARMLESS = ("checkpoint", "tensorboard", "phase_limit_seconds", "grading_seconds")
"""Fields that may change while a reproduction goes on."""
STOPPED = 75
"""Exit status of a reproduction that was stopped before its end and can go on (EX_TEMPFAIL)."""


class Stopped(Exception):
    """A training run ended by a signal; its checkpoint is saved."""


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What is run, and where."""

    pair: RunPair
    out: Path
    """Folder of all stages."""
    ranks: Ranks
    data: Path | None = None
    """Folder with the problems; None reads them from the hub."""
    seeds: int = 1
    """Runs of each algorithm."""
    target: float | None = None
    """Solve rate whose first reaching goes into the table; None is the pair's own."""
    progress: bool = True
    """Show progress bars."""

    def stages(self, parts: Sequence[str] = PARTS) -> list[Stage]:
        """The stages of these parts, in order."""
        seeds = range(self.seeds)
        every = [
            ("data", [self._data()] if self.pair.reads_files else []),
            ("value", [self._training("value", self.pair.value, 0)]),
            ("tppo", [self._training(f"tppo-seed{seed}", self.pair.tppo, seed) for seed in seeds]),
            ("ppo", [self._training(f"ppo-seed{seed}", self.pair.ppo, seed) for seed in seeds]),
            ("evaluate", [self._evaluation(name) for name in ["base", *self.runs()]]),
            ("figures", [self._figures()]),
        ]
        return [stage for part, stages in every if part in parts for stage in stages]

    def runs(self) -> list[str]:
        """Names of the stages that train a policy."""
        return [f"{kind}-seed{seed}" for kind in ("tppo", "ppo") for seed in range(self.seeds)]

    def config(self, name: str, seed: int) -> RunConfig:
        """Of a stage that trains: the pair's, on the staged problems, with the pretrained critic."""
        config: RunConfig = getattr(self.pair, name.partition("-")[0])
        if isinstance(config.task, MathDataTask):
            config = dataclasses.replace(config, task=reproduce_data.staged(config.task, self.out / "data"))
        if name == "value":
            return config
        return config.with_values(seed=seed, algorithm__critic__start=str(self.out / "value" / "run"))

    def _before(self, *names: str) -> dict[str, str]:
        """Digests of the stages that this one builds on."""
        return {name: digest_of_stage(self.out, name) for name in names}

    def _data(self) -> Stage:
        task = self.pair.tppo.task
        assert isinstance(task, MathDataTask)

        def sources() -> reproduce_data.Sources:
            if self.data is None and self.pair.dry_run:
                return reproduce_data.made_sources(self.out / "made-problems")
            return reproduce_data.find_sources(self.data)

        return Stage(
            "data",
            lambda: reproduce_data.inputs_of(sources(), task.on_overlap),
            lambda folder: on_main(self.ranks, lambda: reproduce_data.stage(sources(), task, folder)),
        )

    def _training(self, name: str, chosen: RunConfig, seed: int) -> Stage:
        before = (["data"] if self.pair.reads_files else []) + ([] if name == "value" else ["value"])

        def inputs() -> dict[str, Any]:
            return {"config": _settings(self.config(name, seed)), "before": self._before(*before)}

        def work(folder: Path) -> dict[str, Any]:
            summary = run(
                self.config(name, seed), folder / "run", progress=self.progress, resume="auto", allow_change=HARMLESS
            )
            if summary.get("terminated"):
                raise Stopped(f"{name} was ended by SIGTERM; the same command goes on")
            if summary.get("interrupted"):
                raise KeyboardInterrupt
            return {"summary": summary}

        return Stage(name, inputs, work)

    def _evaluation(self, name: str) -> Stage:
        """Of the policy after a run, or of the one all began with."""
        config = self.config("tppo", EVALUATION_SEED) if name == "base" else self.config(name, EVALUATION_SEED)

        def inputs() -> dict[str, Any]:
            before = (["data"] if self.pair.reads_files else []) + ([] if name == "base" else [name])
            return {"config": _settings(config), "before": self._before(*before)}

        def work(folder: Path) -> dict[str, Any]:
            # One rank reads every byte of the checkpoint to see that it is sound, not all of them.
            checkpoint = None if name == "base" else on_main(self.ranks, lambda: newest(self.out / name / "run"))
            return evaluate_policy(config, checkpoint)

        return Stage(f"evaluate-{name}", inputs, work)

    def _figures(self) -> Stage:
        target = self.pair.target if self.target is None else self.target
        names = [*self.runs(), "evaluate-base", *(f"evaluate-{name}" for name in self.runs())]

        def work(folder: Path) -> dict[str, Any]:
            dry = self.pair.dry_run
            return on_main(self.ranks, lambda: write_report(self.out, self.runs(), folder, target=target, dry_run=dry))

        return Stage("figures", lambda: {"target": target, "before": self._before("value", *names)}, work, cheap=True)


def reproduce(what: Reproduction, parts: Sequence[str] = PARTS) -> list[str]:
    """Run the stages of these parts, every rank all of them. Returns the names of those that were not done before.

    Raises ConfigError and DataError for inputs that cannot be used, Stopped and KeyboardInterrupt when training was
    stopped, and whatever training raises; the same call goes on later.
    """
    done = []
    for stage in what.stages(parts):
        if what.ranks.main:
            print(f"{stage.name} ...", file=sys.stderr, flush=True)
        new = run_stage(stage, what.out, what.ranks)
        done += [stage.name] if new else []
        if what.ranks.main:
            print(f"{stage.name}: {'done' if new else 'was done before, skipped'}", file=sys.stderr, flush=True)
    return done


def _settings(config: RunConfig) -> Mapping[str, Any]:
    """All fields but those that cannot change a result."""
    return {name: value for name, value in as_dict(config).items() if name not in HARMLESS}


def _parts(text: str) -> tuple[str, ...]:
    chosen = tuple(part for part in text.split(",") if part)
    for part in chosen:
        if part not in PARTS:
            raise ConfigError("stages", part, "some of " + ",".join(PARTS))
    return chosen or PARTS


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (it failed), 2 (bad input), 75 (stopped by a signal), 130 (Ctrl-C)."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_repro.reproduction", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--size", required=True, metavar="|".join(SIZES))
    parser.add_argument("--out", required=True, type=Path, help="folder of all stages; shared by all nodes")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="dapo-math-17k.parquet and aime-2024.parquet in it")
    parser.add_argument("--dry-run", action="store_true", help="a small random model, three steps, the same code")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each algorithm (default 1)")
    parser.add_argument("--target", type=float, help="solve rate for 'time to reach'; default: the pair's own")
    parser.add_argument("--stages", default="", metavar=",".join(PARTS), help="only these, in this order; default all")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", dest="changes",
        help="a field of the runs, such as rollout.slots=256, steps=50 or value.steps=10; repeatable",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    args = parser.parse_args(argv)
    try:
        check_leaf("seeds", Annotated[int, Range(1, 10_000, unit="runs")], args.seeds)
        check_leaf("target", Annotated[float, Range(0, 1, above=True, unit="share solved")] | None, args.target)
        parts, ranks = _parts(args.stages), current()
        changes = parse_changes(args.changes)
        chosen = pair(args.size, changes, dry_run=args.dry_run)
        for line in unused(chosen.tppo, (name for name in changes if name.partition(".")[0] not in PARTS)):
            warn(line)
        if args.data is not None and not chosen.reads_files:
            raise ConfigError("data", str(args.data), f"no --data for size {args.size!r}", "its problems are made")
        what = Reproduction(
            chosen, args.out, ranks, data=args.data, seeds=args.seeds, target=args.target,
            progress=ranks.main and not args.quiet,
        )  # fmt: skip
        reproduce(what, parts)
    except (ConfigError, DataError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2
    except Stopped as error:
        print(f"reproduce: {error}", file=sys.stderr)
        end(STOPPED)  # every rank was told
        return STOPPED
    except KeyboardInterrupt:
        print("reproduce: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except TPPOError as error:
        print(f"reproduce: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if ranks.main and "figures" in parts:
        print((args.out / "figures" / "report.md").read_text(encoding="utf-8"), end="")
        print(f"written to {args.out / 'figures'}")
    end(0)
    return 0
