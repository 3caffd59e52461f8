"""Commands that look and count: recipes, algorithms, show, plan, study."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Callable
from typing import Any

from tppo.cli.fields import configure, say_unused
from tppo.errors import ConfigError


def recipes(known: argparse.Namespace, rest: list[str]) -> int:
    """List the recipes."""
    from tppo.config.recipes import find_recipe, recipe_entry_points

    for name in recipe_entry_points():
        print(f"{name:<20} {first_line(name, find_recipe)}")
    return 0


def first_line(name: str, load: Callable[[str], Any]) -> str:
    """Of what a plugin says of itself; of one that cannot be imported, why. The list goes on with the others."""
    try:
        doc = load(name).__doc__
    except ConfigError as error:
        doc = f"cannot be used: {error}"
    return next(iter((doc or "").strip().splitlines()), "")


def algorithms(known: argparse.Namespace, rest: list[str]) -> int:
    """List the algorithms, with their own numbers."""
    import dataclasses

    from tppo.config.registry import algorithm_entry_points, load_algorithm

    for name in algorithm_entry_points():
        print(f"{name:<20} {first_line(name, load_algorithm)}")
        with contextlib.suppress(ConfigError):
            print(f"{'':<20} {', '.join(field.name for field in dataclasses.fields(load_algorithm(name)))}")
    return 0


def show(known: argparse.Namespace, rest: list[str]) -> int:
    """Print a resolved configuration."""
    config = configure(known, rest)
    say_unused(config, rest)
    from tppo.config.stored import as_dict

    print(json.dumps(as_dict(config), indent=2))
    return 0


def plan(known: argparse.Namespace, rest: list[str]) -> int:
    """Memory and time of a launch."""
    from tppo.plan.command import command, print_help

    if known.recipe is None and {"-h", "--help"} & set(rest):
        print_help()
        return 0
    return command(known, configure(known, rest))


def study(known: argparse.Namespace, rest: list[str]) -> int:
    """Run a study, or all of them."""
    from tppo.studies import command

    return command.study(known)
