"""Runs of the command line in processes that can be killed, each a fork of this one: importing torch takes seconds.

Reads one JSON command a line: argv of ``tppo``; ``kill``: (event, n) ends the process by SIGKILL at the n-th event of
that name; ``delay``: seconds from the first generation until it is killed from outside; ``terminate``: (event, n,
signals) sends itself SIGTERMs; ``events``: file that gets the name of each event; ``output``: file for its output.
Answers with its exit status.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import Any


class Events:
    """Counts what happens in a run, writes it down, and strikes at the chosen moment."""

    def __init__(self, command: dict[str, Any]) -> None:
        self.file = os.open(command["events"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.counts: Counter[str] = Counter()
        self.kill = command.get("kill")
        self.terminate = command.get("terminate")

    def __call__(self, name: str) -> None:
        self.counts[name] += 1
        os.write(self.file, f"{name}\n".encode())
        if self.kill == [name, self.counts[name]]:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.terminate and self.terminate[:2] == [name, self.counts[name]]:
            for _ in range(self.terminate[2]):
                os.kill(os.getpid(), signal.SIGTERM)

    def before(self, owner: Any, attribute: str, name: str) -> None:
        """Every call of a function becomes an event."""
        inner: Callable[..., Any] = getattr(owner, attribute)

        def call(*args: Any, **kwargs: Any) -> Any:
            self(name)
            return inner(*args, **kwargs)

        setattr(owner, attribute, call)


def instrument(event: Events) -> None:
    """The moments at which a process may die. Phases of the step and of the writer come by their own names."""
    import tppo.engines.embedded
    import tppo.fit.optim
    import tppo.runs.checkpoint.files
    import tppo.runs.replay
    import tppo.runs.run
    from tppo.runs.watchdog import Watchdog

    event.before(tppo.engines.embedded, "pick", "mid-generation: a token")
    event.before(tppo.fit.optim.ModelOptimizer, "step", "mid-update: an optimiser step")
    event.before(tppo.runs.checkpoint.files, "flush", "mid-checkpoint: a flush")
    event.before(tppo.runs.checkpoint.files, "sha256_of_file", "mid-checkpoint: a hash")
    event.before(tppo.runs.run.RunFolder, "_write_pending", "metrics: before a write")
    event.before(tppo.runs.replay.DumpFolder, "write", "dump: before a write")
    enter = Watchdog.enter

    def watch(self: Watchdog, phase: str | None) -> None:
        event(f"phase {phase}")
        enter(self, phase)

    Watchdog.enter = watch  # type: ignore[method-assign]


def install_reinforce() -> None:
    """As if a package with this algorithm were installed."""
    from tppo.config import registry

    installed = registry.algorithm_entry_points
    entry = EntryPoint("reinforce", "tests.support.reinforce:Reinforce", registry.GROUP)
    registry.algorithm_entry_points = lambda: installed() | {entry.name: entry}  # type: ignore[assignment]


def child(command: dict[str, Any]) -> int:
    """One run."""
    output = os.open(command["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    event = Events(command)
    instrument(event)
    event("begin")
    from tppo.cli import main

    return main(command["argv"])


def await_phase(pid: int, path: str, seen: int) -> None:
    """Until the process has trained: what it does before is the same every time."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if os.path.exists(path):
            with open(path) as file:
                file.seek(seen)
                if "phase generate" in file.read():
                    return
        time.sleep(0.005)


def main() -> None:
    """Import, then fork on command."""
    for module in ("torch", "transformers.models.qwen2.modeling_qwen2", "paper_repro.recipes.small", "tppo.runs.run"):
        importlib.import_module(module)
    install_reinforce()
    print("ready", flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        seen = os.path.getsize(command["events"]) if os.path.exists(command["events"]) else 0
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                status = child(command)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        if command.get("delay") is not None:
            await_phase(pid, command["events"], seen)
            time.sleep(command["delay"])
            os.kill(pid, signal.SIGKILL)  # a child that has ended is still there until it is waited for
        _, status = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(status)), flush=True)


if __name__ == "__main__":
    main()
