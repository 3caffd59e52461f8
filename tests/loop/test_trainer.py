"""The loop: identities, bookkeeping, determinism, faults."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from paper_repro.recipes.small import RECIPES
from sim import exact
from tests.support.helpers import small_token_mdp, states_equal
from tppo.config.run import RunConfig
from tppo.errors import ConfigError, DataError, NonFiniteError, RewardError
from tppo.fit.update import update_critic, update_policy
from tppo.grading.grader import Grader
from tppo.loop.trainer import Trainer
from tppo.runs.build import build_trainer
from tppo.types import Batch, Prompt


def run(config: RunConfig, steps: int = 5) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = build_trainer(config)
    return trainer, [trainer.step() for _ in range(steps)]


def timeless(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in m.items() if "second" not in k} for m in metrics]


def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What each update was given: (batch, mask or None)."""
    calls: dict[str, list[Any]] = {"policy": [], "critic": []}

    def policy(model: Any, optimizer: Any, batch: Batch, estimate: Any, **kwargs: Any) -> dict[str, float]:
        calls["policy"].append((batch, estimate.keep_N))
        return update_policy(model, optimizer, batch, estimate, **kwargs)

    def critic(model: Any, optimizer: Any, batch: Batch, **kwargs: Any) -> dict[str, float]:
        calls["critic"].append((batch, None))
        return update_critic(model, optimizer, batch, **kwargs)

    monkeypatch.setattr("tppo.loop.trainer.update_policy", policy)
    monkeypatch.setattr("tppo.loop.trainer.update_critic", critic)
    return calls


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    one, metrics_one = run(small_token_mdp())
    two, metrics_two = run(small_token_mdp())
    other, _ = run(small_token_mdp(seed=1))
    assert timeless(metrics_one) == timeless(metrics_two)
    assert states_equal(one.policy_module, two.policy_module)
    assert not states_equal(one.policy_module, other.policy_module)


def test_every_token_trains_once_and_every_finished_token_fits_the_critic_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = recorded(monkeypatch)
    ignore = 2
    trainer, _ = run(small_token_mdp(algorithm__value_target__warmup_steps=0, algorithm__schedule__window=5), steps=12)
    trained: Counter[tuple[int, int]] = Counter()
    generated: Counter[tuple[int, int]] = Counter()
    dropped = set()
    for batch, keep in calls["policy"]:
        assert batch.num_responses == 16  # the slots are constant
        position = torch.arange(len(keep)) - batch.offsets[batch.row_N]
        for n, (row, t) in enumerate(zip(batch.row_N.tolist(), position.tolist(), strict=True)):
            key = (batch.uids_S[row], t)
            generated[key] += bool(batch.window_N[n])
            trained[key] += bool(keep[n])
            if batch.window_N[n] and not keep[n]:
                assert not batch.finished_S[row]
                assert t >= int(batch.lengths_S[row]) - ignore
                dropped.add(key)
    assert set(generated.values()) == {1}
    assert dropped  # the filter was exercised
    assert all(count == (key not in dropped) for key, count in trained.items())
    fitted: Counter[tuple[int, int]] = Counter()
    for batch, _ in calls["critic"]:
        for row in batch.finished_S.nonzero().squeeze(-1).tolist():
            fitted.update((batch.uids_S[row], t) for t in range(int(batch.lengths_S[row])))
    open_now = {r.uid for r in trainer.window.in_flight}
    assert set(fitted.values()) == {1}
    assert set(fitted) == {key for key in generated if key[0] not in open_now}
    assert any(math.ceil(t / 5) > 1 for _, t in fitted)  # some responses took several windows


def test_context_of_a_carried_response_is_its_own_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence is prompt plus all tokens so far, with the versions of the policies that sampled them."""
    calls = recorded(monkeypatch)
    run(small_token_mdp(algorithm__value_target__warmup_steps=0, algorithm__schedule__window=5), steps=8)
    texts: dict[int, list[int]] = {}
    for step, (batch, _) in enumerate(calls["policy"]):
        for row, uid in enumerate(batch.uids_S):
            ids = batch.sequences[row].tolist()
            before = texts.get(uid, ids[: int(batch.prompt_lengths_S[row])])
            assert ids[: len(before)] == before
            versions = batch.versions_N[batch.offsets[row] : batch.offsets[row + 1]]
            assert (versions.diff() >= 0).all()
            assert set(versions[batch.window_N[batch.offsets[row] : batch.offsets[row + 1]]].tolist()) == {step}
            texts[uid] = ids


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if f"{n}-ppo" in RECIPES))
def test_window_of_the_cap_is_ppo_bit_for_bit(name: str) -> None:
    """EGAE, the filter and the schedule of T-PPO with window = cap, against plain GAE over whole responses."""
    small = {
        "steps": 5, "rollout__slots": 16, "rollout__group_size": 4, "policy__mini_batch": 8, "critic__mini_batch": 8,
        "algorithm__value_target__warmup_steps": 1,
    }  # fmt: skip
    tppo = RECIPES[name]().with_values(**small, **SMALL_TASK.get(name, {}))
    tppo = tppo.with_values(algorithm__schedule__window=tppo.rollout.max_response_tokens)
    ppo = RECIPES[f"{name}-ppo"]().with_values(**small, **SMALL_TASK.get(name, {}))
    assert (tppo.algorithm.advantage.estimator, ppo.algorithm.advantage.estimator) == ("egae", "gae")
    assert tppo.algorithm.filter.ignore_last > ppo.algorithm.filter.ignore_last == 0
    one, metrics_one = run(tppo)
    two, metrics_two = run(ppo)
    start = build_trainer(ppo)
    assert not states_equal(two.policy_module, start.policy_module)
    assert not states_equal(two.critic, start.critic)  # type: ignore[arg-type]
    assert states_equal(one.policy_module, two.policy_module)
    assert states_equal(one.critic, two.critic)  # type: ignore[arg-type]
    assert timeless(metrics_one) == timeless(metrics_two)
    truncated, _ = run(tppo.with_values(algorithm__schedule__window=tppo.algorithm.filter.ignore_last + 3))
    assert not states_equal(truncated.policy_module, two.policy_module)  # and a real window is something else


SMALL_TASK: dict[str, dict[str, Any]] = {
    "token-mdp": {"rollout__max_response_tokens": 32},
    "toy-language": {"rollout__max_response_tokens": 64},
}


def test_warm_up_trains_the_critic_only() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__value_target__warmup_steps=3))
    start = build_trainer(small_token_mdp())
    for _ in range(3):
        assert "policy_loss" not in trainer.step()
    assert trainer.version == 0
    assert states_equal(trainer.policy_module, start.policy_module)
    assert not states_equal(trainer.critic, start.critic)  # type: ignore[arg-type]
    assert "policy_loss" in trainer.step()
    assert trainer.version == 1


def test_metrics_are_complete_and_consistent() -> None:
    config = small_token_mdp(algorithm__schedule__window=6, rollout__slots=64, policy__mini_batch=64)
    _, metrics = run(config, steps=6)
    for m in metrics:
        assert m["finished"] + m["unfinished"] == 64
        assert m["finished"] == m["ended_by_eos"] + m["ended_by_length"] + m["ended_by_empty"]
        trained = 0 if m["step"] < 1 else m["new_tokens"] - m["dropped_tokens"]  # the first step is warm-up
        assert m["trained_tokens"] == trained
        assert m["engine_gap_max"] is None if m["step"] < 1 else m["engine_gap_max"] < 1e-5
        for phase in ("generate", "values", "update_critic"):
            assert m[f"tokens_per_second_{phase}"] > 0
    last = metrics[-1]
    wanted = {
        "reward", "solve_rate", "length_mean", "length_median", "length_p99", "length_max", "clip_fraction_high",
        "clip_fraction_low", "dual_clip_fraction", "ratio_mean", "ratio_max", "policy_kl", "entropy", "critic_loss",
        "explained_variance_finished", "explained_variance_unfinished", "policy_grad_norm", "critic_grad_norm",
        "tokens_per_second_update_policy", "target_version_span", "cut_gap", "lambda_mean", "lm_loss",
    }  # fmt: skip
    assert {name for name in wanted if last.get(name) is None} == set()
    assert last["ratio_mean"] == pytest.approx(1.0, abs=1e-5)  # one mini-batch: on-policy exactly
    assert last["policy_kl"] == pytest.approx(0.0, abs=1e-8)
    assert last["target_version_span"] >= 1


def test_returns_agree_with_the_exact_return() -> None:
    """The whole path (prompts, engine, status, grading) samples J: z-test against dynamic programming."""
    config = small_token_mdp(evaluation__problems=4096, rollout__max_response_tokens=40)
    trainer = build_trainer(config)
    result = trainer.evaluate()
    j = trainer.workload.report(trainer.policy)["exact_return"]
    assert 0.05 < j < 0.95
    # Rewards are 0 or 1, so the standard error under the exact J is known. Two-sided, false alarm 1e-6.
    assert abs(result.reward - j) < 4.9 * math.sqrt(j * (1 - j) / 4096)


def test_expected_update_direction_is_the_exact_gradient() -> None:
    """Average advantage-weighted score of unfiltered GAE against the exact policy gradient of the simulator.

    With V = 0, gamma = lambda = 1 the estimator is the plain score-function gradient: unbiased, so the average of
    independent steps is compared entry by entry, Bonferroni over entries, false alarm 1e-6 in all.
    """
    from scipy import stats

    from tppo.maths.advantages import gae

    config = small_token_mdp(task__num_prompts=1, task__size=2, rollout__slots=2000, rollout__max_response_tokens=12)
    trainer = build_trainer(config)
    mdp = config.task.mdp(12)  # type: ignore[attr-defined]
    logits = trainer.policy.logits_SA.detach().double()  # type: ignore[attr-defined]
    trainer.window.window = 12
    responses = trainer.window.admit()
    trainer.window.extend(trainer.engine.generate(trainer.window.requests(), trainer.sampling), 0)
    trainer.grader.grade(responses)
    batch = Batch.of(responses)
    advantages = gae(
        batch.rewards_N.double(), torch.zeros(len(batch.tokens_N)).double(), batch.offsets, gamma=1.0, lam=1.0
    )
    probs = logits.softmax(-1)
    samples = np.zeros((len(responses), *probs.shape))
    for i, r in enumerate(responses):
        state = r.prompt.tokens[0] - mdp.num_tokens
        for t, token in enumerate(r.tokens):
            a = float(advantages[batch.offsets[i] + t])
            samples[i, state] -= a * probs[state].numpy()
            samples[i, state, token] += a
            state = int(mdp.next_SAK[state, token, 0])
    truth = exact.softmax_policy_gradient(mdp, logits.numpy())
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(responses))
    z = np.abs(samples.mean(axis=0) - truth)[error > 0] / error[error > 0]
    assert z.size > 10
    assert z.max() < stats.norm.isf(1e-6 / 2 / z.size)


def replace_workload(trainer: Trainer, **changes: Any) -> None:
    trainer.workload = dataclasses.replace(trainer.workload, **changes)
    trainer.window.prompts = trainer.workload.prompts
    trainer.grader = Grader(trainer.workload.reward, trainer.workload.decode, seconds=5)


def test_a_reward_that_is_not_finite_stops_the_run() -> None:
    trainer = build_trainer(small_token_mdp())
    replace_workload(trainer, reward=lambda prompt, text: float("nan"))
    with pytest.raises(RewardError, match=r"the reward of prompt '.*', response \d+ is nan"):
        trainer.step()


def test_a_reward_that_raises_names_the_prompt() -> None:
    def broken(prompt: Prompt, text: str) -> float:
        raise KeyError("no answer")

    trainer = build_trainer(small_token_mdp())
    replace_workload(trainer, reward=broken)
    with pytest.raises(RewardError, match=r"failed on prompt 'reasoning ladder/0/.*KeyError"):
        trainer.step()


def test_an_empty_prompt_stops_before_generation() -> None:
    trainer = build_trainer(small_token_mdp())
    replace_workload(trainer, prompts=lambda i: Prompt(id="void", tokens=()))
    with pytest.raises(DataError, match="prompt 'void' is empty"):
        trainer.step()


def test_values_that_are_not_finite_name_the_responses() -> None:
    trainer = build_trainer(small_token_mdp())
    with torch.no_grad():
        trainer.critic.values_S[:] = float("inf")  # type: ignore[attr-defined]
    with pytest.raises(NonFiniteError, match=r"values has \d+ non-finite value\(s\) in responses \[0"):
        trainer.step()


def test_empty_responses_are_graded_and_train_nothing() -> None:
    """An engine that ends some responses without a token."""
    from tppo.types import Continuation

    trainer = build_trainer(small_token_mdp(algorithm__value_target__warmup_steps=0))
    inner = trainer.engine

    class Curt:
        def load_policy(self, named: Any, version: int) -> None:
            inner.load_policy(named, version)

        def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
            out = inner.generate(requests, sampling)
            return [Continuation(c.uid, (), (), True) if c.uid % 3 == 0 else c for c in out]

        def score(self, tokens: Any, first: int) -> list[float]:
            return inner.score(tokens, first)

        def close(self) -> None:
            inner.close()

    trainer.engine = Curt()
    for m in [trainer.step() for _ in range(3)]:
        assert m["ended_by_empty"] > 0
        assert math.isfinite(m["policy_loss"])
        assert math.isfinite(m["critic_loss"])


def test_all_empty_is_a_step_without_updates() -> None:
    from tppo.types import Continuation

    trainer = build_trainer(small_token_mdp(algorithm__value_target__warmup_steps=0))
    trainer.engine.generate = lambda requests, sampling, done: [  # type: ignore[method-assign]
        Continuation(r.uid, (), (), True) for r in requests
    ]
    m = trainer.step()
    assert (m["policy_updates"], m["critic_updates"], m["ended_by_empty"]) == (0, 0, 16)
    assert trainer.version == 0


def test_answers_without_end_are_length_and_graded() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__schedule__window=8, algorithm__value_target__warmup_steps=0))
    with torch.no_grad():
        trainer.policy.logits_SA[:, 0] = -40.0  # type: ignore[attr-defined]
    metrics = [trainer.step() for _ in range(3)]
    assert [m["unfinished"] for m in metrics] == [16, 16, 0]
    assert metrics[2]["ended_by_length"] == 16
    assert metrics[2]["dropped_tokens"] == 0  # at the cap nothing is dropped
    assert metrics[2]["reward"] == 0.0
    assert [m["critic_updates"] > 0 for m in metrics] == [False, False, True]


def test_kl_keeps_the_policy_near_its_start() -> None:
    free, _ = run(small_token_mdp(rollout__slots=64), steps=12)
    tied, metrics = run(small_token_mdp(rollout__slots=64, algorithm__policy_loss__kl_coef=30.0), steps=12)
    start = build_trainer(small_token_mdp()).policy.logits_SA.softmax(-1)  # type: ignore[attr-defined]
    move = lambda t: (t.policy.logits_SA.softmax(-1) - start).abs().sum().item()  # noqa: E731
    assert move(tied) < 0.5 * move(free)
    assert metrics[-1]["reference_kl"] > 0


@pytest.mark.parametrize("choice", ["repeat", "critic", "terminal"])
@pytest.mark.parametrize("old_values", ["recompute", "stored"])
def test_named_options_all_run(choice: str, old_values: str) -> None:
    config = small_token_mdp(
        algorithm__advantage__boundary=choice,
        algorithm__value_target__old_values=old_values,
        algorithm__value_target__lam=0.9,
        algorithm__advantage__lam=0.9,
        algorithm__policy_loss__aggregation="seq-mean-token-mean",
        algorithm__policy_loss__entropy_coef=0.01,
        algorithm__schedule__window=5,
    )
    _, metrics = run(config)
    assert all(math.isfinite(m["policy_loss"]) for m in metrics[1:])


def test_boundaries_differ() -> None:
    ends = []
    for choice in ("repeat", "critic", "terminal"):
        config = small_token_mdp(algorithm__advantage__boundary=choice, algorithm__schedule__window=4)
        ends.append(run(config, steps=5)[0].policy_module)
    assert not any(states_equal(a, b) for a, b in [(ends[0], ends[1]), (ends[0], ends[2]), (ends[1], ends[2])])


def test_unknown_device() -> None:
    with pytest.raises(ConfigError, match=r"compute.device = 'abacus'"):
        build_trainer(small_token_mdp(compute__device="abacus"))


@pytest.mark.gpu
def test_the_loop_runs_on_a_gpu() -> None:
    _, metrics = run(small_token_mdp(compute__device="cuda"))
    assert all(math.isfinite(m["policy_loss"]) for m in metrics[1:])


def test_toy_language_learns() -> None:
    """The shipped base model and recipe, a fifth of its steps: from at most 0.5 held-out to at least 0.75."""
    trainer = build_trainer(RECIPES["toy-language"]())
    base = trainer.evaluate()
    for _ in range(30):
        trainer.step()
    learned = trainer.evaluate()
    assert 0.25 < base.solve_rate <= 0.5
    assert learned.solve_rate >= 0.75
    # Long answers are there, and so is truncation.
    assert np.percentile(base.lengths, 99) >= 5 * np.median(base.lengths)
    assert max(len(r.window_starts) for r in trainer.window.in_flight) > 1


@pytest.mark.slow
def test_toy_language_reaches_its_goal(tmp_path: Any) -> None:
    """What ``make train`` promises."""
    from tppo.runs.run import run as run_recipe

    summary = run_recipe(RECIPES["toy-language"](), tmp_path / "run", progress=False)
    assert summary["solve_rate_base"] <= 0.5
    assert summary["solve_rate_final"] >= 0.9
    assert summary["wall_seconds"] < 600
