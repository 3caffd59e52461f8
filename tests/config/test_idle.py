"""What has no effect where it is given is said once; what a recipe brings along is not worth a word."""

from __future__ import annotations

from typing import Any

import pytest

from paper_repro.recipes.registry import RECIPES
from paper_repro.tasks.pretrained import MathDataTask
from tppo.config.idle import idle, unused
from tppo.config.registry import algorithm_entry_points, load_algorithm, with_algorithm
from tppo.config.run import RunConfig, validate
from tppo.ranges import fields_of


def lines(recipe: str, *given: str, algorithm: str | None = None, **changes: Any) -> list[str]:
    """What is said of these changes, and of more fields that were given."""
    config: RunConfig = RECIPES[recipe]()
    if algorithm is not None:
        config = with_algorithm(config, load_algorithm(algorithm))
    config = config.with_values(**changes)
    validate(config)
    return unused(config, [*given, *(name.replace("__", ".") for name in changes)])


@pytest.mark.parametrize(
    ("recipe", "changes", "says"),
    [
        ("toy-language", {"vllm__max_rows": 8}, "vllm.max_rows = 8 has no effect: the engine is 'torch'"),
        ("toy-language", {"vllm__own_process": True}, "vllm.own_process = True has no effect: the engine is 'torch'"),
        ("token-mdp", {"compute__recompute": True}, "compute.recompute = True has no effect: a table of logits has no"),
        ("token-mdp", {"task__tail": 2.0}, "task.tail = 2.0 has no effect: reasoning_ladder does not read it"),
        (
            "token-mdp",
            {"checkpoint__keep_best": 3, "evaluation__every": 0},
            "checkpoint.keep_best = 3 has no effect: nothing is evaluated while the run trains",
        ),
        (
            "token-mdp",
            {"checkpoint__keep_best": 3, "checkpoint__every": 0},
            "checkpoint.keep_best = 3 has no effect: checkpoint.every is 0",
        ),
        ("token-mdp", {"evaluation__every": 101}, "evaluation.every = 101 has no effect: the run has 100 steps"),
        (
            "token-mdp",
            {"checkpoint__every": 500},
            "checkpoint.every = 500 has no effect: the run has 100 steps, and",
        ),
        (
            "token-mdp",
            {"policy__mini_batch": 129},
            "policy.mini_batch = 129 has no effect: a step has 128 responses at most (rollout.slots), all in one",
        ),
        (
            "token-mdp",
            {"rollout__slots": 16, "algorithm__critic__mini_batch": 32},
            "algorithm.critic.mini_batch = 32 has no effect: a step has 16 responses at most",
        ),
        (
            "token-mdp",
            {"algorithm__window": 64, "algorithm__boundary": "critic"},
            "algorithm.boundary = 'critic' has no effect: no response is cut: the window is as long as rollout.max",
        ),
    ],
)
def test_what_has_no_effect_is_said(recipe: str, changes: dict[str, Any], says: str) -> None:
    found = lines(recipe, **changes)
    assert len(found) == 1, found
    assert found[0].startswith(says)


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [
        ("smollm2-135m", {"vllm__max_rows": 8}),
        ("toy-language", {"compute__recompute": True, "compute__packed": True}),
        ("token-mdp", {"checkpoint__keep_best": 3}),
        ("token-mdp", {"checkpoint__keep_best": 0, "evaluation__every": 0}),  # off, as it would be
        ("toy-language", {"vllm__sleep": False}),
        ("token-mdp", {"evaluation__every": 100, "checkpoint__every": 100}),
        ("token-mdp", {"policy__mini_batch": 128}),
        ("token-mdp", {"task__family": "tailed_length", "task__tail": 2.0}),
        ("token-mdp", {"algorithm__boundary": "critic"}),
    ],
)
def test_what_has_an_effect_is_not_spoken_of(recipe: str, changes: dict[str, Any]) -> None:
    assert lines(recipe, **changes) == []


def test_algorithms_say_what_is_off() -> None:
    """Value pretraining without a criterion, and its policy, which is never trained."""
    name = "value-pretraining"
    found = lines("token-mdp", algorithm=name, algorithm__over=3, algorithm__least_gain=0.5, policy__lr=0.1)
    assert [line.partition(" has no effect: ")[2] for line in found] == [
        "explained_variance and patience are off", "patience is off", "value-pretraining does not train the policy",
    ]  # fmt: skip
    assert lines("token-mdp", algorithm=name, algorithm__over=3, algorithm__patience=9, algorithm__least_gain=0.5) == []
    waits = lines("token-mdp", algorithm="waiting", algorithm__window=64, algorithm__critic__old_values="stored")
    assert len(waits) == 1


def test_sources_of_data_say_what_they_do_not_read() -> None:
    found = lines("qwen2.5-0.5b-tppo", task__held_out__split="test", task__train__rows_key="rows")
    assert found == [
        "task.held_out.split = 'test' has no effect: the problems come from a file",
        "task.train.rows_key = 'rows' has no effect: the problems come from no .json file",
    ]
    assert lines("qwen2.5-0.5b-tppo", task__train__split="test") == []


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_alone_says_nothing(name: str) -> None:
    assert unused(RECIPES[name](), []) == []


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
@pytest.mark.parametrize("recipe", ["token-mdp", "toy-language", "qwen2.5-0.5b-ppo"])
def test_only_fields_that_exist_are_named(recipe: str, name: str) -> None:
    """By any algorithm; a name that leads nowhere would never be found among those that are given."""
    config = with_algorithm(RECIPES[recipe](), load_algorithm(name))
    config = config.with_values(rollout__slots=16, evaluation__every=0, steps=30)
    for path in idle(config):
        part: Any = config
        for step in path.split("."):
            assert step in [field for field, _, _ in fields_of(part)], path
            part = getattr(part, step)


def test_more_reasons_of_a_command_are_heard() -> None:
    config = RECIPES["token-mdp"]()
    assert unused(config, ["steps"], {"steps": "an evaluation trains nothing"}) == [
        "steps = 100 has no effect: an evaluation trains nothing"
    ]
    assert isinstance(RECIPES["qwen2.5-7b-ppo"]().task, MathDataTask)
