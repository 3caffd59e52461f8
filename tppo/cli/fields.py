"""Fields of a configuration, given on the command line as ``--any.field value``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tppo.cli.arguments import flag_name, flags, own_flags, usage
from tppo.environment import warn
from tppo.errors import ConfigError

if TYPE_CHECKING:
    from tppo.config.run import RunConfig


def configure(known: argparse.Namespace, rest: list[str]) -> RunConfig:
    """A recipe, by the algorithm that was asked for, with the fields that were typed. Raises ConfigError."""
    from tppo.config.recipes import load_recipe, recipe_entry_points
    from tppo.config.registry import load_algorithm, with_algorithm

    recipe, command = known.recipe, known.command
    if recipe is None:
        names = ", ".join(recipe_entry_points())
        if {"-h", "--help"} & set(rest):
            print(f"usage: {usage(f'{command} RECIPE')}\n\nrecipes: {names}")
            print(f"for all fields: tppo {command} RECIPE --help")
            raise SystemExit(0)
        raise ConfigError("recipe", None, f"a name: {names}")
    config, prog = load_recipe(recipe), f"tppo {command} {recipe}"
    if known.algorithm is not None:
        config = with_algorithm(config, load_algorithm(known.algorithm))
        prog += f" --algorithm {known.algorithm}"
    return override(config, rest, prog, own=own_flags(known))


def override(config: RunConfig, rest: list[str], prog: str, *, own: Sequence[str] = ()) -> RunConfig:
    """A configuration with the fields that were typed, checked. Raises ConfigError.

    own: names of the command's own flags.
    """
    import tyro

    from tppo.config.run import validate
    from tppo.config.unknown import unknown_option

    name = config.recipe
    try:
        config, unknown = tyro.cli(type(config), default=config, args=rest, prog=prog, return_unknown_args=True)
    except ValueError as error:  # a part of the task that checks itself
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(config.recipe, " ".join(rest), "values that its parts accept", str(error)) from None
    if unknown:
        raise unknown_option(unknown, config, prog, own)
    if config.recipe != name:
        raise ConfigError("recipe", config.recipe, f"{name!r}, the recipe named first on the command line")
    validate(config)
    return config


def say_unused(config: RunConfig, rest: list[str], more: Mapping[str, str] | None = None) -> None:
    """Warn of every field that was typed and has no effect. more: fields that the command does not read, and why."""
    from tppo.config.idle import unused

    for line in unused(config, map(flag_name, flags(rest)), more):
        warn(line)
