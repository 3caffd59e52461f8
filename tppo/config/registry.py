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
    """The same run by another algorithm. A number that the recipe has set goes along where the other one has it too.

    So a recipe's learning rate of the critic, window or warm-up stays what it was tuned to, and whatever it left alone
    is the other algorithm's own. What only the other one leaves out (None) stays out, such as the window of GRPO.
    """
    return dataclasses.replace(config, algorithm=carried(config.algorithm, kind()))


def carried(source: Any, target: T, *, usual: Any = None) -> T:
    """``target`` with the values that ``source`` has under the same names and ``usual`` has not, wherever its own types
    allow them. usual: by default what ``source`` is where nothing is set.
    """
    usual = type(source)() if usual is None else usual
    changes: dict[str, Any] = {}
    for name, hint, value in fields_of(target):
        if not hasattr(source, name):
            continue
        found, ordinary = getattr(source, name), getattr(usual, name)
        if value is None and ordinary is not None:
            continue
        if dataclasses.is_dataclass(value):
            changes[name] = carried(found, value, usual=ordinary)
            continue
        if found == ordinary:
            continue
        try:
            check_leaf(name, hint, found)
        except ConfigError:
            continue
        changes[name] = found
    return dataclasses.replace(target, **changes)  # type: ignore[type-var]
