"""Training that waits for the end of a response, its importance ratios, and a critic that also sees open windows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from paper_repro.recipes.small import token_mdp_ppo
from tests.support.helpers import mixed_responses, response, small_token_mdp, states_equal
from tppo.algorithms import PPO, TPPO, Algorithm, Waiting, WaitingBehaviour
from tppo.algorithms.auxiliaries.critic import Critic, WindowedCriticOptions
from tppo.algorithms.base import Rollout, Term
from tppo.algorithms.parts.terms import clipped
from tppo.cli import main
from tppo.config.registry import with_algorithm
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.loop.metrics import Step
from tppo.loop.trainer import Trainer
from tppo.maths.advantages import Boundary
from tppo.maths.objectives import ppo_loss
from tppo.maths.weights import Weight, weigh
from tppo.runs.build import build_trainer
from tppo.types import Batch, Status

ALL = {"algorithm__critic__responses": "all"}
UNCAPPED = 1e9
ONE = torch.tensor([True])


def small(kind: type[Algorithm] = TPPO, **changes: Any) -> RunConfig:
    return with_algorithm(small_token_mdp(), kind).with_values(**changes)


def run(config: RunConfig, steps: int = 5) -> tuple[Trainer, list[Step]]:
    trainer = build_trainer(config)
    return trainer, [trainer.step() for _ in range(steps)]


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_with_a_window_of_the_cap_every_option_is_ppo_bit_for_bit(lam: float) -> None:
    """Nothing is unfinished then, so nothing waits and nothing is bootstrapped."""
    ppo = token_mdp_ppo().with_values(
        steps=5, rollout__slots=16, rollout__max_response_tokens=24, policy__mini_batch=8,
        algorithm__critic__mini_batch=8, algorithm__warmup_steps=1, algorithm__critic__lam=lam, seed=3,
    )  # fmt: skip
    assert type(ppo.algorithm) is PPO
    whole, _ = run(ppo)
    options: list[tuple[type[Algorithm], dict[str, str]]] = [(Waiting, {}), (TPPO, ALL), (Waiting, ALL)]
    for kind, change in options:
        same, _ = run(small(kind, algorithm__window=24, algorithm__critic__lam=lam, seed=3, **change))
        for name in ("policy", "critic"):
            assert states_equal(same.networks.models[name], whole.networks.models[name])
        cut, _ = run(small(kind, algorithm__window=5, algorithm__critic__lam=lam, seed=3, **change))
        assert not states_equal(cut.policy, whole.policy)  # and a real window is something else


@pytest.mark.parametrize("kind", [Waiting, WaitingBehaviour])
def test_a_waiting_response_trains_whole_once_and_at_its_end(kind: type[Algorithm]) -> None:
    trainer, steps = run(small(kind, algorithm__window=4, algorithm__warmup_steps=0), steps=8)
    trained: set[int] = set()
    for step in steps:
        batch, keep_N = step.batch, step.columns["train"]
        assert step.trains
        assert torch.equal(keep_N, batch.finished_S[batch.row_N])
        assert step.metrics["trained_tokens"] == int(keep_N.sum())
        ended = {uid for uid, done in zip(batch.uids_S, batch.finished_S.tolist(), strict=True) if done}
        assert not ended & trained
        trained |= ended
    assert len(trained) > 16
    assert trained | {r.uid for r in [*trainer.slots.in_flight, *trainer.slots.queue]} == set(
        range(trainer.slots.next_uid)
    )
    # Some waited for three updates and more.
    assert max(step.metrics["target_version_span"] or 0 for step in steps) >= 3


def test_advantages_of_a_finished_response_are_gae_over_all_its_windows() -> None:
    # V = [.2, .4 | .5, .7], outcome 1, lambda .95: the worked GAE of the specification, whatever the window.
    batch = Batch.of([
        response(0, [1, 2, 3, 4], windows=(0, 2)), response(1, [5, 6, 7], status=Status.UNFINISHED)
    ])  # fmt: skip
    values = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.3, 0.3, 0.9], dtype=torch.float64)
    parts = Waiting(window=2, lam=0.95, lam_alpha=None, whiten=False, clamp=None).parts(Rollout(max_response_tokens=9))
    assert parts.advantage is not None
    keep = parts.tokens(batch)
    got = parts.advantage.estimate(batch, {"rewards": batch.rewards_N, "values": values}, keep)
    assert got["advantages"].tolist() == pytest.approx([0.7327125, 0.56075, 0.485, 0.3, 0, 0, 0], abs=1e-12)
    assert keep.tolist() == [True] * 4 + [False] * 3


def critic_of(algorithm: Algorithm) -> Critic:
    [critic] = algorithm.parts(Rollout()).auxiliaries
    assert isinstance(critic, Critic)
    return critic


def tokens_of(critic: Critic, batch: Batch) -> list[bool]:
    [term] = critic.terms()
    assert term.tokens is not None
    return term.tokens(batch).tolist()


# A + V of the worked EGAE: [.4755, .29, .2, 0] with V(s_l) = V(s_{l-1}) = .7, [.5612375, .38025, .295, .1] with .8.
@pytest.mark.parametrize(
    ("boundary", "expected"),
    [("repeat", [0.6755, 0.69, 0.7, 0.7]), ("critic", [0.7612375, 0.78025, 0.795, 0.8])],
)
def test_worked_targets_of_a_cut_window(boundary: Boundary, expected: list[float]) -> None:
    batch = Batch.of([
        response(0, [9, 1, 2, 3, 4], windows=(0, 1), status=Status.UNFINISHED), response(1, [5], reward=1.0)
    ])  # fmt: skip
    values = torch.tensor([0.9, 0.2, 0.4, 0.5, 0.7, 0.3], dtype=torch.float64)
    columns = {
        "rewards": batch.rewards_N, "values": values, "cut_values": torch.tensor([0.8, 0.0], dtype=torch.float64)
    }  # fmt: skip
    critic = critic_of(TPPO(boundary=boundary, critic=WindowedCriticOptions(responses="all", lam=0.95)))
    got = critic.targets(batch, columns)
    assert got[1:5].tolist() == pytest.approx(expected, abs=1e-12)
    assert float(got[5]) == 1.0  # r - V + V of the finished one
    assert tokens_of(critic, batch) == [False, True, True, True, True, True]
    assert tokens_of(critic_of(TPPO()), batch) == [False] * 5 + [True]
    behind = 0.7 if boundary == "repeat" else 0.8
    direct = reference.bootstrapped_returns([0, 0, 0, 0], [0.2, 0.4, 0.5, 0.7], behind, gamma=1.0, lam=0.95)
    assert direct.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_targets_of_cut_windows_are_bootstrapped_returns(boundary: Boundary, gamma: float, lam: float) -> None:
    responses = mixed_responses(seed=5, count=9)
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(1)
    values = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64)
    cut = torch.randn(batch.num_responses, generator=g, dtype=torch.float64)
    columns = {"rewards": batch.rewards_N, "values": values, "cut_values": cut}
    options = WindowedCriticOptions(lam=lam)
    on_all = TPPO(boundary=boundary, gamma=gamma, critic=replace(options, responses="all"))
    got = critic_of(on_all).targets(batch, columns)
    finished_only = critic_of(replace(on_all, critic=options)).targets(batch, columns)
    checked = 0
    for i, r in enumerate(responses):
        first, end = int(batch.offsets[i]), int(batch.offsets[i + 1])
        if r.status.finished:
            assert torch.equal(got[first:end], finished_only[first:end])
            continue
        window = values[first + r.start : end].tolist()
        behind = reference.cut_value(window, False, boundary=boundary, cut=float(cut[i]))
        wanted = reference.bootstrapped_returns([0.0] * len(window), window, behind, gamma=gamma, lam=lam)
        np.testing.assert_allclose(got[first + r.start : end], wanted, rtol=1e-12, atol=1e-12)
        checked += 1
    assert checked > 1


def test_a_waiting_critic_on_all_repeats_the_value_at_the_cut() -> None:
    """Its policy has no boundary, so there is no option; the critic takes what the paper assumes."""
    assert critic_of(Waiting(critic=WindowedCriticOptions(responses="all"))).boundary == "repeat"
    assert critic_of(TPPO(boundary="critic")).boundary == "critic"


def test_a_critic_on_all_moves_where_nothing_has_finished() -> None:
    config = small(
        algorithm__window=4, task__base_stop_prob=0.0, task__base_skill=0.0, algorithm__critic__lam=0.9
    )  # fmt: skip
    for change, moved in (({}, False), (ALL, True)):
        trainer = build_trainer(config.with_values(**change))
        critic = trainer.networks.models["critic"]
        with torch.no_grad():
            next(critic.parameters()).copy_(torch.linspace(0, 1, 104))
        before = {name: x.clone() for name, x in critic.state_dict().items()}
        step = trainer.step()
        assert step.metrics["finished"] == 0
        assert any(not torch.equal(before[name], x) for name, x in critic.state_dict().items()) == moved
        assert (step.metrics["critic_updates"] > 0) == moved


def test_decoupled_ppo_golden() -> None:
    # u = .3 / .25 = 1.2, at the edge of the range; .25 / .2 = 1.25; 1.25 * 1.2 = 1.5.
    log = [torch.tensor([math.log(p)], dtype=torch.float64) for p in (0.3, 0.25, 0.2)]
    terms = ppo_loss(log[0], log[1], torch.ones(1, dtype=torch.float64), clip_low=0.2, clip_high=0.2)
    weight = weigh(log[1] - log[2], ONE, torch.tensor([0, 1]), Weight(0, UNCAPPED))
    assert float(terms.ratio_N) == pytest.approx(1.2, abs=1e-12)
    assert float(weight) == pytest.approx(1.25, abs=1e-12)
    assert float(weight * terms.loss_N) == pytest.approx(-1.5, abs=1e-12)


logprob = st.floats(-6, -0.01)


@settings(derandomize=True, deadline=None, max_examples=100)
@given(logprob, logprob, logprob, st.floats(-3, 3))
def test_decoupled_ppo_is_the_clipped_loss_under_an_uncapped_weight(
    now: float, proximal: float, behaviour: float, advantage: float
) -> None:
    """So `importance_cap` suffices: no option of its own."""
    a, b, c, d = (torch.tensor([x], dtype=torch.float64) for x in (now, proximal, behaviour, advantage))
    weight = weigh(b - c, ONE, torch.tensor([0, 1]), Weight(0, UNCAPPED))
    loss = ppo_loss(a, b, d, clip_low=0.2, clip_high=0.28).loss_N * weight
    expected = reference.decoupled_ppo(now, proximal, behaviour, advantage, clip_low=0.2, clip_high=0.28)
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-12)


@dataclass(frozen=True)
class Fresh(TPPO):
    """T-PPO around the policy that sampled."""

    def terms(self) -> tuple[Term, ...]:
        return (clipped(clip_low=self.clip_low, clip_high=self.clip_high, centre="behaviour"),)


@pytest.mark.parametrize(("kind", "far"), [(TPPO, False), (Fresh, False), (Waiting, False), (WaitingBehaviour, True)])
def test_the_ratio_to_the_behaviour_policy_starts_away_from_one(kind: type[Algorithm], far: bool) -> None:
    """With stale tokens only; with fresh ones both centres agree to round-off."""
    config = small(kind, algorithm__window=4, algorithm__warmup_steps=0, policy__mini_batch=64, policy__lr=0.2)
    _, steps = run(config, steps=6)
    off = max(abs(s.metrics["ratio_max"] - 1) for s in steps if "ratio_max" in s.metrics)
    assert (off > 0.01) == far


@pytest.mark.parametrize(
    ("kind", "changes", "field", "says"),
    [
        (
            WaitingBehaviour,
            {"algorithm__importance_cap": 2.0},
            "algorithm.importance_cap",
            "in the clipped surrogate already",
        ),
        (Waiting, {"algorithm__critic__responses": "some"}, "algorithm.critic.responses", "'finished', 'all'"),
        (Waiting, {"algorithm__window": 25}, "rollout.max_response_tokens", "at least algorithm.window (25)"),
        # What the algorithm has no number for cannot be said.
        (Waiting, {"algorithm__ignore_last": 0}, "ignore_last", "unknown"),
        (Waiting, {"algorithm__boundary": "critic"}, "boundary", "unknown"),
        (Waiting, {"algorithm__train_on": "later"}, "train_on", "unknown"),
        (PPO, {"algorithm__window": 4}, "window", "unknown"),
        (PPO, {"algorithm__critic__responses": "all"}, "responses", "unknown"),
        (PPO, {"algorithm__critic__old_values": "stored"}, "old_values", "unknown"),
    ],
)
def test_impossible_combinations(kind: type[Algorithm], changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(small(kind, **changes))
    assert caught.value.field == field
    assert says in str(caught.value)
    validate(small(Waiting, **ALL, algorithm__importance_cap=2.0))
    validate(small(TPPO, **ALL, algorithm__boundary="critic"))


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("waiting", "ignore-last", "2"), ("waiting", "boundary", "critic"), ("ppo", "window", "8"),
        ("ppo", "critic.old-values", "stored"), ("value-pretraining", "clip-low", "0.1"),
    ],
)  # fmt: skip
def test_the_command_line_has_no_option_that_would_do_nothing(
    name: str, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["show", "token-mdp", "--algorithm", name]
    assert main(argv) == 0
    shown = json.loads(capsys.readouterr().out)["algorithm"]
    for key in option.replace("-", "_").split("."):
        shown = shown.get(key, "no such option")
    assert shown == "no such option"
    assert main([*argv, f"--algorithm.{option}", value]) == 2
    said = capsys.readouterr().err
    assert f"algorithm.{option} = '{value}': expected one of the fields of" in said
