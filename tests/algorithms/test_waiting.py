"""Training that waits for the end of a response, its importance ratios, and a critic that also sees open windows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tppo.algorithms.estimate import critic_tokens, estimate_advantages, value_targets

import reference
from paper_repro.recipes.small import token_mdp_ppo
from tests.support.helpers import mixed_responses, response, small_token_mdp, states_equal
from tppo.algorithms.base import Advantage, Algorithm, TokenFilter, ValueTarget
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.fit.update import update_critic, update_policy
from tppo.loop.trainer import Trainer
from tppo.maths.objectives import ppo_loss, truncated_importance_weights
from tppo.runs.build import build_trainer
from tppo.types import Batch, Status

WAIT = {"algorithm__filter__train_on": "finished", "algorithm__filter__ignore_last": 0}
ALL = {"algorithm__value_target__responses": "all"}
UNCAPPED = 1e9


def run(config: RunConfig, steps: int = 5) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = build_trainer(config)
    return trainer, [trainer.step() for _ in range(steps)]


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_with_a_window_of_the_cap_every_option_is_ppo_bit_for_bit(lam: float) -> None:
    """Nothing is unfinished then, so nothing waits and nothing is bootstrapped."""
    ppo = token_mdp_ppo().with_values(
        steps=5, rollout__slots=16, rollout__max_response_tokens=24, policy__mini_batch=8, critic__mini_batch=8,
        algorithm__value_target__warmup_steps=1, algorithm__value_target__lam=lam, seed=3,
    )  # fmt: skip
    whole, _ = run(ppo)
    for change in (WAIT, ALL, WAIT | ALL):
        same, _ = run(small_token_mdp(
            algorithm__schedule__window=24, algorithm__value_target__lam=lam, seed=3, **change
        ))  # fmt: skip
        assert states_equal(same.policy_module, whole.policy_module)
        assert states_equal(same.critic, whole.critic)  # type: ignore[arg-type]
        cut, _ = run(small_token_mdp(algorithm__schedule__window=5, algorithm__value_target__lam=lam, seed=3, **change))
        assert not states_equal(cut.policy_module, whole.policy_module)  # and a real window is something else


def test_a_waiting_response_trains_whole_once_and_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Batch, torch.Tensor]] = []

    def policy(model: Any, optimizer: Any, batch: Batch, estimate: Any, **kwargs: Any) -> dict[str, float]:
        calls.append((batch, estimate.keep_N))
        return update_policy(model, optimizer, batch, estimate, **kwargs)

    monkeypatch.setattr("tppo.loop.trainer.update_policy", policy)
    config = small_token_mdp(algorithm__schedule__window=4, algorithm__value_target__warmup_steps=0, **WAIT)
    _, metrics = run(config, steps=8)
    trained: set[int] = set()
    for batch, keep_N in calls:
        assert torch.equal(keep_N, batch.finished_S[batch.row_N])
        ended = {uid for uid, done in zip(batch.uids_S, batch.finished_S.tolist(), strict=True) if done}
        assert not ended & trained
        trained |= ended
    assert len(trained) > 16
    assert max(m["target_version_span"] or 0 for m in metrics) >= 3  # some waited for three updates and more


def test_advantages_of_a_finished_response_are_gae_over_all_its_windows() -> None:
    # V = [.2, .4 | .5, .7], outcome 1, lambda .95: the worked GAE of the specification, whatever the window.
    batch = Batch.of([
        response(0, [1, 2, 3, 4], windows=(0, 2)), response(1, [5, 6, 7], status=Status.UNFINISHED)
    ])  # fmt: skip
    values = torch.tensor([0.2, 0.4, 0.5, 0.7, 0.3, 0.3, 0.9], dtype=torch.float64)
    algorithm = Algorithm(
        advantage=Advantage(lam=0.95, whiten=False, clamp=None), filter=TokenFilter(train_on="finished", ignore_last=0)
    )
    got = estimate_advantages(algorithm, batch, values, torch.zeros(2), window=2, max_length=9)
    assert got.advantages_N.tolist() == pytest.approx([0.7327125, 0.56075, 0.485, 0.3, 0, 0, 0], abs=1e-12)
    assert got.keep_N.tolist() == [True] * 4 + [False] * 3


# A + V of the worked EGAE: [.4755, .29, .2, 0] with V(s_l) = V(s_{l-1}) = .7, [.5612375, .38025, .295, .1] with .8.
@pytest.mark.parametrize(
    ("boundary", "expected"),
    [("repeat", [0.6755, 0.69, 0.7, 0.7]), ("critic", [0.7612375, 0.78025, 0.795, 0.8])],
)
def test_worked_targets_of_a_cut_window(boundary: Any, expected: list[float]) -> None:
    batch = Batch.of([
        response(0, [9, 1, 2, 3, 4], windows=(0, 1), status=Status.UNFINISHED), response(1, [5], reward=1.0)
    ])  # fmt: skip
    values = torch.tensor([0.9, 0.2, 0.4, 0.5, 0.7, 0.3], dtype=torch.float64)
    algorithm = Algorithm(advantage=Advantage(boundary=boundary), value_target=ValueTarget(responses="all", lam=0.95))
    got = value_targets(algorithm, batch, values, torch.tensor([0.8, 0.0], dtype=torch.float64))
    assert got[1:5].tolist() == pytest.approx(expected, abs=1e-12)
    assert float(got[5]) == 1.0  # r - V + V of the finished one
    assert critic_tokens(algorithm.value_target, batch).tolist() == [False, True, True, True, True, True]
    assert critic_tokens(ValueTarget(), batch).tolist() == [False] * 5 + [True]
    behind = 0.7 if boundary == "repeat" else 0.8
    direct = reference.bootstrapped_returns([0, 0, 0, 0], [0.2, 0.4, 0.5, 0.7], behind, gamma=1.0, lam=0.95)
    assert direct.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("boundary", ["repeat", "critic", "terminal"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 1.0), (0.9, 0.7), (1.0, 0.0)])
def test_targets_of_cut_windows_are_bootstrapped_returns(boundary: Any, gamma: float, lam: float) -> None:
    responses = mixed_responses(seed=5, count=9)
    batch = Batch.of(responses)
    g = torch.Generator().manual_seed(1)
    values = torch.randn(len(batch.tokens_N), generator=g, dtype=torch.float64)
    cut = torch.randn(batch.num_responses, generator=g, dtype=torch.float64)
    algorithm = Algorithm(
        advantage=Advantage(boundary=boundary, gamma=gamma), value_target=ValueTarget(responses="all", lam=lam)
    )
    got = value_targets(algorithm, batch, values, cut)
    finished_only = value_targets(replace(algorithm, value_target=ValueTarget(lam=lam)), batch, values)
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


def test_a_critic_on_all_moves_where_nothing_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, float]] = []

    def critic(*args: Any, **kwargs: Any) -> dict[str, float]:
        seen.append(update_critic(*args, **kwargs))
        return seen[-1]

    monkeypatch.setattr("tppo.loop.trainer.update_critic", critic)
    config = small_token_mdp(algorithm__schedule__window=4, task__base_stop_prob=0.0, task__base_skill=0.0)
    for change, moved in (({}, False), (ALL, True)):
        trainer = build_trainer(config.with_values(algorithm__value_target__lam=0.9, **change))
        with torch.no_grad():
            next(trainer.critic.parameters()).copy_(torch.linspace(0, 1, 104))  # type: ignore[attr-defined]
        before = build_trainer(config)
        with torch.no_grad():
            next(before.critic.parameters()).copy_(torch.linspace(0, 1, 104))  # type: ignore[attr-defined]
        assert trainer.step()["finished"] == 0
        assert states_equal(trainer.critic, before.critic) != moved  # type: ignore[arg-type]
        assert (seen[-1]["critic_updates"] > 0) == moved


def test_decoupled_ppo_golden() -> None:
    # u = .3 / .25 = 1.2, at the edge of the range; .25 / .2 = 1.25; 1.25 * 1.2 = 1.5.
    log = [torch.tensor([math.log(p)], dtype=torch.float64) for p in (0.3, 0.25, 0.2)]
    terms = ppo_loss(log[0], log[1], torch.ones(1, dtype=torch.float64), clip_low=0.2, clip_high=0.2)
    weight = truncated_importance_weights(log[1], log[2], cap=UNCAPPED)
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
    loss = ppo_loss(a, b, d, clip_low=0.2, clip_high=0.28).loss_N * truncated_importance_weights(b, c, cap=UNCAPPED)
    expected = reference.decoupled_ppo(now, proximal, behaviour, advantage, clip_low=0.2, clip_high=0.28)
    assert float(loss) == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_the_ratio_to_the_behaviour_policy_starts_away_from_one() -> None:
    """With stale tokens only; with fresh ones both centres agree to round-off."""
    config = small_token_mdp(
        algorithm__schedule__window=4, algorithm__value_target__warmup_steps=0, policy__mini_batch=64, policy__lr=0.2
    )
    for change, stale in (({}, False), (WAIT, True)):
        for centre in ("recompute", "behaviour"):
            _, metrics = run(config.with_values(algorithm__policy_loss__old_logprobs=centre, **change), steps=6)
            off = max(abs(m["ratio_max"] - 1) for m in metrics if "ratio_max" in m)
            assert (off > 0.01) == (stale and centre == "behaviour")


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"algorithm__filter__train_on": "finished"}, "algorithm.filter.ignore_last", "no cut to drop tokens before"),
        (WAIT | {"algorithm__advantage__boundary": "critic"}, "algorithm.advantage.boundary", "it has no effect"),
        (
            {"algorithm__policy_loss__old_logprobs": "behaviour", "algorithm__policy_loss__importance_cap": 2.0},
            "algorithm.policy_loss.importance_cap",
            "in the clipped surrogate already",
        ),
        ({"algorithm__filter__train_on": "later"}, "algorithm.filter.train_on", "'window', 'finished'"),
        ({"algorithm__value_target__responses": "some"}, "algorithm.value_target.responses", "'finished', 'all'"),
    ],
)
def test_impossible_combinations(changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(small_token_mdp(**changes))
    assert caught.value.field == field
    assert says in str(caught.value)
    validate(small_token_mdp(**WAIT, **ALL, algorithm__advantage__boundary="critic"))  # the critic bootstraps there
