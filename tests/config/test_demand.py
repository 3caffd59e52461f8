"""What a run will hold is estimated before anything is made, and refused where it cannot fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paper_repro.recipes.registry import RECIPES
from paper_repro.tasks.token_mdp import FAMILIES, TokenMDPTask
from sim import exact
from tests.support.helpers import small_token_mdp
from tppo.config.demand import check_demand, demand, token_bytes
from tppo.config.need import Need
from tppo.config.run import RunConfig
from tppo.environment import machine_memory
from tppo.errors import ConfigError
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer, check_memory

GIB = 2**30


def refused(config: RunConfig, machine: float = 32 * GIB, **kwargs: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        check_demand(config, demand(config, **kwargs), machine=machine)
    return caught.value


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"qwen2.5-7b-tppo", "qwen2.5-7b-ppo"} - {
    "qwen2.5-32b-tppo", "qwen2.5-32b-ppo"}))  # fmt: skip
def test_every_small_recipe_fits_a_laptop(name: str) -> None:
    config = RECIPES[name]()
    check_demand(config, demand(config), machine=24 * GIB)


def test_the_paper_s_run_fits_its_cluster_and_no_laptop() -> None:
    """Eight ranks of a machine share two TB, each of 64 GPUs has 80 GB; one process has no room for the weights."""
    config = RECIPES["qwen2.5-32b-tppo"]()
    check_demand(config, demand(config, ranks=64), machine=2000 * GIB / 8, device=80e9)
    error = refused(config)
    assert error.field == "task.model"
    assert "2 networks of 32763876352 weights in training" in str(error)
    whole = config.with_values(rollout__slots=100_000, rollout__group_size=100)
    check_demand(whole, demand(whole, ranks=64), machine=2000 * GIB / 8, device=80e9)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        (
            {"rollout__slots": 1_000_000, "algorithm__window": 10_000, "rollout__max_response_tokens": 20_000},
            "rollout.slots",
            "1000000 responses in flight with 10000 new tokens each",
        ),
        (
            {"evaluation__problems": 10_000_000},
            "evaluation.problems",
            "10000000 problems with 1 responses of 24 tokens",
        ),
        (
            {"evaluation__problems": 4096, "evaluation__samples": 100_000},
            "evaluation.samples",
            "or lower evaluation.problems (4096) or rollout.max_response_tokens (24)",
        ),
        (
            {"rollout__max_response_tokens": 10_000_000, "evaluation__problems": 1000},
            "rollout.max_response_tokens",
            "rows of 10000001 tokens",
        ),
        ({"task__num_prompts": 1_000_000}, "task.num_prompts", "a table of 26000000 states and 5 tokens"),
        ({"task__num_tokens": 1_000_000}, "task.num_tokens", "a micro-batch of"),
        (
            {"task__family": "tailed_length", "task__size": 1_000_000, "task__num_tokens": 100_000},
            "task.size",
            "a table of 1000001 states and 100000 tokens",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_field_to_lower(changes: dict[str, Any], field: str, says: str) -> None:
    config = small_token_mdp(**changes)
    error = refused(config, 10 * GIB)
    assert error.field == field
    assert says in str(error)
    assert "expected a run that needs at most 10.0 GiB, the machine's memory" in str(error)
    lower = int(error.remedy.partition("lower it to about ")[2].split(",")[0])
    smaller = config.with_values(**{field.replace(".", "__"): lower * 9 // 10})
    check_demand(smaller, demand(smaller), machine=10 * GIB)  # what is proposed fits
    check_demand(config, demand(config), machine=None)


def test_a_run_that_does_not_fit_begins_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is built: neither tables nor models."""
    monkeypatch.setattr(TokenMDPTask, "build", lambda self, config, ranks: pytest.fail("built"))
    with pytest.raises(ConfigError, match=r"task\.num_prompts = 1000000: expected a run that needs at most"):
        build_trainer(small_token_mdp(task__num_prompts=1_000_000, task__num_tokens=5000))


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    config, cpu = small_token_mdp(), torch.device("cpu")
    needed = sum(need.size for need in demand(config, ranks=8))
    monkeypatch.setattr("tppo.runs.build.machine_memory", lambda: 4 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    check_memory(config, Ranks(), cpu, generates=True)  # not under torchrun: all of it
    launched = Ranks(0, 8)
    launched.joined = True
    with pytest.raises(ConfigError, match="for each process of the run"):
        check_memory(config, launched, cpu, generates=True)
    monkeypatch.setattr("tppo.runs.build.machine_memory", lambda: None)
    check_memory(config, launched, cpu, generates=True)


def test_models_lie_on_the_gpu_where_there_is_one() -> None:
    config = small_token_mdp()
    needs = [Need("weights", 60 * GIB, ("task",), on_device=True), Need("rows", 10 * GIB, ("rollout.slots",))]
    check_demand(config, needs, machine=16 * GIB, device=80 * GIB)
    with pytest.raises(ConfigError, match=r"the GPU's memory for each process"):
        check_demand(config, needs, machine=16 * GIB, device=50 * GIB)
    with pytest.raises(ConfigError, match=r"rollout\.slots = 16: .* the machine's memory"):
        check_demand(config, needs, machine=5 * GIB, device=80 * GIB)
    with pytest.raises(ConfigError, match=r"estimated are at least 70\.0 GiB"):
        check_demand(config, needs, machine=64 * GIB)


def test_replay_needs_no_room_for_generation() -> None:
    config = small_token_mdp(evaluation__problems=10_000_000)
    check_demand(config, demand(config, generates=False), machine=GIB)
    assert {need.moment for need in demand(config, generates=False)} == {"always"}


def test_memory_of_this_machine_is_known() -> None:
    found = machine_memory()
    assert found is not None
    assert GIB < found < 2**50
    assert 100 < token_bytes() < 200


GRID = [(family, size, cap) for family in FAMILIES for size in (1, 2, 5) for cap in (1, 2, 3, 6, 7)]


@pytest.mark.parametrize(("family", "size", "cap"), GRID)
def test_what_is_said_of_a_table_is_true_of_the_table(family: Any, size: int, cap: int) -> None:
    """Its number of states, and from which cap on some response pays."""
    task = TokenMDPTask(family=family, size=size, num_prompts=2)
    mdp = task.mdp(cap)
    assert FAMILIES[family].states(task) == mdp.num_states
    assert (exact.optimum(mdp).J > 0) == (FAMILIES[family].fewest(task) <= cap)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_table_that_never_pays_is_refused(family: Any) -> None:
    """The share of an optimum of zero would be a division by zero, after the whole run."""
    fewest = FAMILIES[family].fewest(TokenMDPTask(family=family, size=6))
    config = small_token_mdp(
        task__family=family, task__size=6, rollout__max_response_tokens=fewest - 1, algorithm__window=1,
        algorithm__ignore_last=0,
    )  # fmt: skip
    with pytest.raises(
        ConfigError, match=rf"max_response_tokens = {fewest - 1}: expected at least {fewest}, the short"
    ):
        config.task.validate(config)
    config = config.with_values(rollout__max_response_tokens=fewest)
    config.task.validate(config)
    trainer = build_trainer(config.with_values(algorithm__warmup_steps=0))
    assert 0 < trainer.workload.report(trainer.policy)["share_of_optimum"] <= 1


def test_a_long_horizon_costs_what_the_table_needs() -> None:
    """Values that no longer change end the pass, bit for bit as the whole pass would."""
    mdp = TokenMDPTask().mdp(400)
    policy = exact.noisy_policy(mdp, 0.4, stop_prob=0.1)
    for short, whole in (
        (exact.at_start(exact.iter_optimum(mdp)), exact.optimum(mdp)),
        (exact.at_start(exact.iter_evaluate(mdp, policy)), exact.evaluate(mdp, policy)),
    ):
        assert np.array_equal(short.V_S, whole.V_HS[0])
        assert np.array_equal(short.Q_SA, whole.Q_HSA[0])
    assert exact.at_start(exact.iter_optimum(TokenMDPTask().mdp(10_000_000))).t > 9_999_000
