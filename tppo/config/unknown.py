"""An option of the command line that no field has: what is there instead."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tppo.config.registry import algorithm_entry_points, load_algorithm
from tppo.errors import ConfigError

if TYPE_CHECKING:
    from tppo.config.run import RunConfig


def unknown_option(args: Sequence[str], config: RunConfig, command: str, own: Sequence[str] = ()) -> ConfigError:
    """The error for the first of these options, with the fields that are there.

    args: as typed, those that belong to no field. command: whose --help shows all fields. own: its own flags.
    """
    at = next((i for i, arg in enumerate(args) if arg.startswith("--")), None)
    if at is None:
        return ConfigError("options", " ".join(args), "--any.field value", f"see '{command} --help'")
    name, equals, value = args[at].removeprefix("--").partition("=")
    if not equals and at + 1 < len(args) and not args[at + 1].startswith("--"):
        value = args[at + 1]
    part: Any = config
    *steps, leaf = name.replace("-", "_").split(".")
    path: list[str] = []
    for step in [*steps, leaf]:
        if not dataclasses.is_dataclass(inner := getattr(part, step, None)):
            break
        path.append(step)
        part = inner
    known = [field.name for field in dataclasses.fields(part)]
    remedy = f"see '{command} --help'"
    if whole := [f for f in [*own, *_fields(config)] if _abbreviates([*steps, leaf], f.split("."))]:
        shown = " or ".join(f"--{field.replace('_', '-')}" for field in whole[:3])
        remedy = f"{shown} may be meant: a flag is given by its whole name; {remedy}"
    elif leaf in known:
        remedy = f"--{'.'.join([*path, leaf])} may be meant; {remedy}"
    elif path == ["algorithm"] and (owners := _algorithms_with(leaf)):
        remedy = f"algorithms that have one: {', '.join(owners)}; {remedy}"
    return ConfigError(name, value, f"one of the fields of {type(part).__name__}: {', '.join(known)}", remedy)


def _fields(config: Any, path: str = "") -> Iterator[str]:
    """Paths of all fields that hold a value, from the root."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _fields(value, f"{path}{field.name}.")
        else:
            yield path + field.name


def _abbreviates(typed: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether each part of a name begins the part of another: ``polic.lr`` of ``policy.lr``."""
    return len(typed) == len(whole) and all(w.startswith(t) for t, w in zip(typed, whole, strict=True))


def _algorithms_with(field: str) -> list[str]:
    """Installed algorithms that have such a number."""
    return [
        name
        for name in algorithm_entry_points()
        if any(own.name == field for own in dataclasses.fields(load_algorithm(name)))
    ]
