"""The configuration of a run as plain values, and read back from them."""

from __future__ import annotations

import dataclasses
import json
import typing
from importlib import import_module
from pathlib import Path
from typing import Any

from tppo.config.recipes import recipe_entry_points
from tppo.config.run import RunConfig, TaskConfig
from tppo.errors import ConfigError, DataError
from tppo.ranges import check_ranges


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration tree as plain values, with the class of the task so that it can be read back."""
    tree = dataclasses.asdict(config)
    tree["task"] = {"class": f"{type(config.task).__module__}:{type(config.task).__qualname__}", **tree["task"]}
    return tree


def read_config(run: Path) -> RunConfig:
    """The configuration in ``run/config.json``. Raises ConfigError when there is none, else as ``config_of``."""
    path = run / "config.json"
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))["config"]
    except OSError as error:
        raise ConfigError("run", str(run), "a folder with a config.json", str(error)) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a run's configuration: {type(error).__name__}: {error}") from None
    return config_of(tree, path)


def config_of(tree: Any, path: Path) -> RunConfig:
    """The configuration that ``as_dict`` wrote down, from ``path``. Raises DataError, ConfigError.

    The task class is looked up by name, so only classes that installed recipes use are accepted: a file from elsewhere
    cannot make this import what it likes.
    """
    try:
        task = dict(tree["task"])
        module, _, name = task.pop("class").partition(":")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not a run's configuration: {type(error).__name__}: {error}") from None
    homes = {e.value.partition(":")[0].rpartition(".")[0] for e in recipe_entry_points().values()}
    if not any(module == home or module.startswith(home + ".") for home in homes):
        raise DataError(f"{path}: task class '{module}:{name}' belongs to no installed recipe package")
    cls = getattr(import_module(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, TaskConfig)):
        raise DataError(f"{path}: '{module}:{name}' is not a task")
    config = _rebuild(RunConfig, tree | {"task": _rebuild(cls, task, path)}, path)
    check_ranges(config)  # a file is edited by hand, and what reads the configuration next trusts its types
    return config


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
    except TypeError as error:
        raise DataError(f"{path}: {error}") from None
