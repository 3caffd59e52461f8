"""A recipe: a function that returns a configuration, and the name that both of them bear.

The name is written where the recipe is made. pyproject.toml repeats it, as an entry point of the command line;
tests/paper/test_recipes.py holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

from tppo.config.run import RunConfig


class Recipe:
    """Called without arguments, as an entry point is, it makes its configuration."""

    def __init__(self, name: str, make: Callable[[str], RunConfig]) -> None:
        self.name, self.make, self.__doc__ = name, make, make.__doc__

    def __call__(self) -> RunConfig:
        return self.make(self.name)


def recipe(name: str) -> Callable[[Callable[[str], RunConfig]], Recipe]:
    """Turn a function of the recipe's name into the recipe of that name."""
    return lambda make: Recipe(name, make)


def recipes_of(*modules: ModuleType) -> dict[str, Recipe]:
    """Name to recipe, of those made in these modules."""
    return {found.name: found for m in modules for found in vars(m).values() if isinstance(found, Recipe)}
