"""Learning studies: runs of the one trainer, their statistics, what is computed beside them, and tiny whole studies."""

from __future__ import annotations

import dataclasses
import importlib
import re
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from paper_repro.studies.learning import bootstrap, renewal
from paper_repro.studies.learning import trials as learning
from paper_repro.studies.learning.transient_findings import LADDER, lasts
from paper_repro.studies.learning.trials import LearningStudy, Trial, Truth, Variant, critic_values, train
from paper_repro.studies.learning.variants import heavy_tailed, windowed
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from tppo.config.run import validate
from tppo.runs.build import build_trainer
from tppo.studies.study import StudyOptions, StudyResult, Ticks

TINY: dict[str, dict[str, Any]] = {
    "window": {"TOKENS": 500},
    "zero_critic": {"STEPS": 8},
    "ablation": {"TOKENS": 500},
    "staleness": {"DECODE_STEPS": 40},
    "transient": {"STEPS": 6, "SLOTS": 8},
}


def tiny(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module(f"paper_repro.studies.learning.{name}")
    for constant, value in TINY[name].items():
        monkeypatch.setattr(module, constant, value)
    return module


def trained(config: Any, clock: Any, budget: int, points: int = 30, critic: Any = "zero", observe: Any = None) -> Any:
    """The rows of one run."""
    variant = Variant("a", config, critic)
    return train(Trial(LearningStudy((variant,), clock, budget, points, observe), variant, seed=config.seed))


def small(window: int = 4, **changes: Any) -> Any:
    task = TokenMDPTask(family="tailed_length", size=6, num_tokens=4, tail=0.5)
    return heavy_tailed(windowed(window), slots=8, cap=16, task=task).with_values(**changes)


# Quarters of floor(n / 4): of 5 numbers one goes at each end, of 3 none.
@pytest.mark.parametrize(
    ("scores", "expected"), [([9, 1, 2, 3, -50], 2.0), ([1, 2, 6], 3.0), ([4], 4.0), ([0, 0, 1, 1, 2, 2, 99, -9], 1.0)]
)
def test_interquartile_mean(scores: list[float], expected: float) -> None:
    assert float(bootstrap.iqm(scores)) == expected
    assert bootstrap.iqm(np.array([scores, scores]).T).tolist() == [expected] * 2


def test_intervals_are_seeded_ordered_and_shrink() -> None:
    x = np.random.default_rng(0).standard_normal(40)
    one, again, other = (bootstrap.interval(x, seed=s) for s in (0, 0, 1))
    assert one == again != other
    assert one.low < one.mean == float(bootstrap.iqm(x)) < one.high
    few = bootstrap.interval(x[:10])
    assert few.high - few.low > one.high - one.low
    assert bootstrap.interval([3.0, 3.0]) == (3.0, 3.0, 3.0)


def test_a_bootstrap_of_two_scores_by_hand() -> None:
    """Resamples of {0, 1} have mean 0, 1/2, 1 with chances 1/4, 1/2, 1/4, so the 2.5% and 97.5% points are 0 and 1."""
    assert bootstrap.interval([0.0, 1.0]) == (0.5, 0.0, 1.0)
    assert bootstrap.compare([4.0, 4.0], [2.0, 2.0], "over") == (2.0, 2.0, 2.0)
    assert bootstrap.compare([0.0, 1.0], [5.0, 5.0], "minus") == (-4.5, -5.0, -4.0)


@pytest.mark.parametrize(("seeds", "coverage"), [(6, 0.904), (10, 0.935), (20, 0.945)])
def test_coverage_of_the_intervals(seeds: int, coverage: float) -> None:
    """What `interval_limit` says. 1,000 intervals against the coverage found once with 2,000 others: the difference
    has a standard deviation below 0.0115, so 0.05 is passed by chance in fewer than 2 of 100,000 tests.
    """
    x = np.random.default_rng(seeds).standard_normal((1000, seeds))
    intervals = [bootstrap.interval(row, seed=i, resamples=500) for i, row in enumerate(x)]
    found = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert abs(found - coverage) < 0.05
    assert "90 of 100 cases with 6 seeds and in 93 with 10" in bootstrap.interval_limit(seeds)


def curve(*points: tuple[float, float], seed: int = 0) -> list[dict[str, Any]]:
    return [
        {"variant": "v", "seed": seed, "step": x, "tokens": x, "decode_steps": x, "exact_return": y} for x, y in points
    ]


def test_reaching_a_target() -> None:
    runs = [curve((0, 0.2), (10, 0.4), (20, 0.8)), curve((0, 0.2), (30, 0.3)), curve((0, 0.7), (5, 0.1))]
    # .5 lies a quarter of the way from .4 to .8; the second never arrives; the third starts there.
    assert learning.reach(runs, "tokens", 0.5).tolist() == [12.5, 30.0, 0.0]
    assert learning.censored(runs, 0.5) == 1
    assert learning.on_grid(runs[:1], "tokens", [5, 15]).tolist() == [pytest.approx([0.3, 0.6])]
    need = learning.reached({"v": runs[:2]}, 0.5)["v"]
    assert need.need["tokens"].mean == 21.25
    assert need.missing() == "1 of 2 runs stopped short and count with their end"
    grouped = learning.by_variant([*runs[0], *curve((0, 0.1), seed=1)])
    assert [len(run) for run in grouped["v"]] == [3, 1]


def test_a_run_reports_the_trainer_and_the_exact_return() -> None:
    config = small(seed=4)
    rows = trained(config, "step", 12, points=4)
    assert rows == trained(config, "step", 12, points=4)
    assert [r["step"] for r in rows] == [0, 3, 6, 9, 12]
    trainer = build_trainer(config)
    tokens = sum(trainer.step().metrics["new_tokens"] for _ in range(12))
    assert rows[-1]["tokens"] == tokens
    assert rows[-1]["decode_steps"] == 12 * 4  # some response always fills its window here
    report = trainer.workload.report(trainer.policy)
    assert rows[0]["exact_return"] == pytest.approx(report["exact_return_base"], abs=1e-6)
    assert rows[-1]["exact_return"] == pytest.approx(report["exact_return"], abs=1e-6)
    assert rows[-1]["exact_return"] != rows[0]["exact_return"]
    whole = trained(config.with_values(algorithm__window=16), "decode_steps", 60, points=2)
    assert whole[-1]["decode_steps"] >= 60 > whole[-2]["decode_steps"]


def test_exact_values_are_what_a_critic_tends_to() -> None:
    """The mean of the returns that follow a state, over sampled responses: 5 standard errors, twelve states, hence a
    false alarm in fewer than 1 of 100,000 tests.
    """
    truth = Truth(small())
    mdp = truth.mdp
    policy = exact.softmax(TokenMDPTask(family="tailed_length", size=6, num_tokens=4, tail=0.5).base_logits(mdp))
    V_S, visits_S = truth.values(policy)
    returns: list[list[float]] = [[] for _ in range(mdp.num_states)]
    for states, reward in sample(mdp, policy, 4000, np.random.default_rng(3)):
        for s in sorted(set(states)):  # once a response: visits of one response share its return
            returns[s] += [reward * states.count(s)]
    assert visits_S.sum() == pytest.approx(exact.lengths(mdp, policy).mean)
    for s, found in enumerate(returns):
        if len(found) > 100:
            error = np.std(found) / np.sqrt(len(found))
            mean_visits = visits_S[s] * 4000 / len(found)
            assert np.mean(found) == pytest.approx(V_S[s] * mean_visits, abs=5 * error + 0.05 * mean_visits)
    rows = trained(small(algorithm__critic__lr=0.0), "step", 1, critic="exact", observe=critic_error)
    assert rows[-1]["critic_error"] < 1e-5


def critic_error(trainer: Any, metrics: dict[str, Any], truth: Truth) -> dict[str, Any]:
    policy = exact.softmax(trainer.config.task.base_logits(truth.mdp))
    V_S, visits_S = truth.values(policy)
    gap_S = critic_values(trainer) - V_S
    return {"critic_error": float(np.abs(gap_S[visits_S > 0]).max())}


def sample(mdp: Any, policy: Any, count: int, rng: np.random.Generator) -> list[tuple[list[int], float]]:
    """(states before each token, reward) of whole responses, drawn side by side."""
    state = rng.choice(mdp.num_states, count, p=mdp.initial_S)
    states, rewards, alive = [[int(s)] for s in state], np.zeros(count), np.arange(count)
    for t in range(mdp.horizon):
        here = state[alive]
        tokens = (policy[here].cumsum(axis=1) < rng.random((len(alive), 1))).sum(axis=1).clip(max=mdp.num_tokens - 1)
        rewards[alive] += mdp.reward_SAK[here, tokens, 0]
        following = mdp.next_SAK[here, tokens, 0]
        state[alive] = following
        alive = alive[following >= 0]
        for i in alive if t < mdp.horizon - 1 else ():
            states[i].append(int(state[i]))
    return list(zip(states, rewards.tolist(), strict=True))


@pytest.mark.parametrize("window", [3, 5, 12])
def test_what_finishes_first_is_computed(window: int) -> None:
    """Solve rate and best-fitting critic of successive batching against 6,000 sampled slots.

    Five standard errors at each of seven steps and for one mean: fewer than 1 false alarm in 100,000 tests.
    """
    task = TokenMDPTask(size=2, num_prompts=1, base_skill=0.3, base_stop_prob=0.1)
    truth = Truth(small().with_values(task=task, rollout__max_response_tokens=12))
    mdp, steps, rng = truth.mdp, 7, np.random.default_rng(window)
    policy = exact.softmax(task.base_logits(mdp))
    pool = iter(sample(mdp, policy, 45_000, rng))
    solved, finished = np.zeros(steps), np.zeros(steps)
    held, returns = np.zeros((steps, mdp.num_states)), np.zeros((steps, mdp.num_states))
    for _slot in range(6000):
        step = 0
        while step < steps:
            states, reward = next(pool)
            step += -(-len(states) // window)
            if step <= steps:
                finished[step - 1] += 1
                solved[step - 1] += reward
                np.add.at(held[step - 1], states, 1.0)
                np.add.at(returns[step - 1], states, reward)
    expected = renewal.expected_solve_rate(truth, policy, window, steps)
    error = 5 * np.sqrt(expected * (1 - expected) / finished)
    assert (np.abs(solved / finished - expected) < error).all()
    V_S, visits_S = truth.values(policy)
    bias = renewal.expected_critic_bias(truth, policy, window, steps)
    fit_S = np.cumsum(returns, axis=0) / np.maximum(np.cumsum(held, axis=0), 1)
    found = ((fit_S - V_S) * visits_S).sum(axis=1) / visits_S.sum()
    # A mean over states of means over responses: about as noisy as the solve rate of as many responses.
    noise = 5 * np.sqrt(0.25 / np.cumsum(finished)) * 2
    assert (np.abs(found - bias) < noise).all()
    if window == 12:
        assert np.abs(bias).max() < 1e-12
        assert expected == pytest.approx([truth.mean_return(policy)] * steps, abs=1e-12)
    else:
        assert np.abs(bias).max() > 2 * noise.min()  # there is something to see


def test_the_transient_ends_with_the_cap() -> None:
    """No slot can tell more than cap / window steps later what was opened first: then the rate is within 0.01."""
    task = LADDER
    truth = Truth(heavy_tailed(windowed(8), task=task))
    policy = exact.softmax(task.base_logits(truth.mdp))
    J = truth.mean_return(policy)
    for window in (4, 8, 16):
        assert lasts(renewal.expected_solve_rate(truth, policy, window, 60) - J) == 64 // window
    assert lasts(np.array([0.5, 0.0, -0.02, 0.009])) == 3
    assert lasts(np.zeros(4)) == 0


@pytest.mark.parametrize("name", sorted(TINY))
def test_plans_are_valid_and_have_the_seeds_asked_for(name: str) -> None:
    module = importlib.import_module(f"paper_repro.studies.learning.{name}")
    options = StudyOptions(seeds=3, seed=7)
    study = module.study()
    runs = study.runs(options)
    for run in runs:
        validate(run.config)
        assert run.config.compute.device == "cpu"
        assert run.config.seed == run.seed
    names = {variant.name for variant in study.variants}
    assert len(names) == len(study.variants)
    assert len(runs) == 3 * len(names) == len({(r.variant.name, r.seed) for r in runs})
    assert {run.seed for run in runs} == {7, 8, 9}
    assert {name for pair in study.comparisons for name in pair} <= names
    longer = module.study(full=True)
    assert longer.budget >= study.budget
    assert longer.variants == study.variants
    assert module.STUDY.full_seeds > module.STUDY.seeds
    assert module.STUDY.name == name.replace("_", "-")


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_tiny_run_of_every_study(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny(name, monkeypatch)
    found: StudyResult = module.run(StudyOptions(seeds=2), Ticks())
    assert len({tuple(row) for row in found.rows}) == 1
    assert {row["seed"] for row in found.rows} == {0, 1}
    assert module.say(module.measure(list(found.rows))) == (found.answer, found.details)
    text = " ".join([found.answer, found.caption, *found.details, *found.limits])
    assert not re.search(r"\bnan\b|\binf\b", text)
    assert re.search(r"\d", found.answer)
    assert found.figure.axes
    assert all(ax.get_xlabel() for ax in found.figure.axes)


def test_the_number_of_jobs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = tiny("ablation", monkeypatch)
    monkeypatch.setattr(module, "TOKENS", 1500)
    study = module.study()
    few = dataclasses.replace(study, variants=study.variants[:1] + study.variants[4:5])
    one = few.train(StudyOptions(seeds=2), Ticks(jobs=1))
    two = few.train(StudyOptions(seeds=2), Ticks(jobs=2))
    assert one == two
    assert len({row["exact_return"] for row in one}) > 4
