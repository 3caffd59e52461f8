"""What a run leaves on disk: config.json, metrics.jsonl, summary.json, curves.png, policy/ (and checkpoints/)."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import functools
import json
import math
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tppo.config.run import RunConfig
from tppo.errors import ConfigError, DataError

_PACKAGES = ("tppo", "torch", "transformers", "numpy", "gymnasium", "safetensors")


class RunFolder:
    """A folder of one run. Opening refuses a folder that already holds one, unless that one is resumed: results are
    never overwritten. While it is open no other process can open it.
    """

    def __init__(self, path: Path, config: RunConfig, resumed: Resumed | None = None) -> None:
        self.path = path
        if resumed is None:
            check_folder(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._metrics = (path / "metrics.jsonl").open("ab", buffering=0)
            try:
                _lock(self._metrics, path)
                self._size = 0 if resumed is None else self._cut(resumed.metrics_bytes)
            except BaseException:
                self._metrics.close()
                raise
            self._record(config, resumed)
        except OSError as error:
            raise ConfigError("out", str(path), "a folder that can be written", str(error)) from None
        self._pending: list[bytes] = []
        purge = None if resumed is None else resumed.step
        self._board = _tensorboard()(str(path), purge_step=purge) if config.tensorboard else None

    def _record(self, config: RunConfig, resumed: Resumed | None) -> None:
        """config.json, with the steps at which the run was resumed."""
        record: dict[str, Any] = {"config": as_dict(config), "environment": environment()}
        if resumed is not None and resumed.step:
            record["resumed"] = [*_history(self.path), {"step": resumed.step, "changed": list(resumed.changed)}]
        self.write("config.json", record)

    def log(self, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl. A line that the disk refuses is kept, and written before the next one."""
        self._pending.append(json.dumps(_plain(metrics), allow_nan=False).encode() + b"\n")
        try:
            self._write_pending()
        except OSError as error:
            if len(self._pending) == 1:
                warn(f"metrics.jsonl: {error.strerror}; free disk space. Training goes on, lines are kept in memory")
        if self._board is not None:
            for name, value in metrics.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, metrics["step"])

    def flush(self) -> int:
        """Length of metrics.jsonl [bytes] once every line is on the disk. Raises OSError while one is not."""
        self._write_pending()
        os.fsync(self._metrics.fileno())
        return self._size

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        target = self.path / name
        partial = target.with_suffix(".partial")
        partial.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(partial, target)

    def close(self) -> None:
        """Close all files."""
        with contextlib.suppress(OSError):
            self._write_pending()
        if self._pending:
            warn(f"metrics.jsonl lacks its last {len(self._pending)} lines: the disk is full")
        self._metrics.close()
        if self._board is not None:
            self._board.close()

    def _write_pending(self) -> None:
        data = b"".join(self._pending)
        try:
            written = 0
            while written < len(data):
                written += self._metrics.write(data[written:]) or 0
        except OSError:
            os.ftruncate(self._metrics.fileno(), self._size)  # no half line stays
            raise
        self._size += len(data)
        self._pending.clear()

    def _cut(self, size: int) -> int:
        """Drop the lines after a checkpoint; they are kept in metrics.replaced.jsonl."""
        path = self.path / "metrics.jsonl"
        with path.open("rb") as file:
            file.seek(size)
            tail = file.read()
            if file.seek(0, os.SEEK_END) < size:
                raise DataError(f"{path} has {file.tell()} bytes, the checkpoint says {size}: was it edited?")
        if tail:
            with (self.path / "metrics.replaced.jsonl").open("ab") as kept:
                kept.write(tail)
            os.ftruncate(self._metrics.fileno(), size)
        return size


class NoFolder:
    """The folder of a run on the ranks that do not write it."""

    def log(self, metrics: dict[str, Any]) -> None:
        """Nothing."""

    def flush(self) -> int:
        """Nothing is there."""
        return 0

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Resumed:
    """step: steps done at the checkpoint. metrics_bytes: length of metrics.jsonl then. changed: fields that differ."""

    step: int
    metrics_bytes: int
    changed: tuple[str, ...] = ()


def warn(text: str) -> None:
    """To standard error, on a line of its own beside the progress bar; of several ranks the first one speaks."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"\ntppo: warning: {text}", file=sys.stderr, flush=True)


def check_folder(path: Path, config: RunConfig, *, resume: bool = False) -> None:
    """Raise ConfigError now for what would fail when the folder is opened, before models are built."""
    if path.exists() and (not path.is_dir() or (any(path.iterdir()) and not resume)):
        remedy = "choose another or move it; --resume auto goes on with the run in it"
        raise ConfigError("out", str(path), "a folder that is empty or does not exist", remedy)
    home = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not (home.is_dir() and os.access(home, os.W_OK)):
        raise ConfigError("out", str(path), "a folder that can be written", f"{home} cannot")
    if config.tensorboard:
        _tensorboard()


def _lock(file: Any, path: Path) -> None:
    """Held until the process ends or closes the file. A POSIX lock: forked workers that live on do not hold it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            raise ConfigError(
                "out", str(path), "a run that no other process writes", "wait for it, or end it"
            ) from None
        # Some network file systems have no locks: nothing is lost but this check.


def _history(path: Path) -> list[Any]:
    try:
        return list(json.loads((path / "config.json").read_text(encoding="utf-8")).get("resumed", []))
    except (OSError, ValueError, AttributeError, TypeError):
        return []


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


@functools.cache
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
