"""Every number of a configuration has a largest and a smallest value: none can overflow, or go on for ever."""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, Any

import pytest

from paper_repro.comparisons.aime import EvalCommand
from tests.support.helpers import small_token_mdp
from tppo.config.demand import demand
from tppo.config.recipes import load_recipe, recipe_entry_points
from tppo.config.registry import algorithm_entry_points, load_algorithm, with_algorithm
from tppo.config.run import RunConfig, validate
from tppo.data.sources import DataSource
from tppo.errors import ConfigError
from tppo.evaluation.run import EvalSettings
from tppo.fit.options import Optimizer
from tppo.models.options import Compute
from tppo.ranges import SEED, Range, check_ranges, fields_of

KINDS = (DataSource, EvalSettings, EvalCommand, Optimizer, Compute)
"""Dataclasses of numbers that are no recipe's, or not every recipe's."""


def flat(hint: Any) -> list[Any]:
    """A type, and everything it is made of."""
    return [hint, *(x for a in typing.get_args(hint) for x in flat(a))]


def numbers(hint: Any) -> bool:
    return bool({int, float} & {part for part in flat(hint) if isinstance(part, type)})


def unlimited(kind: Any) -> list[str]:
    """Fields of a dataclass, and of the dataclasses in it, that may be a number without a finite range."""
    found = []
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        parts = flat(hints[field.name])
        if numbers(hints[field.name]) and not any(isinstance(p, Range) and p.finite for p in parts):
            found.append(f"{kind.__module__}.{kind.__qualname__}.{field.name}")
        found += [name for part in parts if isinstance(part, type) and dataclasses.is_dataclass(part)
                  for name in unlimited(part)]  # fmt: skip
    return found


def kinds_in(config: Any) -> Iterator[type]:
    """Classes of a tree of dataclasses, those of the simulator left out: it has no ranges and checks itself."""
    if not type(config).__module__.startswith("sim."):
        yield type(config)
        for field in dataclasses.fields(config):
            if dataclasses.is_dataclass(value := getattr(config, field.name)):
                yield from kinds_in(value)


def own(kind: type) -> list[str]:
    return [name for name in unlimited(kind) if not name.startswith("sim.")]


@pytest.mark.parametrize("name", sorted(recipe_entry_points()))
def test_no_number_of_a_recipe_is_without_limits(name: str) -> None:
    assert [field for kind in dict.fromkeys(kinds_in(load_recipe(name))) for field in own(kind)] == []


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
def test_no_number_of_an_algorithm_is_without_limits(name: str) -> None:
    assert unlimited(load_algorithm(name)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_number_is_without_limits(kind: type) -> None:
    assert own(kind) == []


@dataclasses.dataclass(frozen=True)
class Inner:
    bare: float = 0.0


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner
    good: Annotated[int, Range(0, 5)] = 0
    half: Annotated[int, Range(0)] | None = None
    name: str = ""


def test_the_search_finds_what_has_no_limit() -> None:
    assert [name.rpartition(".")[2] for name in unlimited(Outer)] == ["bare", "half"]


def paths(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, hint, value in fields_of(config):
        here = f"{path}__{name}" if path else name
        if dataclasses.is_dataclass(value):
            yield from paths(value, here)
        elif numbers(hint) and bool not in flat(hint):
            yield here, int if int in flat(hint) else float


HUGE = {int: (10**9 + 1, 10**30, -(10**30), 10**5000), float: (1e308, -1e308, float("inf"), 10**400)}
LARGE = ("seed", "made__largest")
"""What may be larger than 10^9."""


@pytest.mark.parametrize(
    ("recipe", "algorithm"),
    [("toy-language", "tppo"), ("smollm2-135m", "ppo"), *(("token-mdp", name) for name in algorithm_entry_points())],
)
def test_huge_numbers_are_refused_by_their_own_name(recipe: str, algorithm: str) -> None:
    config = with_algorithm(load_recipe(recipe), load_algorithm(algorithm))
    tried = 0
    for path, kind in paths(config):
        for value in HUGE[kind][path.endswith(LARGE) :]:
            with pytest.raises(ValueError) as caught:  # noqa: PT011 (a ConfigError is one, and the simulator's own)
                check_ranges(config.with_values(**{path: value}))
            if isinstance(caught.value, ConfigError):
                assert caught.value.field == path.replace("__", "."), value
            else:
                assert "language" in path
            tried += 1
    assert tried > 150


def test_the_ends_of_the_ranges_are_refused_by_config_errors_alone() -> None:
    """Each number at either end of its range: accepted, or impossible beside the others; nothing overflows."""
    config: RunConfig = small_token_mdp()
    accepted = 0
    for path, kind in paths(config):
        for mark in (part for part in flat(hint_of(config, path)) if isinstance(part, Range)):
            for value in (mark.low, mark.high):
                with contextlib.suppress(ConfigError):
                    changed = config.with_values(**{path: kind(value)})
                    validate(changed)
                    assert demand(changed)
                    accepted += 1
    assert accepted > 50


def hint_of(config: Any, path: str) -> Any:
    *steps, leaf = path.split("__")
    for step in steps:
        config = getattr(config, step)
    return next(hint for name, hint, _ in fields_of(config) if name == leaf)


def test_nobody_who_means_it_is_refused() -> None:
    """The largest runs of today, and some beyond them."""
    large = load_recipe("qwen2.5-32b-tppo").with_values(
        steps=1_000_000, rollout__slots=100_000, rollout__group_size=100, rollout__max_response_tokens=131_072 - 2048,
        algorithm__window=65_536, compute__micro_batch_tokens=1_000_000, vllm__tensor_parallel=64,
        vllm__max_model_tokens=131_072, vllm__max_rows=100_000, evaluation__problems=100_000,
        evaluation__samples=1024, policy__epochs=100, policy__mini_batch=100_000, seed=SEED,
        phase_limit_seconds=864_000.0, task__grader_workers=1024,
    )  # fmt: skip
    validate(large)
    assert demand(large)
    for field in ("steps", "rollout__slots", "evaluation__problems", "compute__micro_batch_tokens"):  # and nobody else
        with pytest.raises(ConfigError, match=field.replace("__", r"\.")):
            validate(large.with_values(**{field: 10**12}))
