"""Bad input: a clear error with field, value, expectation and remedy, before anything is loaded."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from paper_repro.recipes.small import RECIPES
from tests.support.helpers import leaves, small_token_mdp
from tppo.algorithms import Algorithm
from tppo.config.recipes import load_recipe, recipe_entry_points
from tppo.config.run import RunConfig, TaskConfig, validate
from tppo.config.stored import as_dict
from tppo.errors import ConfigError
from tppo.ranges import Range
from tppo.runs.build import build_trainer


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_valid_and_installed(name: str) -> None:
    config = load_recipe(name)
    validate(config)
    assert config.recipe == name
    assert set(recipe_entry_points()) >= set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_number_has_a_range(name: str) -> None:
    for path, hint, _ in leaves(RECIPES[name]()):
        if ".language." in path:
            continue  # the simulator knows nothing of configurations; its parts check themselves
        args = typing.get_args(hint)
        kinds = {hint, *args, *(a for arg in args for a in typing.get_args(arg))}
        if kinds & {int, float} and bool not in kinds:
            marks = [a for arg in (hint, *args) for a in (arg, *typing.get_args(arg)) if isinstance(a, Range)]
            assert marks, path


def test_a_value_outside_its_range_is_refused_everywhere() -> None:
    """Every bounded number of a recipe, pushed below and above its range."""
    config = small_token_mdp()
    pushed = 0
    for path, hint, value in leaves(config):
        marks = [a for a in _flatten(hint) if isinstance(a, Range)]
        if not marks:
            continue
        [mark] = marks
        whole = int in _flatten(hint)
        bad: list[Any] = ["many", True]
        if mark.low != -float("inf"):
            bad.append((mark.low if mark.above else mark.low - 1) if not whole else int(mark.low) - 1)
        if mark.high != float("inf"):
            bad.append(mark.high + 1 if not whole else int(mark.high) + 1)
        if not whole:
            bad += [float("nan"), float("inf")]
        else:
            bad.append(1.5)
        for b in bad:
            with pytest.raises(ConfigError) as caught:
                validate(config.with_values(**{path.replace(".", "__"): b}))
            assert caught.value.field == path
            pushed += 1
        assert value is None or not isinstance(value, str)
    assert pushed > 100


def _flatten(hint: Any) -> list[Any]:
    return [hint, *(x for a in typing.get_args(hint) for x in _flatten(a))]


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"algorithm__schedule__window": 2}, "algorithm.schedule.window", "more than algorithm.filter.ignore_last (2)"),
        ({"algorithm__advantage__lam": 1.2}, "algorithm.advantage.lam", "[0, 1]"),
        ({"rollout__slots": 18}, "rollout.slots", "use 16"),
        ({"rollout__max_response_tokens": 7}, "rollout.max_response_tokens", "a cap shorter than the window"),
        ({"seed": -1}, "seed", "[0,"),
        ({"algorithm__advantage__boundary": "guess"}, "algorithm.advantage.boundary", "'repeat', 'critic', 'terminal'"),
        ({"algorithm__advantage__estimator": "gae"}, "algorithm.advantage.estimator", "boundary 'terminal'"),
        ({"algorithm__policy_loss__aggregation": "constant"}, "algorithm.policy_loss.constant_length", "a length"),
        ({"algorithm__policy_loss__constant_length": 9}, "algorithm.policy_loss.constant_length", "None otherwise"),
        ({"algorithm__value_target__aggregation": "constant"}, "algorithm.value_target.aggregation", "a mean"),
        ({"algorithm__value_target__clip_low": None}, "algorithm.value_target.clip_low", "both clips or neither"),
        ({"algorithm__value_target__warmup_steps": 6}, "algorithm.value_target.warmup_steps", "never train"),
        ({"evaluation__stop_at": 0.9}, "evaluation.every", "above 0"),
        ({"task__num_tokens": 2}, "task", "num_tokens"),
        ({"task__family": "maze"}, "task.family", "one of"),
        ({"engine": "abacus"}, "engine", "one of 'torch', 'vllm'"),
        ({"tensorboard": "yes"}, "tensorboard", "True or False"),
        ({"recipe": 3}, "recipe", "text"),
    ],
)
def test_impossible_values_and_combinations(changes: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        validate(small_token_mdp(**changes))
    assert caught.value.field == field
    assert says in str(caught.value)


def test_gae_refuses_options_that_would_do_nothing() -> None:
    ppo = RECIPES["token-mdp-ppo"]()
    for change in ({"algorithm__advantage__boundary": "critic"}, {"algorithm__filter__ignore_last": 3}):
        with pytest.raises(ConfigError, match="it has no effect"):
            validate(ppo.with_values(**change))


def test_a_full_window_may_be_shorter_than_m() -> None:
    """Nothing is ever unfinished then, so nothing is dropped; one token less and it is refused."""
    config = small_token_mdp(
        algorithm__schedule__window=24, algorithm__filter__ignore_last=100, algorithm__value_target__warmup_steps=0
    )
    validate(config)
    metrics = build_trainer(config).step()
    assert metrics["dropped_tokens"] == 0
    assert metrics["trained_tokens"] == metrics["new_tokens"] > 0
    with pytest.raises(ConfigError, match="an unfinished window would train nothing"):
        validate(config.with_values(algorithm__schedule__window=23))


def test_unknown_field() -> None:
    with pytest.raises(ConfigError, match="windoww = 'unknown': expected one of"):
        small_token_mdp(algorithm__schedule__windoww=3)


def test_defaults_are_those_of_the_specification() -> None:
    """Section 3.12 of the algorithm specification, number by number."""
    a = Algorithm()
    assert (a.advantage.gamma, a.advantage.lam_alpha, a.advantage.lam_min) == (1.0, 0.05, 0.95)
    assert (a.value_target.lam, a.value_target.clip_low, a.value_target.clip_high) == (1.0, 0.5, 0.6)
    assert (a.value_target.warmup_steps, a.value_target.old_values) == (10, "recompute")
    assert a.value_target.aggregation == "seq-mean-token-mean"
    p = a.policy_loss
    assert (p.clip_low, p.clip_high, p.dual_clip, p.lm_coef) == (0.2, 0.28, 10.0, 0.1)
    assert (p.entropy_coef, p.kl_coef, p.aggregation) == (0.0, 0.0, "token-mean")
    assert (a.filter.ignore_last, a.schedule.window) == (8, 8192)
    assert (a.advantage.whiten, a.advantage.clamp, a.advantage.bias) == (True, 10.0, 0.0)
    assert (a.advantage.estimator, a.advantage.boundary, a.advantage.lam) == ("egae", "repeat", None)
    c = RunConfig(recipe="none", task=TaskConfig())
    assert (c.rollout.slots, c.rollout.group_size, c.rollout.max_response_tokens) == (8192, 16, 24576)
    assert (c.policy.lr, c.critic.lr, c.policy.weight_decay, c.policy.mini_batch, c.policy.epochs) == (
        8e-7, 2e-6, 0.1, 512, 1,
    )  # fmt: skip
    validate(c)


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if n.endswith("-ppo")))
def test_a_ppo_twin_differs_in_the_algorithm_alone(name: str) -> None:
    one, two = as_dict(RECIPES[name.removesuffix("-ppo")]()), as_dict(RECIPES[name]())
    different = {k for k in one if one[k] != two[k]}
    assert different == {"recipe", "algorithm"}
    changed = {
        f"{part}.{leaf}"
        for part, values in one["algorithm"].items()
        if isinstance(values, dict)
        for leaf in values
        if values[leaf] != two["algorithm"][part][leaf]
    }
    assert changed == {"schedule.window", "advantage.estimator", "filter.ignore_last"}


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_token_mdp().seed = 3  # type: ignore[misc]
