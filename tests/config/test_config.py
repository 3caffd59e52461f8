"""Bad input: a clear error with field, value, expectation and remedy, before anything is loaded."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

import pytest

from paper_repro.recipes.registry import RECIPES
from tests.support.helpers import leaves, small_token_mdp
from tppo.algorithms import PPO, TPPO, ValuePretraining
from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions
from tppo.config.recipes import load_recipe, recipe_entry_points
from tppo.config.registry import algorithm_entry_points, carried, load_algorithm, with_algorithm
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


@pytest.mark.parametrize("name", [*sorted(RECIPES), *sorted(algorithm_entry_points())])
def test_every_number_has_a_range(name: str) -> None:
    for path, hint, _ in leaves(RECIPES[name]() if name in RECIPES else load_algorithm(name)()):
        if ".language." in path:
            continue  # the simulator knows nothing of configurations; its parts check themselves
        args = typing.get_args(hint)
        kinds = {hint, *args, *(a for arg in args for a in typing.get_args(arg))}
        if kinds & {int, float} and bool not in kinds:
            marks = [a for arg in (hint, *args) for a in (arg, *typing.get_args(arg)) if isinstance(a, Range)]
            assert marks, path


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
def test_a_value_outside_its_range_is_refused_everywhere(name: str) -> None:
    """Every bounded number of a recipe by any algorithm, pushed below and above its range."""
    config = with_algorithm(small_token_mdp(), load_algorithm(name))
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
        ({"algorithm__window": 2}, "algorithm.window", "more than algorithm.ignore_last (2)"),
        ({"algorithm__lam": 1.2}, "algorithm.lam", "[0, 1]"),
        ({"rollout__slots": 18}, "rollout.slots", "use 16"),
        ({"rollout__max_response_tokens": 7}, "rollout.max_response_tokens", "a cap shorter than the window"),
        ({"seed": -1}, "seed", "[0,"),
        ({"algorithm__boundary": "guess"}, "algorithm.boundary", "'repeat', 'critic', 'terminal'"),
        ({"algorithm__aggregation": "constant"}, "algorithm.aggregation", "one of 'token-mean'"),
        ({"algorithm__critic__aggregation": "constant"}, "algorithm.critic.aggregation", "one of 'token-mean'"),
        ({"algorithm__critic__clip_low": None}, "algorithm.critic.clip_low", "both clips or neither"),
        ({"algorithm__dual_clip": 1.28}, "algorithm.dual_clip", "more than 1 + clip_high (1.28)"),
        ({"algorithm__critic": None}, "algorithm.critic", "the fields of WindowedCriticOptions"),
        ({"algorithm__warmup_steps": 6}, "algorithm.warmup_steps", "never train"),
        ({"evaluation__stop_at": 0.9}, "evaluation.every", "above 0"),
        ({"task__num_tokens": 2}, "task.num_tokens", "at least 4"),
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


@pytest.mark.parametrize(
    ("name", "absent"),
    [
        ("ppo", ["window", "boundary", "ignore_last", "critic__responses", "critic__old_values"]),
        ("waiting", ["boundary", "ignore_last"]),
        ("waiting-behaviour", ["boundary", "ignore_last"]),
        ("value-pretraining", ["boundary", "ignore_last", "lam", "clip_low", "warmup_steps", "critic__responses"]),
    ],
)
def test_an_option_that_would_do_nothing_is_not_there(name: str, absent: list[str]) -> None:
    config = with_algorithm(small_token_mdp(), load_algorithm(name))
    for field in absent:
        with pytest.raises(ConfigError, match=f"{field.rpartition('__')[2]} = 'unknown': expected one of"):
            config.with_values(**{f"algorithm__{field}": 3})


def test_a_full_window_may_be_shorter_than_m() -> None:
    """Nothing is ever unfinished then, so nothing is dropped; one token less and it is refused."""
    config = small_token_mdp(algorithm__window=24, algorithm__ignore_last=100, algorithm__warmup_steps=0)
    validate(config)
    metrics = build_trainer(config).step().metrics
    assert metrics["dropped_tokens"] == 0
    assert metrics["trained_tokens"] == metrics["new_tokens"] > 0
    with pytest.raises(ConfigError, match="an unfinished window would train nothing"):
        validate(config.with_values(algorithm__window=23))


def test_unknown_field() -> None:
    with pytest.raises(ConfigError, match="windoww = 'unknown': expected one of"):
        small_token_mdp(algorithm__windoww=3)


def test_defaults_are_those_of_the_specification() -> None:
    """Section 3.12 of the algorithm specification, number by number."""
    a = TPPO()
    assert (a.gamma, a.lam_alpha, a.lam) == (1.0, 0.05, 0.95)
    assert (a.critic.lam, a.critic.clip_low, a.critic.clip_high) == (1.0, 0.5, 0.6)
    assert (a.warmup_steps, a.critic.old_values, a.critic.responses) == (10, "recompute", "finished")
    assert a.critic.aggregation == "seq-mean-token-mean"
    assert (a.clip_low, a.clip_high, a.dual_clip, a.imitate) == (0.2, 0.28, 10.0, 0.1)
    assert (a.entropy, a.kl, a.importance_cap, a.aggregation) == (0.0, 0.0, None, "token-mean")
    assert (a.ignore_last, a.window, a.boundary) == (8, 8192, "repeat")
    assert (a.whiten, a.clamp, a.bias) == (True, 10.0, 0.0)
    c = RunConfig(recipe="none", task=TaskConfig())
    assert c.algorithm == a
    assert (c.rollout.slots, c.rollout.group_size, c.rollout.max_response_tokens) == (8192, 16, 24576)
    assert (c.policy.lr, a.critic.lr, c.policy.weight_decay, c.policy.mini_batch, c.policy.epochs) == (
        8e-7, 2e-6, 0.1, 512, 1,
    )  # fmt: skip
    assert (a.critic.weight_decay, a.critic.mini_batch, a.critic.epochs, a.critic.start) == (0.1, 512, 1, "")
    validate(c)


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if n.removesuffix("-ppo") in set(RECIPES) - {n}))
def test_a_ppo_twin_differs_in_the_algorithm_alone(name: str) -> None:
    """Every number that both algorithms have is the same; the rest are the window's."""
    one, two = as_dict(RECIPES[name.removesuffix("-ppo")]()), as_dict(RECIPES[name]())
    different = {k for k in one if one[k] != two[k]}
    assert different == {"recipe", "algorithm"}
    mine, other = one["algorithm"], two["algorithm"]
    assert mine.keys() - other.keys() == {"window", "ignore_last", "boundary"}
    assert mine["critic"].keys() - other["critic"].keys() == {"responses", "old_values"}
    assert (mine["critic"]["responses"], mine["critic"]["old_values"]) == ("finished", "recompute")
    assert other["critic"].items() <= mine["critic"].items()
    assert {k for k in other if other[k] != mine[k]} == {"class", "critic"}
    assert (mine["class"], other["class"]) == ("tppo.algorithms.tppo:TPPO", "tppo.algorithms.ppo:PPO")


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_token_mdp().seed = 3  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        small_token_mdp().algorithm.window = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
def test_every_algorithm_runs_by_every_recipe_s_numbers(name: str) -> None:
    """Given by name, it takes over what the recipe sets wherever it has such a number, and nothing else; what it alone
    leaves out stays out.
    """
    source = small_token_mdp(algorithm__critic__lr=0.03, algorithm__window=6, algorithm__lam=0.7)
    config = with_algorithm(source, load_algorithm(name))
    validate(config)
    assert type(config.algorithm) is load_algorithm(name)
    assert dataclasses.replace(config, algorithm=source.algorithm) == source
    own, there = as_dict(config)["algorithm"], as_dict(source)["algorithm"]
    fresh, usual = dataclasses.asdict(load_algorithm(name)()), dataclasses.asdict(type(source.algorithm)())

    def expected(fresh: dict[str, Any], there: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
        sets = {k for k in fresh.keys() & there.keys() if there[k] != usual[k]}
        return {k: there[k] if k in sets and not (v is None and usual[k] is not None) else v for k, v in fresh.items()}

    flat = [{k: v for k, v in tree.items() if k not in ("class", "critic")} for tree in (own, fresh, there, usual)]
    assert flat[0] == expected(*flat[1:])
    if "critic" in own:
        assert own["critic"] == expected(fresh["critic"], there["critic"], usual["critic"])
        assert with_algorithm(config, TPPO).algorithm.critic.lr == 0.03  # type: ignore[attr-defined]


def test_a_value_that_the_other_algorithm_does_not_allow_stays_behind() -> None:
    """Value pretraining may have no window; T-PPO must."""
    config = dataclasses.replace(small_token_mdp(), algorithm=ValuePretraining(window=None, gamma=0.9))
    assert with_algorithm(config, TPPO).algorithm == TPPO(gamma=0.9, critic=WindowedCriticOptions())
    assert carried(PPO(lam_alpha=None), TPPO()).lam_alpha is None
