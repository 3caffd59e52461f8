"""Lag, staleness, averages and bounded critics: what they promise, and runs that go on where they were cut off."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from paper_repro.recipes.small import token_mdp
from tests.algorithms.test_contract import small
from tests.support.helpers import states_equal
from tppo.algorithms.areal import AReaL
from tppo.algorithms.auxiliaries import Average
from tppo.algorithms.base import Rollout
from tppo.algorithms.ppo import PPO
from tppo.algorithms.sao import SAO
from tppo.algorithms.scalerl import ScaleRL
from tppo.algorithms.tppo import TPPO
from tppo.algorithms.vapo import VAPO
from tppo.algorithms.vc_ppo import VCPPO
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.loop.trainer import Trainer
from tppo.maths.advantages import length_adaptive_lambda
from tppo.runs.build import build_trainer
from tppo.runs.run import run


def same_run(one: RunConfig, two: RunConfig, steps: int = 4) -> bool:
    """Whether two configurations make the same policy, bit for bit."""
    ends = []
    for config in (one, two):
        trainer = build_trainer(config)
        for _ in range(steps):
            trainer.step()
        ends.append(trainer.policy)
    return states_equal(*ends)


# Lag and staleness


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_batch_trains_so_many_versions_after_it_was_sampled(lag: int) -> None:
    """All of it at once, every one once, in the order in which it was made; the first come from the first policy."""
    trainer = build_trainer(small("sao", algorithm__lag=lag, algorithm__warmup_steps=0, steps=10))
    for number in range(7):
        step = trainer.step()
        assert {r.uid for r in step.responses} == set(range(16 * number, 16 * (number + 1)))
        ages = {number - v for r in step.responses for v in r.versions}
        assert ages == {min(number, lag)}
        assert len(trainer.slots.shelf) == lag


@pytest.mark.parametrize("eta", [0, 1, 3])
def test_groups_are_opened_for_so_many_steps_ahead(eta: int) -> None:
    """Exactly B train in a step, oldest first, and at most B (eta + 1) are open before it. So the average one is eta
    versions old at most, and with eta 0 none is older than the policy.
    """
    trainer = build_trainer(
        small("areal", algorithm__staleness=eta, algorithm__groups=2, algorithm__window=2, steps=40)
    )
    slots, opened, ages = trainer.slots, 0, list[int]()
    version_of: dict[int, int] = {}
    for number in range(30):
        step = trainer.step()
        assert slots.cursor <= 2 * (number + 1 + eta)  # AReaL's rule: floor((N - 1) / B) <= version + eta, in groups
        version_of |= dict.fromkeys(range(opened, slots.cursor), number)
        opened = slots.cursor
        trained = sorted({r.group for r in step.responses})
        assert len(trained) == 2
        assert opened - 2 * number <= 2 * (eta + 1)
        ages += [number - version_of[group] for group in trained]
        assert all(max(trained) < r.group for r in slots.ready)
    assert sum(ages) / len(ages) <= eta
    assert (max(ages) == 0) == (eta == 0)


def test_an_unbounded_staleness_is_partial_rollout() -> None:
    free = small("areal", algorithm__staleness=10**4, algorithm__groups=2)
    parts = free.algorithm.parts(free.rollout)
    assert parts.staleness == (2, 10**4)
    trainer = build_trainer(free)
    for _ in range(6):
        assert len(trainer.slots.admit(trainer.version)) == 16
        trainer.step()


def test_whole_responses_and_no_staleness_leave_areal_its_base() -> None:
    """The factor pi_old / behaviour is 1 then, up to round-off, and the surrogate PPO's."""
    config = small("areal", algorithm__window=None, algorithm__staleness=0)
    trainer = build_trainer(config)
    step = trainer.step()
    assert step.metrics["correction_mean"] == pytest.approx(1.0, abs=1e-6)
    assert step.metrics["target_version_span"] == 0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("scalerl", {"algorithm__lag": 2}),
        ("areal", {"algorithm__staleness": 1}),
        ("grpo", {"algorithm__window": 5}),
        ("ppo-ewma", {}),
        ("sao", {"algorithm__lag": 1}),
        ("bpco", {}),
    ],
)
def test_it_goes_on_bit_for_bit(name: str, changes: dict[str, Any], tmp_path: Path) -> None:
    """Batches on the shelf, the average and its weight, and groups that wait are in the checkpoint."""
    config = small(name, **changes).with_values(checkpoint__every=1)
    whole = run(config, tmp_path / "whole", progress=False)
    run(config.with_values(steps=3), tmp_path / "half", progress=False)
    again = run(config, tmp_path / "half", progress=False, resume="auto", allow_change=["steps"])
    files = [(tmp_path / run / "policy" / "policy.safetensors").read_bytes() for run in ("whole", "half")]
    assert files[0] == files[1]
    assert whole["tokens_generated"] == again["tokens_generated"]


def test_unfinished_responses_cannot_wait_for_a_later_step() -> None:
    class Late(TPPO):
        def parts(self, rollout: Rollout) -> Any:
            return replace(super().parts(rollout), lag=1)

    config = token_mdp()
    with pytest.raises(ConfigError, match="whole responses for batches that train later"):
        validate(replace(config, algorithm=Late(window=8, ignore_last=2, warmup_steps=5)))


# Averages


def test_the_average_of_a_constant_drift() -> None:
    """theta = 1, 2, 3 with decay .5: w 1.5, 1.75, 1.875; from 0 the average is .6667, 1.4286, 2.2667."""
    from tppo.models.tabular import TabularPolicy

    table = torch.zeros(1, 1, dtype=torch.int64)
    policy = TabularPolicy(table, torch.zeros(1, 1, dtype=torch.float64))
    own = TabularPolicy(table, torch.zeros(1, 1, dtype=torch.float64))
    own.register_buffer("weight_of_average", torch.ones((), dtype=torch.float64))
    found = []
    for theta in (1.0, 2.0, 3.0):
        policy.logits_SA.data.fill_(theta)
        Average(0.5).follow(own, policy)
        found.append((float(own.weight_of_average), own.logits_SA.item()))
    assert [w for w, _ in found] == [1.5, 1.75, 1.875]
    assert [m for _, m in found] == pytest.approx([0.666667, 1.428571, 2.266667], abs=1e-6)


@pytest.mark.parametrize(("decay", "behind"), [(0.5, 1.0), (0.889, 8.009), (0.99, 99.0)])
def test_a_long_drift_leaves_the_average_behind(decay: float, behind: float) -> None:
    """By decay / (1 - decay) updates."""
    mean, weight = 0.0, 1.0
    for theta in range(1, 3001):
        weight = decay * weight + 1
        mean += (theta - mean) / weight
    assert 3000 - mean == pytest.approx(behind, rel=1e-3)


def test_without_memory_the_average_is_the_policy_and_nothing_clips() -> None:
    config = small("ppo-ewma", algorithm__decay=0.0, algorithm__clip_low=1e-9, algorithm__clip_high=1e-9)
    trainer = build_trainer(config)
    for _ in range(4):
        step = trainer.step()
    assert step.metrics["ratio_max"] == 1.0
    assert step.metrics["clip_fraction_high"] == step.metrics["clip_fraction_low"] == 0.0


# PPO's family


def test_vapo_with_a_fixed_lambda_and_no_imitation_is_vc_ppo() -> None:
    """With the numbers that are VC-PPO's: lambda, clip, whitening, clamp and warm-up."""
    alike = {
        "lam": 0.95, "lam_alpha": None, "imitate": 0.0, "clip_high": 0.2, "whiten": True, "clamp": 10.0,
        "warmup_steps": 0,
    }  # fmt: skip
    one = small("vapo", **{f"algorithm__{k}": v for k, v in alike.items()})
    assert same_run(one, small("vc-ppo", algorithm__warmup_steps=0))
    assert not same_run(small("vapo", algorithm__warmup_steps=0), small("vc-ppo", algorithm__warmup_steps=0))


def test_lambda_of_bpco_and_sao() -> None:
    """alpha .4: 2, 5, 1000 tokens -> 0, .5, .9975; alpha 1.5: 1, 8 -> .333, .917."""
    for alpha, lengths, expected in ((0.4, [2, 5, 1000], [0, 0.5, 0.9975]), (1.5, [1, 8], [1 / 3, 11 / 12])):
        done = torch.ones(len(lengths), dtype=torch.bool)
        found = length_adaptive_lambda(
            torch.tensor(lengths), done, alpha=alpha, lam_min=0.0, window=10**4, max_length=10**4
        )
        assert found.tolist() == pytest.approx(expected, abs=1e-12)


def test_values_of_a_bounded_critic_stay_inside() -> None:
    trainer: Trainer = build_trainer(small("bpco", algorithm__value_low=-0.5, algorithm__value_high=0.25))
    for _ in range(4):
        values = trainer.step().columns["values"]
        assert float(values.min()) > -0.5
        assert float(values.max()) < 0.25


def test_defaults_that_the_papers_give() -> None:
    assert (VAPO().lam_alpha, VAPO().clip_low, VAPO().clip_high, VAPO().imitate, VAPO().warmup_steps) == (
        0.05, 0.2, 0.28, 0.1, 50,
    )  # fmt: skip
    assert (VCPPO().lam, VCPPO().critic.lam, VCPPO().lam_alpha) == (0.95, 1.0, None)
    assert (SAO().low, SAO().high, SAO().lam_alpha, SAO().critic.epochs) == (0.7, 6.0, 1.5, 2)
    assert (ScaleRL().cap, ScaleRL().lag) == (5.0, 8)
    assert (AReaL().staleness, AReaL().clip_low, AReaL().clip_high) == (4, 0.2, 0.2)
    assert PPO().parts(Rollout()).staleness is None


@pytest.mark.parametrize("name", ["opo", "opo-loo", "em-baseline", "fisft"])
def test_more_passes_without_ratio_or_clip_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"policy.epochs = 2: expected 1 with the algorithm '{name}'"):
        small(name, policy__epochs=2)


def test_more_passes_over_what_was_rewarded_are_not() -> None:
    assert small("raft", policy__epochs=2).policy.epochs == 2
    assert small("em", policy__epochs=2).policy.epochs == 2


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("areal", {"window": None, "groups": None}, r"algorithm.staleness = 4: expected 0 without algorithm.window"),
        ("bpco", {"value_low": 1.0}, r"algorithm.value_low = 1.0: expected below algorithm.value_high"),
        ("rloo", {"kl": 0.1, "kl_reward": 0.1}, r"algorithm.kl_reward = 0.1: expected 0 beside algorithm.kl"),
        ("dapo", {"dual_clip": 1.1}, r"algorithm.dual_clip = 1.1: expected more than 1 \+ clip_high"),
    ],
)
def test_numbers_that_exclude_each_other(name: str, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small(name, **{f"algorithm__{k}": v for k, v in changes.items()})
