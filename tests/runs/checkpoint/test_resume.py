"""What may change between two parts of a run, what is kept, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.crashes import assert_same_run, newest_tensors, without_timings
from tests.support.helpers import small_token_mdp
from tests.support.reinforce import Reinforce
from tppo.cli import main
from tppo.config.registry import with_algorithm
from tppo.config.run import CheckpointOptions
from tppo.engines.embedded import EmbeddedEngine
from tppo.environment import environment
from tppo.errors import CheckpointError, ConfigError, EngineDied, EngineError, FormatError
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import POOLS, Progress, capture, changed_fields, restore
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.checkpoint.store import FOLDER, CheckpointStore, choose, listed, newest
from tppo.runs.folder import read_metrics
from tppo.runs.run import run

CONFIG = small_token_mdp(steps=4, checkpoint__every=2)


@pytest.fixture
def done(tmp_path: Path) -> Path:
    run(CONFIG, tmp_path / "run", progress=False)
    return tmp_path / "run"


def test_without_resume_a_folder_with_a_run_is_refused(done: Path) -> None:
    with pytest.raises(ConfigError, match="--resume auto goes on"):
        run(CONFIG, done, progress=False)


def test_auto_starts_in_a_new_folder(tmp_path: Path) -> None:
    run(CONFIG, tmp_path / "a", progress=False, resume="auto")
    run(CONFIG, tmp_path / "b", progress=False)
    one, two = newest_tensors(tmp_path / "a"), newest_tensors(tmp_path / "b")
    assert all(torch.equal(one[name], two[name]) for name in one.keys() | two.keys())


def test_auto_does_not_start_over_what_it_cannot_go_on_with(tmp_path: Path) -> None:
    run(CONFIG.with_values(checkpoint__every=0), tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="checkpoints in"):
        choose(tmp_path / "run", "auto", CONFIG)
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("")
    with pytest.raises(ConfigError, match="an empty folder"):
        choose(tmp_path / "letters", "auto", CONFIG)


def test_a_longer_run_is_the_same_run_gone_on(done: Path, tmp_path: Path) -> None:
    longer = CONFIG.with_values(steps=8)
    with pytest.raises(ConfigError, match=r"these fields changed: steps; .*--allow-change steps"):
        run(longer, done, progress=False, resume="auto")
    run(longer, done, progress=False, resume="auto", allow_change=["steps"])
    run(longer, tmp_path / "at-once", progress=False)
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
    assert {g["lr"] for g in trainer.networks.optimizers["policy"].adamw.param_groups} == {0.125}
    assert trainer.networks.optimizers["policy"].schedule.last_epoch > 0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"seed": 1}, "the training data or their order changed"),
        ({"rollout__max_response_tokens": 9, "algorithm__window": 8}, "of response .* in flight"),
        ({"algorithm__kl": 0.1}, "tensor 'reference.logits_SA' is not in the checkpoint"),
        ({"algorithm": Reinforce()}, "optimisers of \\['critic', 'policy'\\], this run trains \\['policy'\\]"),
        ({"task__size": 4}, "changed|logits_SA"),
    ],
)
def test_changes_that_cannot_work_are_refused_though_allowed(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    config = CONFIG.with_values(algorithm__window=8, rollout__max_response_tokens=40)
    run(config, tmp_path / "run", progress=False)
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    with pytest.raises((CheckpointError, ConfigError), match=says):
        run(
            config.with_values(**change), tmp_path / "run", progress=False, resume="auto",
            allow_change=["seed", "rollout", "algorithm", "task"],
        )  # fmt: skip
    assert {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_going_back_to_an_older_checkpoint_keeps_what_came_after(done: Path) -> None:
    rows = (done / "metrics.jsonl").read_text()
    run(CONFIG, done, progress=False, resume=str(done / FOLDER / "step-00000002"))
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
    run(config, tmp_path / "run", progress=False)
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
            run(CONFIG, done, progress=False, resume="auto")
    finally:
        holder.communicate("")
    run(CONFIG, done, progress=False, resume="auto")


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fast = [
        "--quiet",
        "--rollout.slots",
        "16",
        "--evaluation.problems",
        "8",
        "--algorithm.warmup-steps",
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
    run(CONFIG, done, progress=False, resume="auto")
    assert "other versions" not in capsys.readouterr().err
    now = environment()
    monkeypatch.setattr(
        "tppo.runs.checkpoint.contents.environment", lambda: now | {"packages": now["packages"] | {"numpy": "9.9"}}
    )
    run(CONFIG, done, progress=False, resume="auto")
    assert f"numpy {now['packages']['numpy']} -> 9.9" in capsys.readouterr().err


def test_the_engine_dies_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a window: the state before it is saved, whatever the checkpoints' rhythm, and resumed from."""
    config = CONFIG.with_values(checkpoint__every=100)
    undisturbed, broken = tmp_path / "undisturbed", tmp_path / "broken"
    run(config, undisturbed, progress=False)
    generate, calls = EmbeddedEngine.generate, []

    def dying(self: EmbeddedEngine, requests: Any, sampling: Any, done: Any = None) -> Any:
        calls.append(len(requests))
        if len(calls) == 4:  # the evaluation, two whole steps, and a third that loses some of its answers
            generate(self, requests[: len(requests) // 2], sampling, done)
            raise EngineDied("the process of the engine is gone")
        return generate(self, requests, sampling, done)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedEngine, "generate", dying)
        with pytest.raises(EngineDied):
            run(config, broken, progress=False)
    assert [step for step, _ in listed(broken / FOLDER)] == [2, 0]
    run(config, broken, progress=False, resume="auto")
    assert_same_run(broken, undisturbed)


WAITING = with_algorithm(CONFIG, Reinforce).with_values(algorithm__window=4, steps=8, checkpoint__every=3)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Partial rollout without a critic, in one piece."""
    out = tmp_path_factory.mktemp("waiting") / "run"
    run(WAITING, out, progress=False, dump=out.with_suffix(".tokens"))
    return out


def test_no_critic_no_tensor_of_one(undisturbed: Path) -> None:
    """The policy, its optimiser and the generators: nothing else is in the checkpoint, by name or by number."""
    [policy, *_] = build_trainer(WAITING).policy.named_parameters()
    kinds = ["policy.{}", "optimizer.policy.step.{}", "optimizer.policy.exp_avg.{}", "optimizer.policy.exp_avg_sq.{}"]
    names = {kind.format(policy[0]) for kind in kinds}
    assert {name for name in newest_tensors(undisturbed) if not name.startswith("random.torch.")} == names
    path = listed(undisturbed / FOLDER)[0][1]
    state = json.loads((path / "state.json").read_text())
    assert set(state["optimizer_updates"]) == set(state["optimizer_state"]) == {"policy"}
    assert "critic" not in json.dumps(state["config"])
    responses, about = read_responses(path / "window.safetensors")
    assert about["pools"]["waiting"]  # groups wait between steps, and their members are kept
    assert set(about["pools"]) == set(POOLS)
    assert all(not r.values for r in responses)
    rows = read_metrics(undisturbed / "metrics.jsonl")
    assert rows[-1]["policy_grad_norm"] > 0
    assert max(row["target_version_span"] for row in rows) > 0
    assert not [name for name in rows[-1] if "critic" in name or "value" in name]


@pytest.mark.parametrize("error", [RuntimeError("killed"), EngineDied("the process of the engine is gone")])
@pytest.mark.parametrize("round_lost", [3, 5, 8, 11, 14])
def test_a_step_of_several_rounds_goes_on_in_the_middle(
    round_lost: int, error: Exception, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit the run that nothing befell, whether all of it dies in some round of generation, and with it what the
    step had generated, or the engine alone: then what the rounds before it generated is saved, and counted once.
    """
    out, generate, calls = tmp_path / "run", EmbeddedEngine.generate, []

    def dying(self: EmbeddedEngine, requests: Any, sampling: Any, done: Any = None) -> Any:
        calls.append(len(requests))
        if len(calls) == round_lost:
            raise error
        return generate(self, requests, sampling, done)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedEngine, "generate", dying)
        with pytest.raises(type(error)):
            run(WAITING, out, progress=False, dump=out.with_suffix(".tokens"))
    run(WAITING, out, progress=False, resume="auto", dump=out.with_suffix(".tokens"))
    assert_same_run(undisturbed, out)


def test_an_engine_that_breaks_its_contract_leaves_the_state_before_it(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers are refused as a whole: what is saved then holds none of them."""
    out, generate, calls = tmp_path / "run", EmbeddedEngine.generate, []

    def wrong(self: EmbeddedEngine, requests: Any, sampling: Any, done: Any = None) -> Any:
        answers = generate(self, requests, sampling, done)
        calls.append(len(answers))
        if len(calls) == 11:
            at = next(i for i, a in reversed(list(enumerate(answers))) if not a.stopped)
            short = dataclasses.replace(answers[at], tokens=answers[at].tokens[:-1], logprobs=answers[at].logprobs[:-1])
            answers[at] = short
        return answers

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedEngine, "generate", wrong)
        with pytest.raises(EngineError, match="expected the full budget or a stop"):
            run(WAITING, out, progress=False, dump=out.with_suffix(".tokens"))
    run(WAITING, out, progress=False, resume="auto", dump=out.with_suffix(".tokens"))
    assert_same_run(undisturbed, out)


def test_a_run_of_an_older_version_is_not_started_over(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Format 1 is refused with the remedy, whichever way it is asked for, and every byte stays."""
    for _, folder in listed(done / FOLDER):
        write_format_1(folder)
    before = {p: p.read_bytes() for p in done.rglob("*") if p.is_file()}
    newest_of_it = listed(done / FOLDER)[0][1]
    monkeypatch.setattr("tppo.runs.run.build_trainer", lambda *_, **__: pytest.fail("models were built"))
    says = (
        r"step-00000004: format 1 is older than 2, which this version reads; go on with it by the version that wrote it"
    )
    for which in ("auto", str(newest_of_it)):
        with pytest.raises(FormatError, match=says):
            run(CONFIG, done, progress=False, resume=which)
    start = CONFIG.with_values(algorithm__critic__start=str(done))
    with pytest.raises(FormatError, match=says):
        run(start, done.with_name("other"), progress=False)
    for args in (
        ["train", "token-mdp", "--out", str(done), "--quiet", "--resume", "auto"],
        ["replay", str(done), "--checkpoint", str(done)],
        ["export", str(done), str(done.with_name("exported"))],
    ):
        assert main(args) == 2
        said = capsys.readouterr().err
        assert said.startswith("tppo: ")
        assert "format 1 is older than 2" in said
        assert "or train again" in said
    assert {p: p.read_bytes() for p in done.rglob("*") if p.is_file()} == before
    assert not done.with_name("other").exists()


def write_format_1(folder: Path) -> None:
    """As the version before algorithms had numbers of their own left it: sound, with the hashes that belong to it."""
    shutil.rmtree(folder)
    (folder / "tensors").mkdir(parents=True)
    content = {
        "state.json": b'{"counters": {"steps_done": 4}, "config": {"algorithm": {"name": "T-PPO"}}}',
        "window.safetensors": b"",
        "tensors/model-00001-of-00001.safetensors": b"",
    }
    files = {name: {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()} for name, text in content.items()}
    text = json.dumps({"format": 1, "step": int(folder.name[5:]), "solve_rate": None, "files": files}).encode()
    content |= {"manifest.json": text, "manifest.sha256": hashlib.sha256(text).hexdigest().encode() + b"\n"}
    for name, inside in content.items():
        (folder / name).write_bytes(inside)


def test_state_is_all_there_is() -> None:
    """Every attribute of a trainer is restored, or is none that a step changes: a new one must be thought about."""
    trainer = build_trainer(CONFIG)
    known = {
        "config", "workload", "engine", "ranks", "parts", "call", "networks", "policy", "slots", "sampling", "grader",
        "watch", "steps_done", "version",
    }  # fmt: skip
    assert set(vars(trainer)) == known
    assert set(vars(trainer.networks)) == {"parts", "models", "call", "optimizers"}
    assert trainer.networks.policy is trainer.policy is trainer.networks.models["policy"]
    slots = {
        "prompts", "slots", "group_size", "window", "max_response_tokens", "select", "cursor", "next_uid", "new_tokens",
        "lag", "staleness", "shelf",
    }  # fmt: skip
    assert set(vars(trainer.slots)) == slots | set(POOLS)
