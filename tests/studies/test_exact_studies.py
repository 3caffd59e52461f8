"""The exact studies: identities of what they compute, samples against exact answers, and small runs."""

from __future__ import annotations

import dataclasses
import functools
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from paper_repro.studies.exact import (
    bias,
    bias_findings,
    gradient,
    gradient_findings,
    last_m,
    last_m_findings,
)
from paper_repro.studies.exact.bias_findings import pick
from paper_repro.studies.exact.sampling import Shaping, estimates, sample, shaped
from paper_repro.studies.exact.tables import CRITICS, ESTIMATORS, Table, choices, critic, moments, rms, tables, visits
from paper_repro.studies.exact.updates import cosine, direction, expected_update, row_squares, true_gradient, update
from paper_repro.studies.intervals import mean_interval
from paper_repro.studies.port import authors_port
from sim import exact
from sim.mdp.table import TERMINAL, TokenMDP
from tppo.studies.study import StudyOptions, Ticks

TABLES = tables()
# Chance that a statistical test fails though the code is right, per test; the seeds are fixed.
FALSE_ALARM = 1e-6


def truth(table: Table, gamma: float) -> np.ndarray:
    return exact.evaluate(table.mdp, table.policy_SA, gamma).A_HSA


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("lam", [0.0, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.99, 1.0])
def test_an_exact_critic_leaves_no_bias_at_the_critics_boundary(name: str, lam: float, gamma: float) -> None:
    table = TABLES[name]
    V_HS = critic(table, "exact", gamma)
    unit = rms(truth(table, gamma), visits(table))
    for estimator, window in (("EGAE, critic", 8), ("EGAE, critic", 16), ("GAE", None)):
        found = moments(table, V_HS, estimator, window=window, gamma=gamma, lam=lam)
        assert np.abs(found.mean_HSA - truth(table, gamma)).max() / unit < 1e-12
    whole = moments(table, V_HS, "Monte Carlo", window=None, gamma=gamma, lam=None)
    assert np.abs(whole.mean_HSA - truth(table, gamma)).max() / unit < 1e-12


def corridor() -> Table:
    """Twelve tokens, always: a choice at t = 3 and at t = 5, and its reward with the last token.

    States 2 t + b: at time t, b = 1 after the right choice. Nothing ends or pays before the last window of four.
    """
    length = 12
    states = 2 * length
    next_SA = np.empty((states, 2), np.int64)
    reward_SA = np.zeros((states, 2))
    for t in range(length):
        for b in (0, 1):
            here = 2 * t + b
            for token in (0, 1):
                after = token if t in (3, 5) else b
                next_SA[here, token] = 2 * (t + 1) + after if t + 1 < length else TERMINAL
            if t + 1 == length:
                reward_SA[here] = b
    initial_S = np.eye(states)[0]
    mdp = TokenMDP("corridor", length, initial_S, next_SA[..., None], np.ones((states, 2, 1)), reward_SA[..., None])
    policy_SA = np.tile([0.4, 0.6], (states, 1))
    return Table("corridor", mdp, policy_SA, policy_SA)


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_repeat_is_unbiased_but_at_the_last_token_where_it_brings_neither_reward_nor_end(lam: float) -> None:
    table = corridor()
    A_HSA = truth(table, 1.0)
    found = moments(table, critic(table, "exact", 1.0), "EGAE, repeat", window=4, gamma=1.0, lam=lam)
    reached_HS = exact.occupancy(table.mdp, table.policy_SA) > 0
    off_HS = np.abs(found.mean_HSA - A_HSA).max(axis=-1) * reached_HS
    last = [3, 7]
    assert off_HS[[t for t in range(12) if t not in last]].max() < 1e-12
    # The last token of a cut window has no advantage at all: what it should have had is its bias.
    np.testing.assert_allclose(found.mean_HSA[last][reached_HS[last]], 0.0, rtol=0, atol=1e-12)
    assert off_HS[3].max() == pytest.approx(np.abs(A_HSA[3] * reached_HS[3][:, None]).max())
    # And where the last slot can end the response it is biased elsewhere too: the condition matters.
    lock = TABLES["lock"]
    ends = moments(lock, critic(lock, "exact", 1.0), "EGAE, repeat", window=4, gamma=1.0, lam=1.0)
    assert np.abs(ends.mean_HSA - truth(lock, 1.0))[0, 0].max() > 1e-3


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("gamma", [0.99, 1.0])
def test_variance_at_lambda_zero_is_that_of_one_temporal_difference(name: str, gamma: float) -> None:
    table = TABLES[name]
    mdp, V_HS = table.mdp, critic(table, "stale", gamma)
    found = moments(table, V_HS, "EGAE, critic", window=8, gamma=gamma, lam=0.0)
    for t in (0, 6, 7, 30, mdp.horizon - 1):
        after_SAK = np.where(mdp.next_SAK == TERMINAL, 0.0, V_HS[t + 1][mdp.next_SAK]) * (t + 1 < mdp.horizon)
        target_SAK = mdp.reward_SAK + gamma * after_SAK
        mean_SA = (mdp.prob_SAK * target_SAK).sum(axis=-1)
        closed_SA = (mdp.prob_SAK * target_SAK**2).sum(axis=-1) - mean_SA**2
        np.testing.assert_allclose(found.variance_HSA[t], closed_SA, rtol=0, atol=1e-12 * max(1, (mean_SA**2).max()))
        np.testing.assert_allclose(found.mean_HSA[t], mean_SA - V_HS[t][:, None], rtol=0, atol=1e-11)


def test_a_window_as_long_as_the_longest_response_is_gae() -> None:
    for table in TABLES.values():
        V_HS = critic(table, "noisy", 1.0, draw=3)
        for estimator in ("EGAE, repeat", "EGAE, critic", "EGAE, terminal"):
            one = moments(table, V_HS, estimator, window=table.mdp.horizon, gamma=1.0, lam=0.9)
            other = moments(table, V_HS, "GAE", window=None, gamma=1.0, lam=0.9)
            np.testing.assert_array_equal(one.mean_HSA, other.mean_HSA)
            np.testing.assert_array_equal(one.variance_HSA, other.variance_HSA)


def test_critics_are_what_they_are_called() -> None:
    for table in TABLES.values():
        V_HS = critic(table, "exact", 1.0)
        assert (critic(table, "optimistic", 1.0) >= V_HS - 1e-12).all()
        assert not critic(table, "zero", 1.0).any()
        starts = table.mdp.initial_S > 0
        assert (critic(table, "stale", 1.0)[0] < V_HS[0])[starts].all()  # the older policy was worse
        noise_HS = critic(table, "noisy", 1.0, draw=1) - V_HS
        again_HS = critic(table, "noisy", 1.0, draw=1) - V_HS
        np.testing.assert_array_equal(noise_HS, again_HS)
        weight_HS = visits(table).sum(axis=-1)
        centre = (weight_HS * V_HS[:-1]).sum()
        spread = np.sqrt((weight_HS * (V_HS[:-1] - centre) ** 2).sum())
        assert noise_HS.std() / spread == pytest.approx(0.5, rel=0.1)


def test_every_choice_is_made_once() -> None:
    found = choices((8, 16), (0.0, 1.0))
    assert len(found) == len(set(found)) == 3 * 2 * 2 + 2 + 1
    assert visits(TABLES["lock"]).sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("estimator", ["GAE", "Monte Carlo", "EGAE, critic"])
def test_an_unbiased_estimator_gives_the_true_gradient(name: str, estimator: str) -> None:
    table = TABLES[name]
    kind = "zero" if estimator == "Monte Carlo" else "exact"
    window = 16 if ESTIMATORS[estimator][0] == "egae" else None
    g_SA = expected_update(table, critic(table, kind, 1.0), estimator, window, 0.9 if kind == "exact" else None)
    np.testing.assert_allclose(
        g_SA, true_gradient(table), rtol=0, atol=1e-12 * np.abs(true_gradient(table)).max() * 100
    )


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize(
    ("estimator", "drop"), [("EGAE, repeat", 0), ("EGAE, repeat", 4), ("EGAE, critic", 2), ("EGAE, terminal", 0)]
)
def test_sampled_updates_agree_with_the_exact_one(name: str, estimator: str, drop: int) -> None:
    """Per direction a t test over seeds; together they fail by chance with probability FALSE_ALARM."""
    table, responses = TABLES[name], 1_500
    critic_HS = critic(table, "stale", 1.0)
    expected_SA = expected_update(table, critic_HS, estimator, 16, 0.9, drop)
    found = []
    for seed in range(12):
        windows = sample(table, np.random.default_rng(seed), responses, 16)
        raw_N = estimates(windows, critic_HS, estimator, gamma=1.0, lam=0.9)
        found.append(update(table, windows, shaped(windows, raw_N, Shaping(drop), 64)[0], responses))
    axes = [true_gradient(table), expected_SA, *np.random.default_rng(0).standard_normal((2, *expected_SA.shape))]
    for axis_SA in axes:
        interval = mean_interval([float((g * axis_SA).sum()) for g in found], level=1 - FALSE_ALARM / len(axes))
        assert interval.low <= float((expected_SA * axis_SA).sum()) <= interval.high


def test_windows_of_samples_are_windows_of_responses() -> None:
    table, window = TABLES["tail"], 8
    w = sample(table, np.random.default_rng(3), 400, window)
    seen: dict[int, list[tuple[int, int, int]]] = {}
    for row, finished in enumerate(w.finished_S):
        begin, end = w.offsets[row], w.offsets[row + 1]
        assert 1 <= end - begin <= window
        assert len(set(w.response_N[begin:end])) == 1
        assert (w.time_N[begin:end] == w.time_N[begin] + np.arange(end - begin)).all()
        assert w.time_N[begin] % window == 0
        ended = w.cut_state_S[row] == TERMINAL
        assert finished == (ended or w.time_N[end - 1] == table.mdp.horizon - 1)
        assert finished or end - begin == window
        seen.setdefault(int(w.response_N[begin]), []).append((int(w.time_N[begin]), row, int(finished)))
    assert sorted(seen) == list(range(400))
    order = [rows for _, rows in sorted(seen.items())]
    assert all(sum(finished for _, _, finished in rows) == 1 for rows in order)  # each ends once, in its last window
    for rows in order:
        tokens = np.concatenate([w.token_N[w.offsets[row] : w.offsets[row + 1]] for _, row, _ in sorted(rows)])
        start = int(w.state_N[w.offsets[sorted(rows)[0][1]]])
        rewards = sum(w.reward_N[w.offsets[row] : w.offsets[row + 1]].sum() for _, row, _ in rows)
        assert table.mdp.walk(start, tokens).reward == rewards


def test_shaping_in_batches_is_shaping_of_each_batch() -> None:
    table = TABLES["lock"]
    w = sample(table, np.random.default_rng(0), 50, 8)
    raw_N = estimates(w, critic(table, "stale", 1.0), "EGAE, repeat", gamma=1.0, lam=0.9)
    found_N, share = shaped(w, raw_N, Shaping(2, whiten=True, clamp=1.0), slots=16)
    for first in range(0, len(w.finished_S), 16):
        begin, end = w.offsets[first], w.offsets[min(first + 16, len(w.finished_S))]
        part = found_N[begin:end]
        assert part.abs().max() <= 1.0
        assert abs(float(part[part != 0].mean())) < 0.5
    assert share == pytest.approx(float((found_N.abs() >= 1.0).double().mean()))
    assert 0 < share < 1


def test_squares_of_windows_are_those_of_their_own_updates() -> None:
    table = TABLES["garnet"]
    w = sample(table, np.random.default_rng(1), 20, 8)
    A_N = torch.from_numpy(np.random.default_rng(2).standard_normal(len(w.time_N)))
    found_S = row_squares(table, w, A_N)
    for row in range(len(w.finished_S)):
        g_SA = np.zeros_like(table.policy_SA)
        for n in range(w.offsets[row], w.offsets[row + 1]):
            score_A = -table.policy_SA[w.state_N[n]].copy()
            score_A[w.token_N[n]] += 1.0
            g_SA[w.state_N[n]] += float(A_N[n]) * score_A
        assert found_S[row] == pytest.approx((g_SA**2).sum())


def test_directions_of_noisy_updates_are_not_bent_by_their_noise() -> None:
    """Twenty updates whose noise is as long as their mean: the interval covers the true cosine and length."""
    rng = np.random.default_rng(4)
    true_SA, mean_SA = np.zeros((10, 10)), np.zeros((10, 10))
    true_SA[0, 0], mean_SA[0, 0], mean_SA[0, 1] = 1.0, 1.6, 1.2
    noisy = [mean_SA + 0.2 * rng.standard_normal((10, 10)) for _ in range(20)]
    cos, length = direction(noisy, true_SA)
    assert cos.low < 0.8 < cos.high
    assert length.low < 2.0 < length.high
    assert cosine(np.mean(noisy, axis=0), true_SA) < cos.mean  # the plain one is too small
    with pytest.raises(ValueError, match="at least 3"):
        direction(noisy[:2], true_SA)


def test_a_step_is_worth_its_squared_cosine() -> None:
    """`efficiency` against simulated steps with a bias and noise; a z test that fails by chance with 1e-6."""
    rng = np.random.default_rng(5)
    g, mean, sigma, slots = np.array([1.0, 0.0, 0.0]), np.array([0.8, 0.6, 0.0]), 2.0, 400
    steps = mean + sigma / np.sqrt(slots) * rng.standard_normal((40_000, 3))
    squares = (steps @ g) ** 2 / (steps**2).sum(axis=1)
    expected = last_m.efficiency(0.8, square=1.0 + 3 * sigma**2, length2=1.0, slots=slots)
    # First order in 1/slots: the next order is (3 sigma^2 / slots)^2 ~ 1e-3.
    assert abs(squares.mean() - expected) < 4.9 * squares.std() / np.sqrt(len(squares)) + 2e-2


SMALL: dict[str, tuple[ModuleType, dict[str, Any], int]] = {
    "bias": (bias, {"horizon": 20, "windows": (16,), "lams": (0.0, 0.95), "draws": 2}, 0),
    "gradient": (gradient, {"windows": (16,), "lams": (0.95,), "responses": 100}, 3),
    "last-m": (last_m, {"windows": (16,), "lams": (0.95,), "drops": (0, 8), "responses": 60}, 3),
}


@pytest.mark.parametrize("name", SMALL)
def test_a_small_run_of_each_study(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, grid, seeds = SMALL[name]
    monkeypatch.setattr(module, "Grid", functools.partial(module.Grid, **grid))
    monkeypatch.setattr(gradient, "DRAWS", 1)
    result = module.STUDY.run(StudyOptions(seeds=seeds, seed=7), Ticks())
    assert {row["table"] for row in result.rows} == set(TABLES)
    assert "nan" not in result.answer
    assert module.say(module.measure(list(result.rows))) == (result.answer, result.details)
    twice = module.STUDY.run(StudyOptions(seeds=seeds, seed=7), Ticks())
    assert twice.rows == result.rows
    if name == "bias":
        exactly = pick(list(result.rows), critic="exact", estimator="EGAE, critic")
        assert len(exactly) == 4 * 2 * 2
        assert max(exactly) < 1e-12
        assert {row["critic"] for row in result.rows} == set(CRITICS)


def test_grids_hold_the_quoted_cell() -> None:
    for module, findings in ((bias, bias_findings), (gradient, gradient_findings), (last_m, last_m_findings)):
        for grid in (module.Grid(), module.FULL):
            assert findings.WINDOW in grid.windows
            assert findings.LAM in grid.lams
            assert dataclasses.is_dataclass(grid)
    assert authors_port().ignore_last in last_m.Grid().drops
    assert authors_port().ignore_last in last_m.FULL.drops
