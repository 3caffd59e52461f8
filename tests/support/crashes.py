"""Runs that are killed, and what is left of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file

from tests.support.launch import BASE, other
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.checkpoint.store import FOLDER, listed
from tppo.runs.folder import read_metrics

KILLED = -9
TOKEN_MDP = [
    "token-mdp", "--steps", "8", "--rollout.slots", "16", "--rollout.max-response-tokens", "24",
    "--algorithm.warmup-steps", "2", "--algorithm.kl", "0.01",
    "--policy.mini-batch", "8", "--algorithm.critic.mini-batch", "8", "--policy.warmup-updates", "5",
    "--evaluation.problems", "8", "--evaluation.every", "3", "--checkpoint.every", "2",
]  # fmt: skip
WAITING = [
    # Without a critic, and with groups that wait: a step has several rounds of generation.
    "token-mdp", "--algorithm", "reinforce", "--algorithm.window", "4", "--steps", "8", "--rollout.slots", "16",
    "--rollout.max-response-tokens", "24", "--policy.mini-batch", "8", "--evaluation.problems", "8",
    "--evaluation.every", "3", "--checkpoint.every", "2",
]  # fmt: skip
TOY_LANGUAGE = [
    "toy-language", "--steps", "5", "--rollout.slots", "16", "--rollout.max-response-tokens", "48",
    "--algorithm.window", "8", "--algorithm.warmup-steps", "1",
    "--algorithm.entropy", "0.01", "--policy.mini-batch", "8", "--algorithm.critic.mini-batch", "8",
    "--evaluation.problems", "4", "--evaluation.every", "2", "--checkpoint.every", "1",
    *other(BASE, "--task.base.layers", "1"),
]  # fmt: skip


class Zygote:
    """Starts runs as forks of one process that has everything imported."""

    def __init__(self, cache: Path) -> None:
        env = os.environ | {"TPPO_CACHE": str(cache), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        env["PYTHONPATH"] = str(Path(__file__).parents[2])
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
        )  # fmt: skip
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, out: Path, argv: Sequence[str], **command: Any) -> int:
        """Exit status of ``tppo train`` into ``out``; its output is in ``out.log``, its events in ``out.events``."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        full = ["train", *argv, "--out", str(out), "--quiet", "--dump-rollouts", str(out.with_suffix(".tokens"))]
        command |= {"argv": full, "events": str(out.with_suffix(".events")), "output": str(out.with_suffix(".log"))}
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())


def events(out: Path) -> Counter[str]:
    """How often each event happened in the runs into ``out``."""
    return Counter(out.with_suffix(".events").read_text().splitlines())


def log(out: Path) -> str:
    """Output of the newest run into ``out``."""
    return out.with_suffix(".log").read_text()


def is_timing(name: str) -> bool:
    """Figures that differ between two runs of the same thing."""
    return "second" in name


def without_timings(row: dict[str, Any]) -> dict[str, Any]:
    """A row of metrics, or a summary."""
    return {name: value for name, value in row.items() if not is_timing(name)}


def newest_tensors(out: Path) -> dict[str, torch.Tensor]:
    """Everything that training changes, from the newest checkpoint."""
    [file] = (listed(out / FOLDER)[0][1] / "tensors").glob("*.safetensors")
    return load_file(file)


def assert_same_run(a: Path, b: Path) -> None:
    """Weights, optimisers, responses in flight, metrics, summary and every generated token: bit for bit."""
    one, two = newest_tensors(a), newest_tensors(b)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []
    [(step_a, last_a), *_], [(step_b, last_b), *_] = listed(a / FOLDER), listed(b / FOLDER)
    assert step_a == step_b
    assert read_responses(last_a / "window.safetensors") == read_responses(last_b / "window.safetensors")
    rows_a, rows_b = ([without_timings(r) for r in read_metrics(run / "metrics.jsonl")] for run in (a, b))
    assert rows_a == rows_b
    assert [row["step"] for row in rows_a] == list(range(step_a))
    tokens_a, tokens_b = (sorted(run.with_suffix(".tokens").glob("*.safetensors")) for run in (a, b))
    assert [f.name for f in tokens_a] == [f.name for f in tokens_b]
    for x, y in zip(tokens_a, tokens_b, strict=True):
        assert read_responses(x) == read_responses(y), x.name
    one_s, two_s = (without_timings(json.loads((run / "summary.json").read_text())) for run in (a, b))
    assert one_s == two_s
    assert [p.name for p in (b / FOLDER).iterdir() if p.name.startswith(".")] == []
