"""Commands that look and count: recipes, algorithms, show, plan, study."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from tppo.cli.fields import configure, say_unused
from tppo.errors import ConfigError

if TYPE_CHECKING:
    from tppo.algorithms.base import Algorithm


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
    """List the algorithms: what each needs, its source, where it departs from that, and its own numbers."""
    import dataclasses

    from tppo.config.registry import algorithm_entry_points, load_algorithm

    for name in algorithm_entry_points():
        print(f"{name:<20} {first_line(name, load_algorithm)}")
        with contextlib.suppress(ConfigError):
            kind = load_algorithm(name)
            for line in (*about(kind), ", ".join(field.name for field in dataclasses.fields(kind))):
                print(f"{'':<20} {line}")
    return 0


def about(kind: type[Algorithm]) -> Iterator[str]:
    """What an algorithm needs, its sources, and its departures from them, as its module says."""
    from tppo.algorithms.base import Rollout

    parts = kind().parts(Rollout())
    networks = ["policy"] * bool(parts.terms) + [aux.name for aux in parts.auxiliaries]
    text = sys.modules[kind.__module__].__doc__ or ""
    sources = ", ".join(f"arXiv {number}" for number in dict.fromkeys(re.findall(r"\b\d{4}\.\d{5}\b", text)))
    yield f"trains on: {parts.select.__name__.replace('_', ' ')}; networks: {', '.join(networks)}"
    yield f"source: {sources or 'ours'}"
    if found := re.search(r"^Departures: (.*?)(?:\n\n|\n[A-Z][\w ]*:|\Z)", text, re.DOTALL | re.MULTILINE):
        yield f"departures: {' '.join(found[1].split())}"


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
