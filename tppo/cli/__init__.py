"""The command line. Nothing heavy is imported before it is needed, so that help answers at once.

arguments.py  what each command takes
fields.py     fields of a configuration, given on the command line
runs.py       train, eval, export, replay
lists.py      recipes, algorithms, show, plan, study
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from tppo.cli import lists, runs
from tppo.cli.arguments import check_once, make_parser, refuse_rest
from tppo.environment import speaking
from tppo.errors import ConfigError, DataError, TPPOError

COMMANDS = {
    "train": runs.train,
    "eval": runs.evaluate,
    "export": runs.export,
    "replay": runs.replay,
    "recipes": lists.recipes,
    "algorithms": lists.algorithms,
    "show": lists.show,
    "plan": lists.plan,
    "study": lists.study,
}


@speaking
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (the run failed), 2 (bad input), 130 (interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    rank = os.environ.get("RANK", "0")  # of several, started by torchrun, the first one speaks
    say = "tppo:" if rank == "0" else f"tppo: rank {rank}:"
    try:
        check_once(argv)
        known, rest = make_parser().parse_known_args(argv)
        refuse_rest(known, rest)
        with contextlib.ExitStack() as stack:
            if rank != "0":
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            _check_working_directory()
            status = COMMANDS[known.command](known, rest)
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
