"""The command line. Nothing heavy is imported before it is needed, so that help answers at once."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo.errors import ConfigError, DataError, TPPOError

if TYPE_CHECKING:
    from tppo.config import RunConfig

_EPILOG = """examples:
  tppo train toy-language                        learn a toy language by T-PPO, in minutes on a laptop
  tppo train token-mdp --seed 3 --out runs/a     a token MDP with an exactly known optimum
  tppo train toy-language --help                 every field of the recipe, with its meaning
  tppo train toy-language --algorithm.schedule.window 64 --algorithm.advantage.boundary critic
  tppo eval runs/toy-language --evaluation.problems 2000
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (the run failed), 2 (bad input), 130 (interrupted)."""
    parser = argparse.ArgumentParser(
        prog="tppo",
        description="Truncated PPO for language models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    usage = _usage("train RECIPE [--out DIR] [--quiet]")
    train = commands.add_parser("train", help="train a recipe", add_help=False, usage=usage)
    train.add_argument("recipe", nargs="?")
    train.add_argument("--out", type=Path)
    train.add_argument("--quiet", action="store_true")
    evaluate = commands.add_parser("eval", help="evaluate a trained run", add_help=False, usage=_usage("eval RUN"))
    evaluate.add_argument("run", nargs="?", type=Path)
    commands.add_parser("recipes", help="list the recipes")
    show = commands.add_parser("show", help="print a recipe's resolved configuration", add_help=False)
    show.add_argument("recipe", nargs="?")
    known, rest = parser.parse_known_args(argv)
    if known.command == "recipes" and rest:
        parser.error(f"unrecognised arguments: {' '.join(rest)}")
    try:
        return {"train": _train, "eval": _eval, "recipes": _recipes, "show": _show}[known.command](known, rest)
    except (ConfigError, DataError) as error:
        print(f"tppo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tppo: interrupted", file=sys.stderr)
        return 130
    except TPPOError as error:
        print(f"tppo: {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _usage(form: str) -> str:
    return f"tppo {form} [--any.field value ...]"


def _configure(recipe: str | None, rest: list[str], command: str) -> RunConfig:
    from tppo.config import validate
    from tppo.recipes import load_recipe, recipe_entry_points

    if recipe is None:
        names = ", ".join(recipe_entry_points())
        if {"-h", "--help"} & set(rest):
            print(f"usage: {_usage(f'{command} RECIPE')}\n\nrecipes: {names}")
            print(f"for all fields: tppo {command} RECIPE --help")
            raise SystemExit(0)
        raise ConfigError("recipe", None, f"a name: {names}")
    return _override(load_recipe(recipe), rest, f"tppo {command} {recipe}", validate)


def _override(config: RunConfig, rest: list[str], prog: str, validate: Any) -> RunConfig:
    import tyro

    name = config.recipe
    try:
        config = tyro.cli(type(config), default=config, args=rest, prog=prog)
    except ValueError as error:  # a part of the task that checks itself
        raise ConfigError(config.recipe, " ".join(rest), "values that its parts accept", str(error)) from None
    if config.recipe != name:
        raise ConfigError("recipe", config.recipe, f"{name!r}, the recipe named first on the command line")
    validate(config)
    return config


def _train(known: argparse.Namespace, rest: list[str]) -> int:
    config = _configure(known.recipe, rest, "train")
    from tppo.runs import free_folder
    from tppo.train import run

    out = known.out or free_folder(config.recipe)
    summary = run(config, out, progress=not known.quiet)
    print(json.dumps(summary, indent=2))
    print(f"written to {out}: config.json, metrics.jsonl, summary.json, curves.png, policy/")
    return 130 if summary["interrupted"] else 0


def _eval(known: argparse.Namespace, rest: list[str]) -> int:
    if known.run is None:
        if {"-h", "--help"} & set(rest):
            print(f"usage: {_usage('eval RUN')}\n\nRUN is a folder that 'tppo train' wrote")
            return 0
        raise ConfigError("run", None, "the folder of a run")
    from tppo.config import validate
    from tppo.reload import read_config

    stored = read_config(known.run)
    config = _override(stored, rest, f"tppo eval {known.run}", validate)
    if config.task != stored.task:
        raise ConfigError("task", rest, "the task that the run was trained on", "evaluate without task options")
    if not (known.run / "policy").is_dir():
        raise ConfigError("run", str(known.run), "a run with a policy/ folder", "it ended before one was written")
    from tppo.parts import build_trainer

    trainer = build_trainer(config)
    trainer.workload.load(trainer.policy, known.run / "policy")
    result = trainer.evaluate()
    summary = result.summary() | trainer.workload.report(trainer.policy)
    print(json.dumps(summary | {"scores": _scores(list(result.solved.values()))}, indent=2))
    trainer.engine.close()
    return 0


def _scores(solved: list[tuple[bool, ...]]) -> dict[str, Any]:
    """avg@k, and pass@k for every power of two, with both kinds of 95% interval; None where not identifiable."""
    import numpy as np

    from tppo.scores import avg_at, pass_at

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


def _recipes(known: argparse.Namespace, rest: list[str]) -> int:
    from tppo.recipes import recipe_entry_points

    for name, entry in recipe_entry_points().items():
        doc = (entry.load().__doc__ or "").strip().splitlines()
        print(f"{name:<20} {doc[0] if doc else ''}")
    return 0


def _show(known: argparse.Namespace, rest: list[str]) -> int:
    config = _configure(known.recipe, rest, "show")
    from tppo.runs import as_dict

    print(json.dumps(as_dict(config), indent=2))
    return 0
