"""What may change between two parts of a run, what is kept, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.crashes import assert_same_run, newest_tensors, without_timings
from tests.support.helpers import small_token_mdp
from tppo.cli import main
from tppo.config.run import CheckpointOptions
from tppo.engines.embedded import TorchEngine
from tppo.errors import CheckpointError, ConfigError, EngineDied
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import Progress, capture, changed_fields, restore
from tppo.runs.checkpoint.store import FOLDER, CheckpointStore, choose, listed, newest
from tppo.runs.folder import environment, read_metrics
from tppo.runs.run import run

CONFIG = small_token_mdp(steps=4, checkpoint__every=2)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    run(CONFIG, tmp_path / "run", Ranks(), progress=False)
    return tmp_path / "run"


def test_without_resume_a_folder_with_a_run_is_refused(done: Path) -> None:
    with pytest.raises(ConfigError, match="--resume auto goes on"):
        run(CONFIG, done, Ranks(), progress=False)


def test_auto_starts_in_a_new_folder(tmp_path: Path) -> None:
    run(CONFIG, tmp_path / "a", Ranks(), progress=False, resume="auto")
    run(CONFIG, tmp_path / "b", Ranks(), progress=False)
    one, two = newest_tensors(tmp_path / "a"), newest_tensors(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def test_auto_does_not_start_over_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    run(CONFIG.with_values(checkpoint__every=0), tmp_path / "run", Ranks(), progress=False)
    with pytest.raises(ConfigError, match="checkpoints in"):
        choose(tmp_path / "run", "auto", CONFIG)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("")
    with pytest.raises(ConfigError, match="an empty folder"):
        choose(tmp_path / "letters", "auto", CONFIG)


def test_a_longer_run_is_the_same_run_gone_on(done: Path, tmp_path: Path) -> None:
    longer = CONFIG.with_values(steps=8)
    with pytest.raises(ConfigError, match=r"these fields changed: steps; .*--allow-change steps"):
        run(longer, done, Ranks(), progress=False, resume="auto")
    run(longer, done, Ranks(), progress=False, resume="auto", allow_change=["steps"])
    run(longer, tmp_path / "at-once", Ranks(), progress=False)
    one, two = newest_tensors(done), newest_tensors(tmp_path / "at-once")
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())
    rows = [[without_timings(r) for r in read_metrics(p / "metrics.jsonl")] for p in (done, tmp_path / "at-once")]
    assert rows[0] == rows[1]
    assert json.loads((done / "config.json").read_text())["resumed"] == [{"step": 4, "changed": ["steps"]}]


def test_what_may_change_is_named_by_field_or_by_part(done: Path) -> None:
    other = CONFIG.with_values(evaluation__every=3, evaluation__problems=9, policy__lr=0.1)
    path = listed(done / FOLDER)[0][1]
    stored = json.loads((path / "state.json").read_text())["config"]
    assert changed_fields(stored, CONFIG) == []
    assert changed_fields(stored, other) == ["evaluation.every", "evaluation.problems", "policy.lr"]
    with pytest.raises(ConfigError, match=r"fields changed: policy.lr;"):
        choose(done, "auto", other, ["evaluation"])
    assert choose(done, "auto", other, ["evaluation", "policy.lr"]).changed == tuple(changed_fields(stored, other))
    with pytest.raises(ConfigError, match="allow-change = 'polcy'"):
        choose(done, "auto", other, ["polcy"])


def test_a_changed_learning_rate_takes_effect(done: Path) -> None:
    other = CONFIG.with_values(policy__lr=0.125)
    trainer = build_trainer(other)
    restore(trainer, listed(done / FOLDER)[0][1])
    assert {g["lr"] for g in trainer.policy_optimizer.adamw.param_groups} == {0.125}
    assert trainer.policy_optimizer.schedule.last_epoch > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "the training data or their order changed"),
        ({"rollout__max_response_tokens": 9, "algorithm__schedule__window": 8}, "of response .* in flight"),
        ({"algorithm__policy_loss__kl_coef": 0.1}, "tensor 'reference.logits_SA' is not in the checkpoint"),
        ({"task__size": 4}, "changed|logits_SA"),
    ],
)
def test_changes_that_cannot_work_are_refused_though_allowed(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = CONFIG.with_values(algorithm__schedule__window=8, rollout__max_response_tokens=40)
    run(config, tmp_path / "run", Ranks(), progress=False)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises((CheckpointError, ConfigError), match=says):
        run(
            config.with_values(**change), tmp_path / "run", Ranks(), progress=False, resume="auto",
            allow_change=["seed", "rollout", "algorithm", "task"],
        )  # fmt: skip
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_going_back_to_an_older_checkpoint_keeps_what_came_after(done: Path) -> None:
    rows = (done / "metrics.jsonl").read_text()
    run(CONFIG, done, Ranks(), progress=False, resume=str(done / FOLDER / "step-00000002"))
    assert [without_timings(json.loads(r)) for r in rows.splitlines()] == [
        without_timings(r) for r in read_metrics(done / "metrics.jsonl")
    ]
    assert (done / "metrics.replaced.jsonl").read_text() == "".join(rows.splitlines(keepends=True)[2:])
    assert (done / FOLDER / "skipped-step-00000004-1").is_dir()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(
        tmp_path, CheckpointOptions(every=1, keep=2, keep_best=1), Ranks(), watch=lambda phase: None
    )
    trainer, rates = build_trainer(CONFIG), [0.1, 0.7, 0.3, None, 0.7, 0.2, None]
    for step, rate in enumerate(rates):
        trainer.steps_done = step
        store.save(capture(trainer, Progress(last_rate=rate, evaluated_at=step)))
        store.wait()
    assert [step for step, _ in listed(tmp_path / FOLDER)] == [6, 5, 4]  # of two best the newer
    assert newest(tmp_path).name == "step-00000006"


def test_a_record_is_saved_when_it_is_set(tmp_path: Path) -> None:
    config = CONFIG.with_values(steps=6, checkpoint__every=100, evaluation__every=2, evaluation__problems=64)
    run(config, tmp_path / "run", Ranks(), progress=False)
    rows = [r for r in read_metrics(tmp_path / "run" / "metrics.jsonl") if "held_out_solve_rate" in r]
    best = max(rows, key=lambda r: (r["held_out_solve_rate"], -r["step"]))
    assert best["step"] + 1 in [step for step, _ in listed(tmp_path / "run" / FOLDER)]


def test_global_random_generators_go_on_where_they_stood(tmp_path: Path) -> None:
    """Training draws from counter-based generators alone; a task's reward or a model's dropout may not."""
    import random

    import numpy as np

    trainer = build_trainer(CONFIG)
    store = CheckpointStore(tmp_path, CheckpointOptions(), Ranks(), watch=lambda phase: None)
    store.save(capture(trainer, Progress()), now=True)
    draw = lambda: (random.random(), np.random.rand(), float(torch.rand(())))  # noqa: E731, NPY002
    first = draw()
    assert draw() != first
    restore(build_trainer(CONFIG), newest(tmp_path))
    assert draw() == first


def test_two_processes_do_not_write_one_run(done: Path) -> None:
    code = (
        "import fcntl, sys; f = open(sys.argv[1], 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print('held', flush=True); "
        "sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(done / "metrics.jsonl")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ConfigError, match="no other process writes"):
            run(CONFIG, done, Ranks(), progress=False, resume="auto")
    finally:
        holder.communicate("")
    run(CONFIG, done, Ranks(), progress=False, resume="auto")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fast = [
        "--quiet",
        "--rollout.slots",
        "16",
        "--evaluation.problems",
        "8",
        "--algorithm.value-target.warmup-steps",
        "1",
    ]
    assert main(["train", "token-mdp", "--steps", "2", *fast, "--resume", "auto"]) == 0
    assert main(["train", "token-mdp", "--steps", "3", *fast, "--resume", "auto"]) == 2
    assert "--allow-change steps" in capsys.readouterr().err
    path = str(Path("runs/token-mdp/checkpoints/step-00000002"))
    assert main(["train", "token-mdp", "--steps", "3", *fast, "--resume", path, "--allow-change", "steps"]) == 0
    assert len(read_metrics(Path("runs/token-mdp/metrics.jsonl"))) == 3
    assert main(["train", "token-mdp", *fast, "--allow-change", "steps"]) == 2
    assert "--resume with it" in capsys.readouterr().err


def test_other_versions_are_said(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(CONFIG, done, Ranks(), progress=False, resume="auto")
    assert "other versions" not in capsys.readouterr().err
    now = environment()
    monkeypatch.setattr(
        "tppo.runs.checkpoint.contents.environment", lambda: now | {"packages": now["packages"] | {"numpy": "9.9"}}
    )
    run(CONFIG, done, Ranks(), progress=False, resume="auto")
    assert f"numpy {now['packages']['numpy']} -> 9.9" in capsys.readouterr().err


def test_the_engine_dies_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a window: the state before it is saved, whatever the checkpoints' rhythm, and resumed from."""
    config = CONFIG.with_values(checkpoint__every=100)
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    run(config, undisturbed, Ranks(), progress=False)
    generate, calls = TorchEngine.generate, []

    def dying(self: TorchEngine, requests: Any, sampling: Any, done: Any = None) -> Any:
        calls.append(len(requests))
        if len(calls) == 4:  # the evaluation, two whole steps, and a third that loses some of its answers
            generate(self, requests[: len(requests) // 2], sampling, done)
            raise EngineDied("the process of the engine is gone")
        return generate(self, requests, sampling, done)

    with monkeypatch.context() as patch:
        patch.setattr(TorchEngine, "generate", dying)
        with pytest.raises(EngineDied):
            run(config, broken, Ranks(), progress=False)
    assert [step for step, _ in listed(broken / FOLDER)] == [2, 0]
    run(config, broken, Ranks(), progress=False, resume="auto")
    assert_same_run(broken, undisturbed)


def test_state_is_all_there_is() -> None:
    """Every attribute of a trainer is restored, or is none that a step changes: a new one must be thought about."""
    trainer = build_trainer(CONFIG)
    known = {
        "config", "workload", "engine", "policy", "critic", "policy_module", "policy_optimizer", "critic_optimizer",
        "reference", "window", "sampling", "grader", "watch", "steps_done", "version",
    }  # fmt: skip
    assert set(vars(trainer)) == known
    window = {
        "prompts",
        "slots",
        "group_size",
        "window",
        "max_response_tokens",
        "cursor",
        "next_uid",
        "in_flight",
        "waiting",
    }
    assert set(vars(trainer.window)) == window
