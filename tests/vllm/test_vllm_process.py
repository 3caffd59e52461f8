"""The engine in a process of its own: killed in the middle of a window, and started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import tiny_lm
from tppo.engines.base import Engine
from tppo.engines.options import VllmOptions
from tppo.engines.probe import probe
from tppo.engines.restarting import RestartingEngine
from tppo.errors import EngineDied, RewardError
from tppo.models.transformer import TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import Continuation, GenerationRequest, Sampling

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]
OPTIONS = VllmOptions(max_rows=8, memory_fraction=0.1, max_model_tokens=64, own_process=True)
SAMPLING = Sampling(1.0, frozenset({0}), seed=5)
REQUESTS = [GenerationRequest(i, (1, 2, 3 + i % 5), 0, 4 + 2 * i) for i in range(12)]


def children() -> set[int]:
    """Process ids of everything that descends from this process."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents[int(entry.name)] = int(parent)
    found, grew = {os.getpid()}, True
    while grew:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grew = bool(more)
    return found - {os.getpid()}


class Setup:
    """A policy, a way to start engines for it, and the processes that they started."""

    def __init__(self, folder: Path) -> None:
        model = tiny_lm("qwen2", tied=True, head_dim=32)
        model.save_pretrained(folder)
        self.folder, self.policy = folder, TransformerPolicy(model)
        self.processes: list[set[int]] = []

    def start(self) -> Engine:
        from tppo.engines.vllm import VllmEngine

        before = children()
        engine = VllmEngine(self.folder, OPTIONS, dtype="float32", seed=0, ranks=Ranks())
        self.processes.append(children() - before)
        return engine

    def kill(self) -> None:
        assert self.processes[-1], "the engine has no process of its own"
        for pid in self.processes[-1]:
            os.kill(pid, signal.SIGKILL)


def test_death_in_a_window_stops_the_run_or_is_survived(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    engine = RestartingEngine(setup.start, restarts=1)
    engine.load_policy(setup.policy.weights(), 0)
    gap = lambda: probe(engine, setup.policy, [(1, 2)], bound=1e-4, version=0, ranks=Ranks())  # noqa: E731
    assert gap() < 1e-5  # weights came through files
    undisturbed = engine.generate(REQUESTS, SAMPLING)

    seen: list[int] = []

    def kill_after_the_third(continuation: Continuation) -> None:
        seen.append(continuation.uid)
        if len(seen) == 3:
            setup.kill()

    assert engine.generate(REQUESTS, SAMPLING, kill_after_the_third) == undisturbed
    assert sorted(seen) == list(range(12))  # each reported once, though some were made twice
    assert len(setup.processes) == 2
    assert gap() < 1e-5  # the new one has the weights

    seen.clear()
    with pytest.raises(EngineDied, match="process of the vLLM engine is gone"):
        engine.generate(REQUESTS, SAMPLING, kill_after_the_third)


def test_a_reward_that_fails_leaves_no_request_behind(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    engine = setup.start()
    engine.load_policy(setup.policy.weights(), 0)

    def fail(continuation: Any) -> None:
        raise RewardError("broken")

    with pytest.raises(RewardError, match="broken"):
        engine.generate(REQUESTS, SAMPLING, fail)
    engine.load_policy(setup.policy.weights(), 1)  # refused while requests run
    engine.close()
