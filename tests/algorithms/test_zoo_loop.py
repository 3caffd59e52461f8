"""The zoo through the real loop: reductions as identities, and sampled updates against exact ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from paper_repro.recipes.small import token_mdp
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from sim.mdp.table import Floats, TokenMDP
from tests.support.token_trees import CHAIN3_STOP, Listed, chain3, columns_of, group_batch, logits_of, parts_of, utility
from tppo.algorithms.em import EMFilter
from tppo.algorithms.group import GroupAlgorithm
from tppo.algorithms.reinforce_pp import ReinforcePP
from tppo.algorithms.rloo import RLOO
from tppo.config.registry import algorithm_entry_points, load_algorithm, with_algorithm
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.fit.terms import Now, pick
from tppo.loop.trainer import Trainer
from tppo.runs.build import build_trainer

CAP = 8
WITHOUT_KL = {"algorithm__kl": 0.0}


def small(name: str, *, slots: int = 16, **changes: Any) -> RunConfig:
    """One mini-batch a step, whole responses, a table with few states."""
    config = token_mdp().with_values(
        steps=10**4, rollout__slots=slots, rollout__max_response_tokens=CAP, rollout__group_size=4,
        policy__mini_batch=slots, evaluation__every=0, evaluation__problems=4, compute__device="cpu",
        task__size=2, task__num_prompts=2,
    )  # fmt: skip
    kind = load_algorithm(name)
    whole = {"algorithm__window": None} if hasattr(kind, "window") else {}
    config = with_algorithm(config, kind).with_values(**whole | changes)
    validate(config)
    return config


def trainer_of(config: RunConfig, *, double: bool = False) -> Trainer:
    trainer = build_trainer(config)
    if double:
        for model in trainer.networks.models.values():
            model.double()
    return trainer


def recorded(trainer: Trainer, steps: int, *, moves: bool = False) -> list[Tensor]:
    """The gradients that reach the policy's optimiser; unless it ``moves`` the policy stays what it is."""
    optimizer, found = trainer.networks.optimizers["policy"], []
    step: Callable[..., float] = optimizer.step

    def record(*, name: str) -> float:
        [p] = [p for _, p in optimizer.named]
        assert p.grad is not None
        found.append(p.grad.detach().clone())
        return step(name=name) if moves else 0.0

    optimizer.step = record  # type: ignore[method-assign]
    for _ in range(steps):
        trainer.step()
    return found


# Reductions


@pytest.mark.parametrize(
    ("one", "other", "factor", "tolerance"),
    [
        ("gspo", "grpo", 1.0, 0.0),
        ("sapo", "grpo", 1.0, 0.0),
        ("kimi", "dr-grpo", CAP, 1e-7),
        ("dppo", "dr-grpo", 1.0, 1e-6),  # its centre is the sampler's float32
        ("rloo-sequence", "rloo", 1.0, 0.0),
    ],
)
def test_first_updates_agree_and_later_ones_part(one: str, other: str, factor: float, tolerance: float) -> None:
    """The same seed, hence the same responses; a first update at the centre, and a second away from the first's."""
    found = []
    for name in (one, other):
        config = small(name, policy__lr=0.5, policy__epochs=2)
        off = {f"algorithm__{k}": 0.0 for k in ("kl", "kl_reward") if getattr(config.algorithm, k, 0)}
        found.append(recorded(trainer_of(config.with_values(**off), double=True), 1, moves=True))
    (a, later_a), (b, later_b) = found
    torch.testing.assert_close(a, factor * b, rtol=0, atol=(tolerance + 1e-12) * float(a.abs().max()))
    assert float((later_a - factor * later_b).abs().max()) > 1e-3 * float(later_a.abs().max())


def test_a_first_update_of_grpo_is_fine_tuning_on_right_and_wrong_answers() -> None:
    """But for its KL, eps, and float32 outcomes (arXiv 2505.13697)."""
    pair = (small("fisft"), small("grpo", **WITHOUT_KL))
    (a,), (b,) = (recorded(trainer_of(config, double=True), 1, moves=True) for config in pair)
    torch.testing.assert_close(a, b, rtol=0, atol=2e-6 * float(a.abs().max()))


def test_grpo_without_std_is_dr_grpo_up_to_aggregation() -> None:
    """The advantages of both on one batch of the loop differ by the group's standard deviation and eps."""
    steps = [trainer_of(small(name, **WITHOUT_KL)).step() for name in ("grpo", "dr-grpo")]
    scaled, plain = (step.columns["advantages"] for step in steps)
    assert steps[0].batch.uids_S == steps[1].batch.uids_S
    batch = steps[0].batch
    outcomes = torch.tensor([r.reward for r in batch.responses])
    unit = torch.stack([outcomes[batch.group_S == g].std() for g in batch.group_S])
    torch.testing.assert_close(scaled * (batch.spread(unit) + 1e-6), plain)
    assert float(plain.abs().max()) > 0


def test_a_filter_of_mixed_groups_trains_on_no_others() -> None:
    """And on as many as are asked for, whatever has to be sampled for them."""
    step = trainer_of(small("dapo", algorithm__groups=6)).step()
    groups: dict[int, set[float | None]] = {}
    for r in step.batch.responses:
        groups.setdefault(r.group, set()).add(r.reward)
    assert len(groups) >= 6
    assert all(outcomes == {0.0, 1.0} for outcomes in groups.values())


GROUPED = [name for name in sorted(algorithm_entry_points()) if issubclass(load_algorithm(name), GroupAlgorithm)]


@pytest.mark.parametrize("name", GROUPED)
def test_windows_that_truncate_nothing_and_groups_of_one_are_refused(name: str) -> None:
    """A group of one only where responses are judged beside others; every response of TOPR and RAFT is by itself."""
    with pytest.raises(ConfigError, match=r"max_response_tokens = 8: expected at least algorithm.window \(100\)"):
        small(name, algorithm__window=100)
    if load_algorithm(name).alone:  # type: ignore[attr-defined]
        assert small(name, rollout__group_size=1).rollout.group_size == 1
        return
    with pytest.raises(ConfigError, match=rf"group_size = 1: expected at least 2 with the algorithm '{name}'"):
        small(name, rollout__group_size=1)


# Worked numbers through rewards and advantages


def test_returns_with_a_kl_in_the_reward() -> None:
    """REINFORCE++: KL .1, .2, .3, weight .01, outcome 1: [.994, .995, .997]; RLOO sums them: .994."""
    batch = group_batch([(1.0, [1, 1, 0])], CAP)
    old, reference = torch.tensor([[-1.0, -1.0, -1.0], [-1.1, -1.2, -1.3]], dtype=torch.float64)
    parts = parts_of(ReinforcePP(kl_reward=0.01), CAP, 1)
    known = {"rewards": batch.rewards_N.double(), "old": old, "reference": reference, "train": parts.tokens(batch)}
    [reward] = parts.rewards
    shaped = reward.shape(known["rewards"], batch, pick(known, reward.reads))
    assert parts.advantage is not None
    found = parts.advantage.estimate(batch, {"rewards": shaped}, known["train"])
    assert found["raw_advantages"].tolist() == pytest.approx([0.994, 0.995, 0.997], abs=1e-12)
    pair = group_batch([(1.0, [1, 1, 0]), (0.0, [1])], CAP)
    parts = parts_of(RLOO(kl_reward=0.01), CAP, 2)
    known = {
        "rewards": pair.rewards_N.double(), "old": torch.cat((old, old[:1])),
        "reference": torch.cat((reference, old[:1])), "train": parts.tokens(pair),
    }  # fmt: skip
    [reward] = parts.rewards
    shaped = reward.shape(known["rewards"], pair, pick(known, reward.reads))
    assert parts.advantage is not None
    found = parts.advantage.estimate(pair, {"rewards": shaped}, known["train"])
    assert found["advantages"].tolist() == pytest.approx([0.994] * 3 + [-0.994], abs=1e-12)


# Expectation-maximisation on the table


def full_m_step(mdp: TokenMDP, policy: Floats) -> Floats:
    """pi'(a|s) = sum_t d_t pi Q / sum_t d_t V: the policy of largest reward-weighted likelihood."""
    values, alive_HS = exact.evaluate(mdp, policy), exact.occupancy(mdp, policy)
    gained_SA = policy * np.einsum("hs,hsa->sa", alive_HS, values.Q_HSA)
    total_S = gained_SA.sum(axis=1, keepdims=True)
    return np.where(total_S > 0, gained_SA / np.where(total_S > 0, total_S, 1.0), policy)


def m_steps(mdp: TokenMDP, policy: Floats, count: int) -> list[float]:
    found = [exact.evaluate(mdp, policy).J]
    for _ in range(count):
        policy = full_m_step(mdp, policy)
        found.append(exact.evaluate(mdp, policy).J)
    return found


def test_worked_m_steps_on_a_tree() -> None:
    """J_k = E[R^(k+1)] / E[R^k], and 1 after one step for outcomes 0 and 1."""
    policy, graded = exact.softmax(logits_of(CHAIN3_STOP)), chain3((0.2, 0.6, 1.0))
    expected = [0.31, 0.587097, 0.753846, 0.850729, 0.905689]
    assert m_steps(graded, policy, 4) == pytest.approx(expected, abs=5e-7)
    law = exact.outcome_law(graded, policy)
    powers = [float(law.rewards_R**k @ law.prob_RH1.sum(axis=1)) for k in range(6)]
    assert [powers[k + 1] / powers[k] for k in range(5)] == pytest.approx(expected, abs=5e-7)
    stop = full_m_step(chain3(), policy)[:, 0]
    assert stop.tolist() == pytest.approx([0, 0.68966, 1], abs=5e-6)
    assert m_steps(chain3(), policy, 1)[1] == pytest.approx(1.0, abs=1e-15)


LADDER = TokenMDPTask(family="reasoning_ladder", size=3, num_prompts=1, base_skill=0.3)
LOCK = TokenMDPTask(family="combination_lock", size=4, num_tokens=4, base_skill=0.3)


@pytest.mark.parametrize(
    ("task", "horizon", "expected"),
    [
        (LADDER, 64, [0.3009, 0.99835, 0.99854]),
        (LOCK, 16, [0.1065, 0.9166, 0.9611, 0.9771]),
    ],
)
def test_worked_m_steps_where_states_merge(task: TokenMDPTask, horizon: int, expected: list[float]) -> None:
    mdp = task.mdp(horizon)
    found = m_steps(mdp, exact.softmax(task.base_logits(mdp)), len(expected) - 1)
    assert found == pytest.approx(expected, abs=6e-5)
    assert found == sorted(found)


def test_the_full_m_step_is_where_rafts_own_loss_is_at_rest() -> None:
    """With the weights of the old policy frozen: the weighted likelihood has no gradient there, and has one before."""
    table = Listed(chain3((0.25, 0.5, 1.0)), logits_of(CHAIN3_STOP))
    best = full_m_step(table.mdp, exact.softmax(table.logits))
    parts = parts_of(EMFilter(), 3, 1)
    for policy, at_rest in ((best, True), (exact.softmax(table.logits), False)):
        logits = torch.tensor(np.log(np.maximum(policy, 1e-300)), requires_grad=True)
        log_pi, losses = torch.log_softmax(logits, -1), []
        for p, steps, outcome in table.answers:
            s, a = torch.tensor(steps).T
            batch = group_batch([(outcome, a.tolist())], 3)
            columns = columns_of(parts, batch, log_pi[s, a])
            now = Now(log_pi[s, a], torch.zeros(len(s)), batch.offsets)
            losses.append(p * parts.terms[0].loss(now, pick(columns, parts.terms[0].reads)).loss_X.sum())
        [slope] = torch.autograd.grad(torch.stack(losses).sum(), logits)
        assert bool(float(slope.abs().max()) < 1e-15) is at_rest


# Sampled updates


FALSE_ALARM = 1e-4
"""Chance that one of the comparisons below fails though the loop is right, by Student's t on means over steps."""
DIRECTIONS = 6
SAMPLED = {
    "grpo": ("reasoning_ladder", {"task__base_skill": 0.6, **WITHOUT_KL, "algorithm__eps": 1e-6}),
    "rloo": ("combination_lock", {"task__base_skill": 0.6, "task__num_tokens": 3}),
    "kimi": ("tailed_length", {"task__size": 3, "task__num_tokens": 3}),
}


def exact_update(config: RunConfig) -> Floats:
    """Of the method on this table: the mean over prompts of the gradient of each one's frozen utility."""
    task = config.task
    assert isinstance(task, TokenMDPTask)
    mdp = task.mdp(CAP)
    logits, total = task.base_logits(mdp).astype(np.float32).astype(np.float64), np.zeros(1)
    for state in np.flatnonzero(mdp.initial_S):
        table = Listed(replace(mdp, initial_S=np.eye(mdp.num_states)[state]), logits)
        f = utility(table, config.algorithm, config.rollout.group_size, lengths=False)
        total = total + mdp.initial_S[state] * table.gradient(f)
    return total


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_updates_of_the_loop_average_to_the_exact_one(name: str) -> None:
    """40 steps of 8 groups at an unchanged policy: means along fixed directions, the exact update's among them."""
    family, changes = SAMPLED[name]
    config = small(name, slots=32, task__family=family, seed=7, **changes)
    updates = -torch.stack(recorded(trainer_of(config), 40)).double().numpy().reshape(40, -1)
    expected = exact_update(config).ravel()
    rng = np.random.default_rng(0)
    along = np.stack([expected, *rng.normal(size=(DIRECTIONS - 1, expected.size))])
    limit = float(stats.t.isf(FALSE_ALARM / (2 * DIRECTIONS * len(SAMPLED)), len(updates) - 1))

    def scores(candidate: Floats) -> Floats:
        off = (updates - candidate.ravel()) @ along.T
        return off.mean(axis=0) / (off.std(axis=0, ddof=1) / np.sqrt(len(off)))

    assert np.abs(scores(expected)).max() < limit
    # An update that is absent, or half as large, would be seen.
    assert np.abs(scores(0.0 * expected)).max() > 2 * limit
    assert np.abs(scores(0.5 * expected)).max() > limit
