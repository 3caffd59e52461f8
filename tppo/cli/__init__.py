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


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, 1 (the run failed), 2 (bad input), 130 (interrupted)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: a progress bar must not end a run
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
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
            status = COMMANDS[known.command](known, rest)
            sys.stdout.flush()
    except BrokenPipeError:  # whoever reads has enough, as `| head` does: what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ConfigError, DataError) as error:
        print(f"{say} {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{say} interrupted", file=sys.stderr)
        return 130
    except TPPOError as error:
        print(f"{say} {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from tppo.ranks.ranks import end

        end(status)
    return status
