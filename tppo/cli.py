"""The command line. Nothing heavy is imported before it is needed, so that help answers at once."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo.environment import speaking
from tppo.errors import ConfigError, DataError, TPPOError
from tppo.files import check_writable, is_free, utf8_name, writing_to
from tppo.plan.command import add_arguments

if TYPE_CHECKING:
    from tppo.config.run import RunConfig

_EPILOG = """examples:
  tppo train toy-language                        learn a toy language by T-PPO, in minutes on a laptop
  tppo train token-mdp --seed 3 --out runs/a     a token MDP with an exactly known optimum
  tppo train toy-language --help                 every field of the recipe, with its meaning
  tppo train toy-language --algorithm.window 64 --algorithm.boundary critic
  tppo train toy-language --algorithm ppo        the same by another algorithm; 'tppo algorithms' lists them
  tppo train toy-language --out runs/a --resume auto    go on where a run was stopped, killed or preempted
  tppo eval runs/toy-language --evaluation.problems 2000
  tppo export runs/a model                       the newest checkpoint's policy as a Hugging Face folder
  tppo replay tokens --checkpoint runs/a/checkpoints/step-00000020
  tppo plan smollm2-135m --gpus 2 --gpu h100     memory, time and whether it fits, before a launch
  tppo study bias                                a question answered: data, figure, findings
  tppo study all --jobs 2                        every study, and one page of them
"""

_STUDY = "Answer a question: data.csv, figure.png, findings.md and study.json; 'all' also writes one page, index.html."


@speaking
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (the run failed), 2 (bad input), 130 (interrupted)."""
    parser = argparse.ArgumentParser(
        prog="tppo",
        allow_abbrev=False,
        description="Truncated PPO for language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    usage = _usage(
        "train RECIPE [--algorithm NAME] [--out DIR] [--quiet] [--resume auto|CHECKPOINT] [--allow-change FIELD,...]"
    )
    train = commands.add_parser("train", help="train a recipe", add_help=False, usage=usage)
    train.add_argument("recipe", nargs="?")
    train.add_argument("--algorithm", metavar="NAME")
    train.add_argument("--out", type=Path)
    train.add_argument("--quiet", action="store_true")
    train.add_argument("--resume", metavar="auto|CHECKPOINT")
    train.add_argument("--allow-change", default="", metavar="FIELD,...")
    train.add_argument("--dump-rollouts", type=Path, metavar="DIR")
    evaluate = commands.add_parser("eval", help="evaluate a trained run", add_help=False, usage=_usage("eval RUN"))
    evaluate.add_argument("run", nargs="?", type=Path)
    commands.add_parser("recipes", help="list the recipes")
    commands.add_parser("algorithms", help="list the algorithms")
    show = commands.add_parser("show", help="print a recipe's resolved configuration", add_help=False)
    show.add_argument("recipe", nargs="?")
    show.add_argument("--algorithm", metavar="NAME")
    export = commands.add_parser("export", help="write a checkpoint's policy as a model folder")
    export.add_argument("checkpoint", type=Path, help="a checkpoint, or a run: then its newest sound one")
    export.add_argument("folder", type=Path, help="empty or new")
    replay = commands.add_parser("replay", help="train from dumped tokens", usage=_usage(_REPLAY))
    replay.add_argument("dump", type=Path, help="what 'tppo train --dump-rollouts' wrote")
    replay.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint: where the first step begins")
    replay.add_argument("--steps", type=int, default=1, help="steps to train, of those dumped after it")
    usage = _usage("plan RECIPE --gpus N --gpu NAME [options]")
    add_arguments(commands.add_parser("plan", help="memory and time before a launch", add_help=False, usage=usage))
    study = commands.add_parser("study", help="run a study, or all of them", description=_STUDY)
    study.add_argument("name", nargs="?", metavar="NAME", help="a study, 'all' or 'list'")
    study.add_argument("--out", type=Path, help="folder; default runs/studies/NAME, for 'all' runs/studies")
    study.add_argument("--full", action="store_true", help="larger and longer")
    study.add_argument("--seeds", type=int, help="independent repetitions; default: the study's own number")
    study.add_argument("--seed", type=int, default=0, help="where the seeds begin (default 0)")
    study.add_argument("--jobs", type=int, default=1, help="processes; never changes a result (default 1)")
    study.add_argument("--force", action="store_true", help="replace an earlier run of the same study")
    study.add_argument("--reuse", type=Path, metavar="DIR", help="'all': run nothing, build the page from DIR/NAME")
    study.add_argument("--quiet", action="store_true", help="no progress bar")
    known, rest = parser.parse_known_args(argv)
    if known.command in ("recipes", "algorithms", "export", "study") and rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    rank = os.environ.get("RANK", "0")  # of several, started by torchrun, the first one speaks
    say = "tppo:" if rank == "0" else f"tppo: rank {rank}:"
    try:
        with contextlib.ExitStack() as stack:
            if rank != "0":
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            _check_working_directory()
            status = _COMMANDS[known.command](known, rest)
            sys.stdout.flush()
    except (ConfigError, DataError) as error:
        print(f"{say} {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{say} interrupted", file=sys.stderr)
        return 130
    except (TPPOError, OSError) as error:  # OSError: a disk or a name that nothing above expected
        print(f"{say} {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from tppo.ranks.ranks import end

        end(status)
    return status


def _check_working_directory() -> None:
    """Raise ConfigError where it is gone: relative names mean nothing then, and MKL ends a process without it."""
    try:
        os.getcwd()
    except OSError as error:
        here = os.environ.get("PWD")
        raise ConfigError(
            "working directory", here, "one that exists", f"{error.strerror}; change to another"
        ) from None


_REPLAY = "replay DUMP --checkpoint CHECKPOINT [--steps N]"


def _usage(form: str) -> str:
    return f"tppo {form} [--any.field value ...]"


def _configure(known: argparse.Namespace, rest: list[str], command: str) -> RunConfig:
    from tppo.config.recipes import load_recipe, recipe_entry_points
    from tppo.config.registry import load_algorithm, with_algorithm
    from tppo.config.run import validate

    recipe = known.recipe

    if recipe is None:
        names = ", ".join(recipe_entry_points())
        if {"-h", "--help"} & set(rest):
            print(f"usage: {_usage(f'{command} RECIPE')}\n\nrecipes: {names}")
            print(f"for all fields: tppo {command} RECIPE --help")
            raise SystemExit(0)
        raise ConfigError("recipe", None, f"a name: {names}")
    config, prog = load_recipe(recipe), f"tppo {command} {recipe}"
    if known.algorithm is not None:
        config = with_algorithm(config, load_algorithm(known.algorithm))
        prog += f" --algorithm {known.algorithm}"
    return _override(config, rest, prog, validate)


def _override(config: RunConfig, rest: list[str], prog: str, validate: Any) -> RunConfig:
    import tyro

    name = config.recipe
    try:
        config, unknown = tyro.cli(type(config), default=config, args=rest, prog=prog, return_unknown_args=True)
    except ValueError as error:  # a part of the task that checks itself
        raise ConfigError(config.recipe, " ".join(rest), "values that its parts accept", str(error)) from None
    if unknown:
        from tppo.config.unknown import unknown_option

        raise unknown_option(unknown, config, prog)
    if config.recipe != name:
        raise ConfigError("recipe", config.recipe, f"{name!r}, the recipe named first on the command line")
    validate(config)
    return config


def _train(known: argparse.Namespace, rest: list[str]) -> int:
    config = _configure(known, rest, "train")
    from tppo.runs.folder import free_folder
    from tppo.runs.run import run

    if known.allow_change and not known.resume:
        raise ConfigError("allow-change", known.allow_change, "--resume with it", "a new run changes what it likes")
    if known.resume is None:
        out = known.out or free_folder(config.recipe)
    elif known.resume == "auto":
        out = known.out or Path("runs") / config.recipe
    else:
        out = known.out or Path(known.resume).absolute().parent.parent
    summary = run(
        config,
        out,
        progress=not known.quiet,
        resume=known.resume,
        allow_change=[name for name in known.allow_change.split(",") if name],
        dump=known.dump_rollouts,
    )
    print(json.dumps(summary, indent=2))
    print(f"written to {out}: config.json, metrics.jsonl, summary.json, curves.png, policy/")
    if summary.get("terminated"):
        saved = summary["checkpoint_step"]
        print(
            f"tppo: ended by SIGTERM; checkpoint: {'NOT SAVED' if saved is None else f'step {saved}'}", file=sys.stderr
        )
        return 1 if saved is None else 0
    return 130 if summary["interrupted"] else 0


def _eval(known: argparse.Namespace, rest: list[str]) -> int:
    if known.run is None:
        if {"-h", "--help"} & set(rest):
            print(f"usage: {_usage('eval RUN')}\n\nRUN is a folder that 'tppo train' wrote")
            return 0
        raise ConfigError("run", None, "the folder of a run")
    from tppo.config.run import validate
    from tppo.config.stored import read_config

    stored = read_config(known.run)
    config = _override(stored, rest, f"tppo eval {known.run}", validate)
    if config.task != stored.task:
        raise ConfigError("task", rest, "the task that the run was trained on", "evaluate without task options")
    if not os.path.isdir(known.run / "policy"):
        raise ConfigError("run", str(known.run), "a run with a policy/ folder", "it ended before one was written")
    from safetensors import SafetensorError

    from tppo.runs.build import build_trainer

    trainer = build_trainer(config)
    try:
        with utf8_name(known.run / "policy") as policy:
            trainer.workload.load(trainer.policy, policy)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{known.run / 'policy'} does not hold the weights of this run's policy: {reason}") from None
    result = trainer.evaluate()
    summary = result.summary() | trainer.workload.report(trainer.policy)
    print(json.dumps(summary | {"scores": _scores(list(result.solved.values()))}, indent=2))
    trainer.engine.close()
    return 0


def _scores(solved: list[tuple[bool, ...]]) -> dict[str, Any]:
    """avg@k, and pass@k for every power of two, with both kinds of 95% interval; None where not identifiable."""
    import numpy as np

    from tppo.evaluation.scores import avg_at, pass_at

    table = np.array(solved)
    ks = [2**i for i in range(1, 12) if 2**i <= table.shape[1]]
    known = lambda values: [None if v != v else v for v in values]  # noqa: E731
    return {
        score.name: {
            "value": score.value,
            "interval_same_problems": known(score.interval_sampling),
            "interval_new_problems": known(score.interval_total),
        }
        for score in [avg_at(table), *(pass_at(table, k) for k in ks)]
    }


def _export(known: argparse.Namespace, rest: list[str]) -> int:
    import torch

    from tppo.models.place import place
    from tppo.ranks.ranks import Ranks
    from tppo.runs.checkpoint.contents import load_network
    from tppo.runs.checkpoint.store import newest
    from tppo.runs.checkpoint.stored import read_checkpoint

    if not is_free(known.folder, "folder"):
        raise ConfigError("folder", str(known.folder), "a folder that is empty or does not exist")
    check_writable(known.folder, "folder")
    path = newest(known.checkpoint)
    config = read_checkpoint(path).config
    ranks = Ranks()
    workload = config.task.build(config, ranks)
    place(workload.policy, workload.fill, torch.device("cpu"), ranks)
    load_network("policy", workload.policy, path)
    with writing_to(known.folder, "folder"):
        workload.save(workload.policy, known.folder)
    print(f"{path} written to {known.folder}: {', '.join(sorted(p.name for p in known.folder.iterdir()))}")
    return 0


def _replay(known: argparse.Namespace, rest: list[str]) -> int:
    from tppo.config.run import validate
    from tppo.runs.checkpoint.store import newest
    from tppo.runs.checkpoint.stored import read_checkpoint
    from tppo.runs.replay import replay

    if known.steps < 1:
        raise ConfigError("steps", known.steps, "a number in [1, inf) [steps]")
    path = newest(known.checkpoint)
    stored = read_checkpoint(path).config
    config = _override(stored, rest, "tppo replay", validate)
    same = True
    for done in replay(path, known.dump, steps=known.steps, config=config):
        print(json.dumps(done.metrics | {f"same_{name}": equal for name, equal in done.same.items()}, indent=2))
        same = same and all(done.same.values())
    if config != stored:
        print("tppo: other values than the run's were asked for: other weights are expected", file=sys.stderr)
    elif not same:
        print("tppo: the weights are not those of the run; is this another machine or library?", file=sys.stderr)
    return 0 if same or config != stored else 1


def _recipes(known: argparse.Namespace, rest: list[str]) -> int:
    from tppo.config.recipes import recipe_entry_points

    for name, entry in recipe_entry_points().items():
        doc = (entry.load().__doc__ or "").strip().splitlines()
        print(f"{name:<20} {doc[0] if doc else ''}")
    return 0


def _algorithms(known: argparse.Namespace, rest: list[str]) -> int:
    import dataclasses

    from tppo.config.registry import algorithm_entry_points, load_algorithm

    for name in algorithm_entry_points():
        kind = load_algorithm(name)
        doc = (kind.__doc__ or "").strip().splitlines()
        print(f"{name:<20} {doc[0] if doc else ''}")
        print(f"{'':<20} {', '.join(field.name for field in dataclasses.fields(kind))}")
    return 0


def _show(known: argparse.Namespace, rest: list[str]) -> int:
    config = _configure(known, rest, "show")
    from tppo.config.stored import as_dict

    print(json.dumps(as_dict(config), indent=2))
    return 0


def _plan(known: argparse.Namespace, rest: list[str]) -> int:
    from tppo.plan.command import command, print_help

    if known.recipe is None and {"-h", "--help"} & set(rest):
        print_help()
        return 0
    return command(known, _configure(known, rest, "plan"))


def _study(known: argparse.Namespace, rest: list[str]) -> int:
    from tppo.studies.command import study

    return study(known)


_COMMANDS = {
    "train": _train,
    "eval": _eval,
    "export": _export,
    "replay": _replay,
    "recipes": _recipes,
    "algorithms": _algorithms,
    "show": _show,
    "plan": _plan,
    "study": _study,
}
