"""A run that is killed at any moment and resumed equals the run that was not: bit for bit, in every figure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.crashes import KILLED, TOKEN_MDP, TOY_LANGUAGE, WAITING, Zygote, assert_same_run, events, log
from tests.support.launch import other
from tppo.runs.folder import read_metrics

TASKS = {"token-mdp": TOKEN_MDP, "toy-language": TOY_LANGUAGE, "waiting": WAITING}
# What must be among the moments; the rest is drawn from everything that happens in the undisturbed run.
ALWAYS = [
    "mid-generation: a token",
    "mid-update: an optimiser step",
    "phase checkpoint_write",
    "mid-checkpoint: a flush",
    "phase checkpoint_rename",
    "phase checkpoint_prune",  # between rename and clean-up
]


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    with Zygote(tmp_path_factory.mktemp("cache")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One run of each task that nobody kills."""
    runs = {}
    for task, argv in TASKS.items():
        runs[task] = tmp_path_factory.mktemp("undisturbed") / task
        assert zygote.run(runs[task], argv) == 0, log(runs[task])
        last = read_metrics(runs[task] / "metrics.jsonl")[-1]
        assert ("critic_grad_norm" in last) == (task != "waiting")
        assert last.get("critic_grad_norm", 1.0) > 0  # or equal weights would show nothing
        assert last["policy_grad_norm"] > 0
        assert last["windows_max"] > 1
    return runs


def moments(counts: Counter[str], number: int, seed: int) -> list[tuple[str, int]]:
    """(event, n): seeded, among all that happened; the first ones of the kinds that must be there."""
    rng = np.random.default_rng(seed)
    names = sorted(name for name in counts if name != "begin")
    kinds = [*ALWAYS, *(names[i] for i in rng.integers(len(names), size=number))][:number]
    return [(kind, int(rng.integers(1, counts[kind] + 1))) for kind in kinds]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("number", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_sigkill_at_any_moment(
    task: str, number: int, zygote: Zygote, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    fell: Counter[str] = Counter()
    for k, (event, n) in enumerate(moments(events(undisturbed[task]), number, seed=k_seed(task, number))):
        out = tmp_path / f"run-{k}"
        assert zygote.run(out, TASKS[task], kill=(event, n)) == KILLED, log(out)
        assert zygote.run(out, [*TASKS[task], "--resume", "auto"]) == 0, f"killed at {event} {n}\n{log(out)}"
        assert_same_run(undisturbed[task], out)
        fell[event] += 1
    print(f"\n{task}: {number} kills: " + ", ".join(f"{count} at '{event}'" for event, count in sorted(fell.items())))


@pytest.mark.parametrize("task", TASKS)
def test_sigkill_from_outside_twice(task: str, zygote: Zygote, undisturbed: dict[str, Path], tmp_path: Path) -> None:
    """Killed by the clock, resumed, killed again, resumed: when is up to the machine, what comes out is not."""
    rng = np.random.default_rng(5)
    out = tmp_path / "run"
    for k in range(2):
        status = zygote.run(out, [*TASKS[task], "--resume", "auto"], delay=float(rng.uniform(0.0, 0.4)))
        assert status in (KILLED, 0), log(out)
        lines = out.with_suffix(".events").read_text().splitlines()
        print(f"\n{task}: kill {k} fell after '{lines[-1] if lines else 'nothing'}', {len(lines)} events in")
    assert zygote.run(out, [*TASKS[task], "--resume", "auto"]) == 0, log(out)
    assert_same_run(undisturbed[task], out)


def k_seed(task: str, number: int) -> int:
    """Other moments for other tasks."""
    return number + len(task)


def test_two_kills_of_one_run_and_a_kill_before_the_first_checkpoint(
    zygote: Zygote, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for event, n in [("mid-checkpoint: a flush", 1), ("phase generate", 3), ("mid-update: an optimiser step", 7)]:
        assert zygote.run(out, [*TOKEN_MDP, "--resume", "auto"], kill=(event, n)) == KILLED, log(out)
    assert zygote.run(out, [*TOKEN_MDP, "--resume", "auto"]) == 0, log(out)
    assert_same_run(undisturbed["token-mdp"], out)


def test_sigterm_saves_and_a_second_one_ends_at_once(
    zygote: Zygote, undisturbed: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "polite"
    assert zygote.run(out, TOKEN_MDP, terminate=("phase update_critic", 4, 1)) == 0, log(out)
    assert re.search("SIGTERM: a checkpoint is saved when this step ends", log(out))
    assert "ended by SIGTERM; checkpoint: step 4" in log(out)
    assert '"terminated": true' in (out / "summary.json").read_text()
    assert zygote.run(out, [*TOKEN_MDP, "--resume", "auto"]) == 0, log(out)
    assert_same_run(undisturbed["token-mdp"], out)
    rude = tmp_path / "rude"
    assert zygote.run(rude, TOKEN_MDP, terminate=("phase update_critic", 4, 2)) == 143, log(rude)
    assert not (rude / "summary.json").exists()
    assert zygote.run(rude, [*TOKEN_MDP, "--resume", "auto"]) == 0, log(rude)
    assert_same_run(undisturbed["token-mdp"], rude)


def test_sigterm_without_regular_checkpoints_saves_one_all_the_same(zygote: Zygote, tmp_path: Path) -> None:
    argv, plain, out = other(TOKEN_MDP, "--checkpoint.every", "0"), tmp_path / "plain", tmp_path / "run"
    assert zygote.run(plain, argv) == 0, log(plain)
    assert not (plain / "checkpoints").exists()
    assert zygote.run(out, argv, terminate=("phase generate", 6, 1)) == 0, log(out)
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-00000006"]
    assert zygote.run(out, [*argv, "--resume", "auto"]) == 0, log(out)
    rows = [(run / "metrics.jsonl").read_text().count("\n") for run in (plain, out)]
    assert rows == [8, 8]
