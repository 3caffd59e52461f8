"""Starts programs on several ranks, as a user does with torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

WORKER = Path(__file__).with_name("worker.py")
# Small, yet able to solve the shortest problems: without rewards nothing would move.
BASE = [
    "--task.base.examples", "6000", "--task.base.error-rate", "0", "--task.base.language.difficulty.maximum", "2",
    "--task.base.layers", "2", "--task.base.width", "32", "--task.base.heads", "2", "--task.base.mlp-width", "64",
    "--task.base.max-positions", "128", "--task.base.tokens-per-batch", "512",
]  # fmt: skip
TOY = [
    "toy-language", "--rollout.slots", "12", "--rollout.max-response-tokens", "48", "--quiet",
    "--algorithm.window", "8", "--algorithm.warmup-steps", "1",
    "--algorithm.entropy", "0.01", "--policy.mini-batch", "8", "--algorithm.critic.mini-batch", "8",
    "--evaluation.problems", "6", "--evaluation.every", "2", "--compute.micro-batch-tokens", "200",
    *BASE,
]  # fmt: skip
MDP = [
    "token-mdp", "--rollout.slots", "16", "--rollout.max-response-tokens", "24", "--quiet",
    "--algorithm.warmup-steps", "1", "--algorithm.kl", "0.01",
    "--policy.mini-batch", "8", "--algorithm.critic.mini-batch", "8", "--evaluation.problems", "8",
]  # fmt: skip


def other(argv: Sequence[str | Path], *flags: str | Path) -> list[str]:
    """Arguments with other values: the command line takes each flag once.

    >>> other(["toy-language", "--seed", "1", "--quiet"], "--seed", "2", "--steps", "3")
    ['toy-language', '--quiet', '--seed', '2', '--steps', '3']
    """
    names, kept, skipping = {flag for flag in map(str, flags) if flag.startswith("--")}, [], False
    for argument in map(str, argv):
        skipping = argument in names if argument.startswith("--") else skipping
        kept += [] if skipping else [argument]
    return [*kept, *map(str, flags)]


def surroundings() -> dict[str, str]:
    """The environment of a launch: one thread a rank, and the project importable."""
    here = {"OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(Path(__file__).parents[2])}
    return {"XDG_CACHE_HOME": str(Path.home() / ".cache")} | os.environ | here


def torchrun(
    ranks: int, argv: Sequence[str | Path], *, restarts: int = 0, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a module (``-m name``) or a file on several ranks of this machine; its output comes back as text."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}", *map(str, argv),
    ]  # fmt: skip
    env = surroundings() | dict(env or {})
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)


class Forks:
    """Starts ranks of ``tests.support.worker`` as `torchrun` does, but forked from a process that is ready to go."""

    def __init__(self, folder: Path) -> None:
        self.output = folder / "output"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forks"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=surroundings(),
        )  # fmt: skip
        assert self._answer() == "ready\n"

    def _answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def run(self, ranks: int, argv: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """The worst status of the ranks; what all of them said is in stderr."""
        assert self.process.stdin is not None
        self.output.unlink(missing_ok=True)
        command = {"ranks": ranks, "argv": [*map(str, argv)], "output": str(self.output)}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return subprocess.CompletedProcess(argv, int(self._answer()), "", self.output.read_text())

    def close(self) -> None:
        """End the process that forks."""
        self.process.communicate()


def succeed(done: subprocess.CompletedProcess[str]) -> None:
    """Fail with what the program said."""
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
