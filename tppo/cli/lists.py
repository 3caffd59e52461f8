"""Commands that look and count: recipes, algorithms, show, plan, study."""

from __future__ import annotations

import argparse
import json

from tppo.cli.fields import configure, say_unused


def recipes(known: argparse.Namespace, rest: list[str]) -> int:
    """List the recipes."""
    from tppo.config.recipes import recipe_entry_points

    for name, entry in recipe_entry_points().items():
        doc = (entry.load().__doc__ or "").strip().splitlines()
        print(f"{name:<20} {doc[0] if doc else ''}")
    return 0


def algorithms(known: argparse.Namespace, rest: list[str]) -> int:
    """List the algorithms, with their own numbers."""
    import dataclasses

    from tppo.config.registry import algorithm_entry_points, load_algorithm

    for name in algorithm_entry_points():
        kind = load_algorithm(name)
        doc = (kind.__doc__ or "").strip().splitlines()
        print(f"{name:<20} {doc[0] if doc else ''}")
        print(f"{'':<20} {', '.join(field.name for field in dataclasses.fields(kind))}")
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
