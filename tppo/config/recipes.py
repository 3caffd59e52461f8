"""Recipes are functions that return a RunConfig, found through the entry points ``tppo.recipes`` of any package."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any

from tppo.environment import in_one_line, load_plugin, plugins
from tppo.errors import ConfigError, TPPOError

if TYPE_CHECKING:
    from tppo.config.run import RunConfig

GROUP = "tppo.recipes"


def recipe_entry_points() -> dict[str, EntryPoint]:
    """Name to entry point, sorted; nothing is imported."""
    return plugins(GROUP)


def find_recipe(name: str) -> Callable[[], Any]:
    """The function. Raises ConfigError for an unknown name, and for one that cannot be imported."""
    found: Callable[[], Any] = load_plugin(recipe_entry_points(), "recipe", name, "see 'tppo recipes'")
    return found


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe. Raises ConfigError as `find_recipe`, and for a function that fails or returns
    something else.
    """
    from tppo.config.run import RunConfig

    make = find_recipe(name)
    try:
        config = make()
    except TPPOError:
        raise
    except Exception as error:
        raise ConfigError("recipe", name, "a function that returns a configuration", in_one_line(error)) from error
    if not isinstance(config, RunConfig):
        raise ConfigError("recipe", name, f"a function that returns a tppo.RunConfig, found {type(config).__name__}")
    return config
