"""Algorithms by name, found through the entry points ``tppo.algorithms`` of any package."""

from __future__ import annotations

import dataclasses
from importlib.metadata import EntryPoint
from typing import TYPE_CHECKING, Any, TypeVar

from tppo.environment import load_plugin, plugins
from tppo.errors import ConfigError
from tppo.ranges import check_leaf, fields_of

if TYPE_CHECKING:
    from tppo.algorithms.base import Algorithm
    from tppo.config.run import RunConfig

GROUP = "tppo.algorithms"
T = TypeVar("T")


def algorithm_entry_points() -> dict[str, EntryPoint]:
    """Name to entry point, sorted; nothing is imported."""
    return plugins(GROUP)


def load_algorithm(name: str) -> type[Algorithm]:
    """The class of an algorithm. Raises ConfigError for an unknown name, or one that is no algorithm or cannot be
    imported.
    """
    from tppo.algorithms.base import Algorithm

    found = load_plugin(algorithm_entry_points(), "algorithm", name, "see 'tppo algorithms'")
    if not (isinstance(found, type) and issubclass(found, Algorithm) and dataclasses.is_dataclass(found)):
        raise ConfigError("algorithm", name, "a dataclass that derives from tppo.Algorithm", f"found {found!r}")
    return found


def with_algorithm(config: RunConfig, kind: type[Algorithm]) -> RunConfig:
    """The same run by another algorithm. A number that both have keeps the value that it has here.

    So a recipe's learning rate of the critic, window or warm-up goes along where the other algorithm has one too.
    """
    return dataclasses.replace(config, algorithm=carried(config.algorithm, kind()))


def carried(source: Any, target: T) -> T:
    """``target`` with the values that ``source`` has under the same names, wherever its own types allow them."""
    changes: dict[str, Any] = {}
    for name, hint, value in fields_of(target):
        if not hasattr(source, name):
            continue
        found = getattr(source, name)
        if dataclasses.is_dataclass(value):
            changes[name] = carried(found, value)
            continue
        try:
            check_leaf(name, hint, found)
        except ConfigError:
            continue
        changes[name] = found
    return dataclasses.replace(target, **changes)  # type: ignore[type-var]
