"""The configuration of a run as plain values, written down and read back."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from tppo.algorithms.base import Algorithm
from tppo.config.recipes import recipe_entry_points
from tppo.config.registry import algorithm_entry_points
from tppo.config.run import RunConfig, TaskConfig
from tppo.environment import in_one_line
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
        tree[name] = {"class": class_name(type(getattr(config, name))), **tree[name]}
    return tree


def class_name(kind: type) -> str:
    """``module:name`` by which other processes find a class. For one of the program that runs, `__main__` there, this
    is the name under which its file is imported.

    >>> class_name(FormatError)
    'tppo.errors:FormatError'
    """
    module = kind.__module__
    if module == "__main__":
        main = sys.modules[module]
        spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
        module = spec.name.removesuffix(".__main__") if spec else Path(file).stem if file else module
    return f"{module}:{kind.__qualname__}"


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

    Classes of task and algorithm are looked up by name, so only those of packages and modules that installed entry
    points of recipes and algorithms lead to are imported: a file from elsewhere cannot make this import what it likes.
    What the program that runs defines itself is accepted too.
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
    of_task = _class(task_class, TaskConfig, "task", path)
    of_algorithm = _class(algorithm_class, Algorithm, "algorithm", path)
    parts = {"task": _rebuild(of_task, task, path), "algorithm": _rebuild(of_algorithm, algorithm, path)}
    config = _rebuild(RunConfig, tree | parts, path)
    check_ranges(config)  # a file is edited by hand, and what reads the configuration next trusts its types
    return config


def _class(value: Any, base: type[T], what: str, path: Path) -> type[T]:
    """The class that a stored name leads to. Raises DataError."""
    module, _, name = str(value).partition(":")
    for kind in _derived(base):
        if kind.__module__ == "__main__" and class_name(kind) == value:
            return kind
    if module.partition(".")[0] not in _homes():
        raise DataError(
            f"{path}: {what} class '{value}' belongs to no installed package of recipes or algorithms; expected "
            "one that an entry point of 'tppo.recipes' or 'tppo.algorithms' leads to, on the path of this process"
        )
    try:
        cls: Any = import_module(module)
        for part in name.split("."):
            cls = getattr(cls, part, None)
    except (Exception, SystemExit) as error:  # a module may raise anything while it is imported
        raise DataError(f"{path}: {what} class '{value}' cannot be imported: {in_one_line(error)}") from error
    if not (isinstance(cls, type) and issubclass(cls, base)):
        where = " defined inside a function, where no other process finds it" if "<locals>" in name else ""
        raise DataError(f"{path}: '{value}' is not a class of {what}s{where}")
    return cls


def _homes() -> set[str]:
    """Top-level modules of the installed packages that bring recipes or algorithms."""
    entries = [*recipe_entry_points().values(), *algorithm_entry_points().values()]
    homes = {entry.module.partition(".")[0] for entry in entries}
    for package in {entry.dist.name: entry.dist for entry in entries if entry.dist is not None}.values():
        homes |= set((package.read_text("top_level.txt") or "").split())
    return homes


def _derived(base: type[T]) -> Iterator[type[T]]:
    """All classes of this process that derive from one, newest last."""
    for kind in base.__subclasses__():
        yield kind
        yield from _derived(kind)


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
