"""One step again from its dumped tokens, and a policy as a model folder: both bit for bit."""

from __future__ import annotations

import json
import os
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.crashes import TOY_LANGUAGE, without_timings
from tests.support.helpers import small_token_mdp, tiny_lm
from tests.support.launch import other
from tests.support.reinforce import Reinforce
from tppo.cli import main
from tppo.config.registry import with_algorithm
from tppo.config.run import CheckpointOptions
from tppo.errors import CheckpointError, ConfigError, DataError
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import Progress, capture, load_network, restore
from tppo.runs.checkpoint.responses import pack_responses, read_responses
from tppo.runs.checkpoint.store import FOLDER, CheckpointStore, listed, newest
from tppo.runs.folder import read_metrics
from tppo.runs.replay import dump_file, replay
from tppo.runs.run import run

NETWORKS = {"mdp": ["policy", "critic", "reference"], "toy": ["policy", "critic"]}
MDP = small_token_mdp(steps=5, checkpoint__every=1, checkpoint__keep=9, algorithm__kl=0.01)


@pytest.fixture(scope="module")
def mdp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("replay")
    run(MDP, out / "run", progress=False, dump=out / "tokens")
    return out


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("toy")
    before, os.environ["TPPO_CACHE"] = os.environ.get("TPPO_CACHE"), str(out / "cache")
    try:
        args = other(TOY_LANGUAGE, "--steps", "3", "--checkpoint.keep", "9", "--dump-rollouts", out / "tokens")
        assert main(["train", *args, "--out", str(out / "run"), "--quiet"]) == 0
        yield out
    finally:
        os.environ.pop("TPPO_CACHE")
        if before is not None:
            os.environ["TPPO_CACHE"] = before


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "run" / FOLDER / f"step-{step:08d}"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    [file] = (folder / "tensors").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize("task", ["mdp", "toy"])
@pytest.mark.parametrize("first", [0, 1, 2])
def test_a_replayed_step_makes_the_same_weights(
    task: str, first: int, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the step changes: weights, optimisers, responses in flight and metrics; and no engine, no grader."""
    folder: Path = request.getfixturevalue(task)
    monkeypatch.setattr("tppo.engines.embedded.EmbeddedEngine.generate", lambda *_: pytest.fail("an engine was asked"))
    [done] = replay(checkpoint(folder, first), folder / "tokens", steps=1)
    assert done.same == dict.fromkeys(NETWORKS[task], True)
    store = CheckpointStore(tmp_path, CheckpointOptions(), Ranks(), watch=lambda phase: None)
    store.save(capture(done.trainer, Progress()), now=True)
    made, wanted = tensors(newest(tmp_path)), tensors(checkpoint(folder, first + 1))
    assert made.keys() == wanted.keys()
    assert [name for name in made if not torch.equal(made[name], wanted[name])] == []
    recorded, _ = read_responses(dump_file(folder / "tokens", first))
    assert done.step.responses == recorded  # the critic's values too
    window, _ = read_responses(checkpoint(folder, first + 1) / "window.safetensors")
    assert [r for r in done.step.responses if not r.status.finished] == [r for r in window if r.tokens]
    row = without_timings(read_metrics(folder / "run" / "metrics.jsonl")[first])
    replayed = json.loads(json.dumps(without_timings(done.metrics)))
    assert {name: row[name] for name in replayed} == replayed
    # What cannot be known without an engine is not said.
    assert row.keys() - replayed.keys() == {"new_tokens", "unfinished", "waiting", "tokens_generated"} | {
        name for name in row if name.startswith("held_out")
    }


def test_steps_in_a_row(mdp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(mdp / "tokens"), "--checkpoint", str(checkpoint(mdp, 1)), "--steps", "4"]) == 0
    said = capsys.readouterr().out
    for name in NETWORKS["mdp"]:
        assert said.count(f'"same_{name}": true') == 4
    assert "new_tokens" not in said


def test_a_reward_is_replayed_and_not_computed(mdp: Path, tmp_path: Path) -> None:
    """The recorded rewards go in: turn one around, and other weights come out."""
    path = dump_file(mdp / "tokens", 2)
    responses, about = read_responses(path)
    judged = next(r for r in responses if r.status.finished and r.tokens)
    judged.reward = 1.0 - (judged.reward or 0.0)
    dump_file(tmp_path, 2).write_bytes(pack_responses(responses, about))
    [done] = replay(checkpoint(mdp, 2), tmp_path)
    assert done.same == {"policy": False, "critic": False, "reference": True}


def test_other_values_make_other_weights(mdp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["replay", str(mdp / "tokens"), "--checkpoint", str(checkpoint(mdp, 2)), "--policy.lr", "0.5"]
    assert main(args) == 0
    captured = capsys.readouterr()
    assert '"same_policy": false' in captured.out
    assert "other weights are expected" in captured.err


def test_what_cannot_be_replayed(mdp: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step-00000005.safetensors: No such file"):
        list(replay(checkpoint(mdp, 5), mdp / "tokens"))
    dump_file(tmp_path, 2).write_bytes(dump_file(mdp / "tokens", 1).read_bytes())
    with pytest.raises(DataError, match="is of step 1: expected step 2"):
        list(replay(checkpoint(mdp, 2), tmp_path))
    dump_file(tmp_path, 2).write_bytes(b"not safetensors")
    with pytest.raises(DataError, match="does not hold responses"):
        list(replay(checkpoint(mdp, 2), tmp_path))
    with pytest.raises(ConfigError, match="dump-rollouts"):
        run(MDP, tmp_path / "run", progress=False, dump=mdp / "tokens")
    responses, about = read_responses(dump_file(mdp / "tokens", 2))
    carried = next(r for r in responses if r.start and not r.status.finished)
    carried.window_starts[-1] += 1
    dump_file(tmp_path, 2).write_bytes(pack_responses(responses, about))
    with pytest.raises(DataError, match=f"response {carried.uid} does not go on where it stood: is it another run's"):
        list(replay(checkpoint(mdp, 2), tmp_path))


def test_a_dump_of_another_run_is_not_taken_for_this_one_s(mdp: Path, tmp_path: Path) -> None:
    """In the first step, against the checkpoint; and in the next one, against the step before."""
    run(MDP.with_values(seed=1, steps=4), tmp_path / "other", progress=False, dump=tmp_path / "tokens")
    with pytest.raises(DataError, match=r"step-00000002.*does not go on where it stood"):
        list(replay(checkpoint(mdp, 2), tmp_path / "tokens"))
    dump_file(tmp_path / "tokens", 2).write_bytes(dump_file(mdp / "tokens", 2).read_bytes())
    steps = replay(checkpoint(mdp, 2), tmp_path / "tokens", steps=2)
    assert all(next(steps).same.values())
    with pytest.raises(DataError, match=r"step-00000003.*does not go on where it stood"):
        next(steps)


def test_groups_that_wait_replay_in_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a critic, and with responses that trained long after they were sampled, in several rounds a step."""
    config = with_algorithm(MDP, Reinforce).with_values(algorithm__window=4, steps=6)
    run(config, tmp_path / "run", progress=False, dump=tmp_path / "tokens")
    done = list(replay(checkpoint(tmp_path, 1), tmp_path / "tokens", steps=5, config=config))
    assert [d.same for d in done] == [{"policy": True}] * 5
    for step, replayed in enumerate(done, 1):
        row = without_timings(read_metrics(tmp_path / "run" / "metrics.jsonl")[step])
        again = json.loads(json.dumps(without_timings(replayed.metrics)))
        assert {name: row[name] for name in again} == again
        assert replayed.step.responses == read_responses(dump_file(tmp_path / "tokens", step))[0]
        assert all(not r.values for r in replayed.step.responses)
    assert max(d.metrics["target_version_span"] for d in done) > 0
    assert max(d.metrics["windows_max"] for d in done) > 2
    # On the command line too, once the algorithm is installed; until then its name leads nowhere.
    args = ["replay", str(tmp_path / "tokens"), "--checkpoint", str(checkpoint(tmp_path, 1)), "--steps", "2"]
    assert main(args) == 2
    assert "tests.support.reinforce:Reinforce' belongs to no installed package" in capsys.readouterr().err
    with pytest.MonkeyPatch.context() as patch:
        entry = EntryPoint("reinforce", "tests.support.reinforce:Reinforce", "tppo.algorithms")
        patch.setattr("tppo.config.stored.algorithm_entry_points", lambda: {"reinforce": entry})
        assert main(args) == 0
        assert capsys.readouterr().out.count('"same_policy": true') == 2
        assert main(["export", str(tmp_path / "run"), str(tmp_path / "table")]) == 0


def test_responses_come_back_as_they_were(mdp: Path) -> None:
    trainer = build_trainer(MDP)
    restore(trainer, checkpoint(mdp, 3))
    responses = trainer.slots.in_flight
    assert {len(r.window_starts) for r in responses} > {1}
    path = mdp / "again.safetensors"
    path.write_bytes(pack_responses(responses, {"a": [1, "é"]}))
    assert read_responses(path) == (responses, {"a": [1, "é"]})
    path.write_bytes(pack_responses([], {}))
    assert read_responses(path) == ([], {})
    responses[0].values.pop()
    with pytest.raises(ValueError, match="a step is not over"):
        pack_responses(responses, {})
    del responses[0].values[:]  # no critic valued them
    responses[0].logprobs.pop()
    with pytest.raises(ValueError, match="a step is not over"):
        pack_responses(responses, {})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_exported_transformer_computes_the_same_logits(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    assert main(["export", str(toy / "run"), str(out)]) == 0
    assert {"config.json", "model.safetensors"} <= {p.name for p in out.iterdir()}
    model: Any = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
    config = json.loads((listed(toy / "run" / FOLDER)[0][1] / "state.json").read_text())["config"]
    assert config["steps"] == 3
    trainer = _restored(toy)
    ids = torch.randint(0, trainer.policy.vocab_size, (3, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = trainer.policy.logits(trainer.policy.hidden(ids))
        assert torch.equal(model(ids).logits, ours)
    base = build_trainer(trainer.config)
    with torch.no_grad():
        assert not torch.equal(base.policy.logits(base.policy.hidden(ids)), ours)  # it did train


def _restored(folder: Path) -> Any:
    from tppo.runs.checkpoint.stored import read_checkpoint

    path = newest(folder / "run")
    trainer = build_trainer(read_checkpoint(path).config)
    restore(trainer, path)
    return trainer


def test_an_exported_table(mdp: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(checkpoint(mdp, 3)), str(tmp_path / "table")]) == 0
    exported = load_file(tmp_path / "table" / "policy.safetensors")["logits_SA"]
    assert torch.equal(exported, tensors(checkpoint(mdp, 3))["policy.logits_SA"])
    assert main(["export", str(mdp / "run"), str(tmp_path / "table")]) == 2
    assert "empty or does not exist" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nothing"), str(tmp_path / "other")]) == 2
    assert main(["export", str(mdp / "tokens"), str(tmp_path / "other")]) == 2
    assert "torn" in capsys.readouterr().err


def test_weights_of_another_model_are_refused(mdp: Path) -> None:
    from tppo.models.transformer import TransformerPolicy

    with pytest.raises(CheckpointError, match="was it made with another model"):
        load_network("policy", TransformerPolicy(tiny_lm()), checkpoint(mdp, 3))
