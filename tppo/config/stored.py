"""The configuration of a run as plain values, written down and read back."""

from __future__ import annotations

import dataclasses
import typing
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from tppo.algorithms.base import Algorithm
from tppo.config.recipes import recipe_entry_points
from tppo.config.registry import algorithm_entry_points
from tppo.config.run import RunConfig, TaskConfig
from tppo.errors import ConfigError, DataError, FormatError
from tppo.files import parse_json, read_file
from tppo.ranges import check_ranges
from tppo.shapes import misfit

T = TypeVar("T")


class _Tree(TypedDict):
    """What ``as_dict`` writes down, as far as it is read before its classes are known."""

    task: dict[str, Any]
    algorithm: dict[str, Any]


FORMAT = 2
"""Of config.json. 1 had options that all algorithms shared; 2 names the algorithm's class and its own numbers."""


def as_dict(config: RunConfig) -> dict[str, Any]:
    """A configuration tree as plain values, with the classes of task and algorithm so that it can be read back."""
    tree = dataclasses.asdict(config)
    for name in ("task", "algorithm"):
        kind = type(getattr(config, name))
        tree[name] = {"class": f"{kind.__module__}:{kind.__qualname__}", **tree[name]}
    return tree


def read_config(run: Path) -> RunConfig:
    """The configuration in ``run/config.json``. Raises ConfigError when there is none, else as ``config_of``."""
    path = run / "config.json"
    try:
        tree = parse_json(read_file(path))["config"]
    except OSError as error:
        raise ConfigError("run", str(run), "a folder with a config.json", str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a run's configuration: {type(error).__name__}: {error}") from None
    return config_of(tree, path)


def config_of(tree: Any, path: Path) -> RunConfig:
    """The configuration that ``as_dict`` wrote down, from ``path``. Raises DataError, FormatError, ConfigError.

    Classes of task and algorithm are looked up by name, so only those of packages with recipes, and of modules with
    algorithms, that installed entry points lead to are accepted: a file from elsewhere cannot make this import what it
    likes.
    """
    if wrong := misfit(_Tree, tree, "config"):
        raise DataError(f"{path} is not a run's configuration: {wrong}")
    task, algorithm = dict(tree["task"]), dict(tree["algorithm"])
    task_class, algorithm_class = task.pop("class", None), algorithm.pop("class", None)
    if algorithm_class is None:
        raise FormatError(
            f"{path}: format 1, written before algorithms had numbers of their own; expected format {FORMAT}. "
            "Go on with it by the version that wrote it (its config.json names the revision), or train again"
        )
    homes = {e.value.partition(":")[0].partition(".")[0] for e in recipe_entry_points().values()}
    of_task = _class(task_class, homes, TaskConfig, "task", path)
    homes = {e.value.partition(":")[0] for e in algorithm_entry_points().values()}
    of_algorithm = _class(algorithm_class, homes, Algorithm, "algorithm", path)
    parts = {"task": _rebuild(of_task, task, path), "algorithm": _rebuild(of_algorithm, algorithm, path)}
    config = _rebuild(RunConfig, tree | parts, path)
    check_ranges(config)  # a file is edited by hand, and what reads the configuration next trusts its types
    return config


def _class(value: Any, homes: set[str], base: type[T], what: str, path: Path) -> type[T]:
    """The class that a stored name leads to, from one of these modules or the packages below them."""
    module, _, name = str(value).partition(":")
    if not any(module == home or module.startswith(home + ".") for home in homes):
        raise DataError(f"{path}: {what} class '{value}' belongs to no installed package of recipes or algorithms")
    try:
        cls = getattr(import_module(module), name, None)
    except ImportError as error:
        raise DataError(f"{path}: {what} class '{value}' cannot be imported: {error}") from None
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise DataError(f"{path}: '{value}' is not a class of {what}s")
    return cls


def _rebuild(cls: type, tree: dict[str, Any], path: Path) -> Any:
    if unknown := set(tree) - {f.name for f in dataclasses.fields(cls)}:
        raise DataError(f"{path}: unknown field(s) {sorted(unknown)} of {cls.__name__}")
    hints = typing.get_type_hints(cls)

    def value_of(hint: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, dict):
            return _rebuild(hint, value, path)
        return tuple(value) if typing.get_origin(hint) is tuple else value

    try:
        return cls(**{name: value_of(hints[name], value) for name, value in tree.items()})
    except (TypeError, ValueError, OverflowError) as error:  # ValueError: of a part that checks itself
        raise DataError(f"{path}: {cls.__name__}: {error}") from None
