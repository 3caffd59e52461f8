"""What each command takes beside the fields of a configuration; a flag is given once, and by its whole name."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tppo import __version__
from tppo.errors import ConfigError
from tppo.plan.command import add_arguments

EPILOG = """examples:
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
STUDY = "Answer a question: data.csv, figure.png, findings.md and study.json; 'all' also writes one page, index.html."
POSITIONAL = ("command", "recipe", "run", "dump", "folder", "name")
"""What argparse calls arguments that are no flags."""
WITHOUT_FIELDS = ("recipes", "algorithms", "export", "study")
"""Commands that take no field of a configuration."""


class Parser(argparse.ArgumentParser):
    """Takes flags by their whole names; argparse would hand that wish to no parser of a command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **(kwargs | {"allow_abbrev": False}))


def usage(form: str) -> str:
    """A command's line of usage, with the fields that it takes."""
    return f"tppo {form} [--any.field value ...]"


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. What it does not know are fields, or mistakes."""
    parser = Parser(
        prog="tppo",
        description="Truncated PPO for language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tppo {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=Parser)
    form = "train RECIPE [--algorithm NAME] [--out DIR] [--quiet] [--resume auto|CHECKPOINT] [--allow-change FIELD,...]"
    train = commands.add_parser("train", help="train a recipe", add_help=False, usage=usage(form))
    train.add_argument("recipe", nargs="?")
    train.add_argument("--algorithm", metavar="NAME")
    train.add_argument("--out", type=Path)
    train.add_argument("--quiet", action="store_true")
    train.add_argument("--resume", metavar="auto|CHECKPOINT")
    train.add_argument("--allow-change", default="", metavar="FIELD,...")
    train.add_argument("--dump-rollouts", type=Path, metavar="DIR")
    evaluate = commands.add_parser("eval", help="evaluate a trained run", add_help=False, usage=usage("eval RUN"))
    evaluate.add_argument("run", nargs="?", type=Path)
    commands.add_parser("recipes", help="list the recipes")
    commands.add_parser("algorithms", help="list the algorithms")
    show = commands.add_parser("show", help="print a recipe's resolved configuration", add_help=False)
    show.add_argument("recipe", nargs="?")
    show.add_argument("--algorithm", metavar="NAME")
    export = commands.add_parser("export", help="write a checkpoint's policy as a model folder")
    export.add_argument("checkpoint", type=Path, help="a checkpoint, or a run: then its newest sound one")
    export.add_argument("folder", type=Path, help="empty or new")
    form = "replay DUMP --checkpoint CHECKPOINT [--steps N]"
    replay = commands.add_parser("replay", help="train from dumped tokens", usage=usage(form))
    replay.add_argument("dump", type=Path, help="what 'tppo train --dump-rollouts' wrote")
    replay.add_argument("--checkpoint", type=Path, required=True, help="a checkpoint: where the first step begins")
    replay.add_argument("--steps", type=int, default=1, help="steps to train, of those dumped after it")
    form = "plan RECIPE --gpus N --gpu NAME [options]"
    add_arguments(
        commands.add_parser("plan", help="memory and time before a launch", add_help=False, usage=usage(form))
    )
    study = commands.add_parser("study", help="run a study, or all of them", description=STUDY)
    study.add_argument("name", nargs="?", metavar="NAME", help="a study, 'all' or 'list'")
    study.add_argument("--out", type=Path, help="folder; default runs/studies/NAME, for 'all' runs/studies")
    study.add_argument("--full", action="store_true", help="larger and longer")
    study.add_argument("--seeds", type=int, help="independent repetitions; default: the study's own number")
    study.add_argument("--seed", type=int, default=0, help="where the seeds begin (default 0)")
    study.add_argument("--jobs", type=int, default=1, help="processes; never changes a result (default 1)")
    study.add_argument("--force", action="store_true", help="replace an earlier run of the same study")
    study.add_argument("--reuse", type=Path, metavar="DIR", help="'all': run nothing, build the page from DIR/NAME")
    study.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


def flag_name(argument: str) -> str:
    """What a flag is about, however it is spelled.

    >>> flag_name("--compute.no-packed"), flag_name("--policy.warmup-updates=3")
    ('compute.packed', 'policy.warmup_updates')
    """
    *path, leaf = argument.removeprefix("--").partition("=")[0].split(".")
    return ".".join([*path, leaf.removeprefix("no-")]).replace("-", "_")


def flags(arguments: Iterable[str]) -> list[str]:
    """The flags among arguments, as they were typed."""
    return [argument for argument in arguments if argument.startswith("--") and argument != "--"]


def check_once(argv: Sequence[str]) -> None:
    """Raise ConfigError for a flag that is given twice: which of the two was meant?"""
    seen: dict[str, str] = {}
    for at, argument in enumerate(argv):
        if not flags([argument]):
            continue
        typed, equals, value = argument.partition("=")
        if not equals:
            value = next((other for other in argv[at + 1 : at + 2] if not flags([other])), "")
        if (name := flag_name(typed)) in seen:
            found = f"{seen[name]} {typed} {value}".strip()
            raise ConfigError(typed.removeprefix("--"), found, "one value", f"give {typed} once")
        seen[name] = f"{typed} {value}".strip()


def own_flags(known: argparse.Namespace) -> list[str]:
    """Names of the flags that a command takes itself."""
    return [name for name in vars(known) if name not in POSITIONAL]


def refuse_rest(known: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise ConfigError for arguments that a command without fields does not know."""
    if known.command not in WITHOUT_FIELDS or not rest:
        return
    typed = rest[0].partition("=")[0]
    own = [f"--{name.replace('_', '-')}" for name in own_flags(known)]
    near = [flag for flag in own if flag.startswith(typed)] if flags([typed]) else []
    raise ConfigError(
        "options",
        " ".join(rest),
        f"no more than 'tppo {known.command} --help' lists",
        f"{' or '.join(near)} may be meant; a flag is given by its whole name" if near else "",
    )
