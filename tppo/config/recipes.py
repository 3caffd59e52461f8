"""Recipes are functions that return a RunConfig, found through the entry points ``tppo.recipes`` of any package."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING

from tppo.environment import plugins
from tppo.errors import ConfigError

if TYPE_CHECKING:
    from tppo.config.run import RunConfig

GROUP = "tppo.recipes"


def recipe_entry_points() -> dict[str, EntryPoint]:
    """Name to entry point, sorted; nothing is imported."""
    return plugins(GROUP)


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe. Raises ConfigError for an unknown name."""
    known = recipe_entry_points()
    if name not in known:
        raise ConfigError("recipe", name, "one of " + ", ".join(known), "see 'tppo recipes'")
    return known[name].load()()
