"""Value pretraining: when it ends, what it leaves, and that the next run begins with it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tppo.runs.run
from paper_repro.recipes.small import token_mdp_ppo
from tppo.algorithms import ValuePretraining
from tppo.config.registry import carried, with_algorithm
from tppo.config.run import RunConfig
from tppo.errors import ConfigError
from tppo.loop.metrics import Step
from tppo.loop.trainer import Trainer
from tppo.runs.beginnings import begin, find_beginnings
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import load_network
from tppo.runs.checkpoint.store import newest
from tppo.runs.run import run


def small(**changes: Any) -> RunConfig:
    """PPO on a small token MDP."""
    config = token_mdp_ppo().with_values(
        steps=30, rollout__slots=32, rollout__max_response_tokens=24, evaluation__every=0, evaluation__problems=8,
        policy__mini_batch=8, algorithm__critic__mini_batch=8, checkpoint__every=5, checkpoint__keep_best=0,
    )  # fmt: skip
    return config.with_values(**changes)


def pretraining(stop: ValuePretraining | None = None, **changes: Any) -> RunConfig:
    """The critic alone, on whole responses of the same."""
    config = small()
    algorithm = carried(config.algorithm, stop or ValuePretraining())
    return dataclasses.replace(config, algorithm=algorithm).with_values(**changes)


@pytest.mark.parametrize(
    ("series", "stop", "at"),
    [
        # The mean of two reaches 0.5 at the fourth value, not at the single high one before.
        ([0.1, 0.8, 0.1, 0.9, 0.9], ValuePretraining(explained_variance=0.5, over=2), 4),
        ([0.1, 0.8, 0.2, 0.7, 0.9], ValuePretraining(explained_variance=0.45, over=2), 2),
        # Best at step 2; 0.505 is a rise of less than 0.01, so steps 3 to 5 are three without a gain.
        ([0.1, 0.5, 0.505, 0.4, 0.5, 0.9], ValuePretraining(patience=3, over=1), 5),
        # The same series with a smaller least gain: step 3 is the best, and the last is a rise.
        ([0.1, 0.5, 0.505, 0.4, 0.5, 0.9], ValuePretraining(patience=3, over=1, least_gain=0.001), None),
        # Averages of three: 0, 0.1, 0.1, 0.0: the first needs three values, and two later ones bring no gain.
        ([0.0, 0.0, 0.0, 0.3, 0.0, -0.3], ValuePretraining(patience=2, over=3), 6),
        ([-3.0, -2.0, -1.0, -0.5], ValuePretraining(patience=1, over=1), None),
        ([0.9] * 9, ValuePretraining(), None),
        ([0.9, 0.9], ValuePretraining(explained_variance=0.5, patience=1, over=3), None),
    ],
)
def test_the_criterion_on_series_made_by_hand(series: list[float], stop: ValuePretraining, at: int | None) -> None:
    ends = [n for n in range(1, len(series) + 1) if stop.why_stop(series[:n])]
    assert (ends[0] if ends else None) == at


def test_the_threshold_is_named_before_patience() -> None:
    stop = ValuePretraining(explained_variance=0.2, patience=1, over=1)
    assert stop.why_stop([0.3]) == "explained variance 0.300 reached 0.2"
    assert stop.why_stop([0.1, 0.1]) == "explained variance has not risen above 0.100 for 1 steps"


def test_steps_without_an_explained_variance_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal returns everywhere have none; the rule sees the others alone."""
    given = iter([None, 0.2, None, None, 0.1, 0.3])
    step = Trainer.step

    def told(self: Trainer) -> Step:
        done = step(self)
        done.metrics["explained_variance_finished"] = next(given)
        return done

    monkeypatch.setattr(Trainer, "step", told)
    stop = ValuePretraining(patience=1, over=1)
    summary = run(pretraining(stop), tmp_path / "r", progress=False)
    assert summary["steps"] == 5
    assert summary["stop"]["ended"] == "explained variance has not risen above 0.200 for 1 steps"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of value pretraining that reached its threshold."""
    out = tmp_path_factory.mktemp("value") / "run"
    run(pretraining(ValuePretraining(explained_variance=0.1, over=3)), out, progress=False)
    return out


def test_a_run_ends_when_the_critic_is_good_enough(pretrained: Path) -> None:
    summary = json.loads((pretrained / "summary.json").read_text())
    rows = [json.loads(line) for line in (pretrained / "metrics.jsonl").read_text().splitlines()]
    series = [row["explained_variance_finished"] for row in rows]
    assert 3 <= summary["steps"] == len(rows) < 30
    assert summary["stop"]["ended"].startswith("explained variance 0.")
    assert summary["stop"]["ended"].endswith(" reached 0.1")
    assert summary["stop"]["explained_variance_finished"] == series[-1]
    assert all("policy_loss" not in row and row["trained_tokens"] == 0 for row in rows)
    means = [sum(series[i : i + 3]) / 3 for i in range(len(series) - 2)]
    assert means[-1] >= 0.1 > max(means[:-1], default=-9.0)
    assert newest(pretrained).name == f"step-{len(rows):08d}"  # the last step is saved, whatever checkpoint.every


def test_the_policy_stays_as_it_was(pretrained: Path) -> None:
    fresh, trained = build_trainer(pretraining()), build_trainer(pretraining())
    trained.workload.load(trained.policy, pretrained / "policy")
    assert "policy" not in trained.networks.optimizers
    assert torch.equal(fresh.policy.logits_SA, trained.policy.logits_SA)  # type: ignore[arg-type]


def test_patience_and_the_end_of_the_steps_are_told_apart(tmp_path: Path) -> None:
    stop = ValuePretraining(patience=2, over=1, least_gain=5.0)  # no gain is large enough
    summary = run(pretraining(stop), tmp_path / "a", progress=False)
    assert "has not risen above" in summary["stop"]["ended"]
    assert summary["steps"] == 3
    summary = run(pretraining(steps=2), tmp_path / "b", progress=False)
    assert summary["stop"]["ended"] == "all steps were done"


def test_the_criterion_goes_on_after_an_interruption(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the middle and resumed, the run ends at the same step for the same reason, with the same critic."""
    config = pretraining(ValuePretraining(explained_variance=0.1, over=3), checkpoint__every=1)
    step, calls = Trainer.step, 0

    def dies(self: Trainer) -> Step:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError("killed")
        return step(self)

    monkeypatch.setattr(Trainer, "step", dies)
    with pytest.raises(RuntimeError, match="killed"):
        run(config, tmp_path / "r", progress=False)
    monkeypatch.setattr(Trainer, "step", step)
    again = run(config, tmp_path / "r", progress=False, resume="auto")
    before = json.loads((pretrained / "summary.json").read_text())
    assert again["steps"] == before["steps"]
    assert again["stop"] == before["stop"]
    # And once it has ended, a resumed run does not go on.
    assert run(config, tmp_path / "r", progress=False, resume="auto")["steps"] == before["steps"]


@pytest.mark.parametrize("part", ["", "checkpoints"])
def test_the_next_run_begins_with_the_critic(pretrained: Path, tmp_path: Path, part: str) -> None:
    where = newest(pretrained) if part else pretrained
    config = small(
        steps=2, algorithm__warmup_steps=0, algorithm__critic__start=str(where), checkpoint__keep=9,
        checkpoint__every=1,
    )  # fmt: skip
    run(config, tmp_path / "r", progress=False)
    stored, begun = (build_trainer(config).networks.models["critic"] for _ in range(2))
    load_network("critic", stored, newest(pretrained))
    load_network("critic", begun, tmp_path / "r" / "checkpoints" / "step-00000000")
    one, two = stored.state_dict(), begun.state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(value.abs().sum() > 0 for value in one.values() if value.is_floating_point())
    # Resumed, it goes on from its own critic, even where the other run is gone.
    config = config.with_values(steps=3, algorithm__critic__start=str(tmp_path / "gone"))
    allowed = ["steps", "algorithm.critic.start"]
    assert run(config, tmp_path / "r", progress=False, resume="auto", allow_change=allowed)["steps"] == 3


def test_a_critic_that_cannot_be_used_is_refused(
    pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(tppo.runs.run, "build_trainer", lambda *_, **__: pytest.fail("a model was built"))
        for where, says in (("nowhere", "the folder of a run"), ("empty", "a folder with a sound checkpoint")):
            with pytest.raises(ConfigError, match=says) as caught:
                run(small(algorithm__critic__start=str(tmp_path / where)), tmp_path / "r", progress=False)
            assert caught.value.field == "algorithm.critic.start"
    trainer = build_trainer(small(task__size=3))
    critic = trainer.networks.models["critic"]
    before = {name: value.clone() for name, value in critic.state_dict().items()}
    with pytest.raises(ConfigError, match=r"a critic of this run's model.* the model needs"):
        begin(trainer, {"critic": newest(pretrained)})
    assert all(torch.equal(value, before[name]) for name, value in critic.state_dict().items())
    assert not (tmp_path / "r").exists()
    assert find_beginnings(small()) == {}


def test_it_is_an_algorithm_of_its_own() -> None:
    """With the critic's numbers of the recipe, no numbers of a policy, and no optimiser for it."""
    config = with_algorithm(token_mdp_ppo(), ValuePretraining)
    assert isinstance(config.algorithm, ValuePretraining)
    assert config.algorithm.critic.lr == 0.05
    with pytest.raises(ConfigError, match="clip_low"):
        config.with_values(algorithm__clip_low=0.1)
