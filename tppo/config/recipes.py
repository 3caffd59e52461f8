"""Recipes are functions that return a RunConfig, found through the entry points ``tppo.recipes`` of any package."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from tppo.errors import ConfigError

if TYPE_CHECKING:
    from tppo.config.run import RunConfig

GROUP = "tppo.recipes"


def recipe_entry_points() -> dict[str, EntryPoint]:
    """Name to entry point, sorted; nothing is imported."""
    return {e.name: e for e in sorted(entry_points(group=GROUP), key=lambda e: e.name)}


def load_recipe(name: str) -> RunConfig:
    """The configuration of a recipe. Raises ConfigError for an unknown name."""
    known = recipe_entry_points()
    if name not in known:
        raise ConfigError("recipe", name, "one of " + ", ".join(known), "see 'tppo recipes'")
    return known[name].load()()
