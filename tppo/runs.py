"""What a run leaves on disk: config.json, metrics.jsonl, summary.json, curves.png, policy/."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tppo.config import RunConfig
from tppo.errors import ConfigError, DataError

_PACKAGES = ("tppo", "torch", "transformers", "numpy", "gymnasium", "safetensors")


class RunFolder:
    """A folder of one run. Opening refuses a folder that already holds one: results are never overwritten."""

    def __init__(self, path: Path, config: RunConfig) -> None:
        self.path = path
        check_folder(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._metrics = (path / "metrics.jsonl").open("a", encoding="utf-8")
        except OSError as error:
            raise ConfigError("out", str(path), "a folder that can be written", str(error)) from None
        self.write("config.json", {"config": as_dict(config), "environment": environment()})
        self._board = _tensorboard()(str(path)) if config.tensorboard else None

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; it is on disk when this returns."""
        self._metrics.write(json.dumps(_plain(metrics), allow_nan=False) + "\n")
        self._metrics.flush()
        if self._board is not None:
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, metrics["step"])

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        target = self.path / name
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, target)

    def close(self) -> None:
        """Close all files."""
        self._metrics.close()
        if self._board is not None:
            self._board.close()


def check_folder(path: Path, config: RunConfig) -> None:
    """Raise ConfigError now for what would fail when the folder is opened, before models are built."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConfigError("out", str(path), "a folder that is empty or does not exist", "choose another or move it")
    home = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not (home.is_dir() and os.access(home, os.W_OK)):
        raise ConfigError("out", str(path), "a folder that can be written", f"{home} cannot")
    if config.tensorboard:
        _tensorboard()


def free_folder(recipe: str, root: Path = Path("runs")) -> Path:
    """runs/RECIPE, or runs/RECIPE-2, -3, ... when that exists."""
    candidates = [root / recipe, *(root / f"{recipe}-{n}" for n in range(2, 10_000))]
    return next(path for path in candidates if not path.exists())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl. Raises DataError with the line number of an unreadable one."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg})") from None
    return rows


def as_dict(config: Any) -> dict[str, Any]:
    """A configuration tree as plain values, with the class of the task so that it can be read back."""
    tree = dataclasses.asdict(config)
    tree["task"] = {"class": f"{type(config.task).__module__}:{type(config.task).__qualname__}", **tree["task"]}
    return tree


def environment() -> dict[str, Any]:
    """Versions, git revision, machine."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "packages": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "git": _git_revision(),
    }


def _git_revision() -> str | None:
    where = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            cwd=where, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard", True, "the package 'tensorboard'", "pip install 'tppo[tensorboard]', or leave the option out"
        ) from None
    return SummaryWriter
