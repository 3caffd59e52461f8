"""What a run leaves on disk: config.json, metrics.jsonl, summary.json, curves.png, policy/ (and checkpoints/)."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from tppo.config.run import RunConfig
from tppo.config.stored import as_dict
from tppo.environment import environment, warn
from tppo.errors import ConfigError, DataError
from tppo.files import check_writable, is_free, parse_json, plain, read_file, read_object, write_json, writing_to
from tppo.loop.vocabulary import is_declared
from tppo.ranges import Range
from tppo.shapes import misfit

_PARTS = {
    "config.json": os.path.isfile, "metrics.jsonl": os.path.isfile, "metrics.replaced.jsonl": os.path.isfile,
    "summary.json": os.path.isfile, "curves.png": os.path.isfile, "policy": os.path.isdir, "checkpoints": os.path.isdir,
}  # fmt: skip
"""What a run writes, and what it must be where it is there already."""


class RunFolder:
    """A folder of one run. Opening refuses a folder that already holds one, unless that one is resumed: results are
    never overwritten. While it is open no other process can open it.
    """

    def __init__(self, path: Path, config: RunConfig, resumed: Resumed | None = None) -> None:
        self.path = path
        if resumed is None:
            check_run_folder(path, config)
        with writing_to(path):
            path.mkdir(parents=True, exist_ok=True)
            self._metrics = (path / "metrics.jsonl").open("ab", buffering=0)
            try:
                _lock(self._metrics, path)
                self._size = 0 if resumed is None else self._cut(resumed.metrics_bytes)
            except BaseException:
                self._metrics.close()
                raise
            self._record(config, resumed)
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
        self._pending.append(json.dumps(plain(metrics), allow_nan=False).encode() + b"\n")
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
        write_json(self.path / name, content)

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
        read_metrics(path, size)
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
    """Where a resumed run goes on."""

    step: int
    """Steps done at the checkpoint."""
    metrics_bytes: int
    """Length of metrics.jsonl then [bytes]."""
    changed: tuple[str, ...] = ()
    """Fields of the configuration that differ from those of the checkpoint."""


def check_run_folder(path: Path, config: RunConfig, *, resume: bool = False) -> None:
    """Raise ConfigError now for what would fail when the folder is opened, before models are built."""
    if not is_free(path) and not (resume and path.is_dir()):
        remedy = "choose another or move it; --resume auto goes on with the run in it"
        raise ConfigError("out", str(path), "a folder that is empty or does not exist", remedy)
    for name, is_right in _PARTS.items():  # to open a pipe would wait for ever
        if os.path.lexists(path / name) and not is_right(path / name):
            kind = "file" if is_right is os.path.isfile else "folder"
            raise ConfigError("out", str(path), f"a run whose {name} is a {kind}", "move it away")
        if os.path.isdir(path / name):
            check_writable(path / name)
    check_writable(path)
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
        found = read_object(path / "config.json").get("resumed", [])
        return found if isinstance(found, list) else []
    except DataError:
        return []


def free_folder(recipe: str, root: Path = Path("runs")) -> Path:
    """runs/RECIPE, or runs/RECIPE-2, -3, ... when that exists."""
    names = itertools.chain([recipe], (f"{recipe}-{n}" for n in itertools.count(2)))
    return next(root / name for name in names if not os.path.lexists(root / name))


class Row(TypedDict):
    """What a line of metrics.jsonl must have."""

    step: Annotated[int, Range(0)]
    train_seconds: NotRequired[float]
    tokens_generated: NotRequired[Annotated[int, Range(0)]]


class Summary(TypedDict):
    """What is read of a summary.json; more is in it."""

    recipe: NotRequired[str]
    algorithm: NotRequired[str]
    seed: NotRequired[int]
    train_seconds: NotRequired[float]
    solve_rate_base: NotRequired[float | None]
    solve_rate_base_se: NotRequired[float | None]
    solve_rate_final: NotRequired[float | None]
    solve_rate_final_se: NotRequired[float | None]


def read_metrics(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl, those in the first ``size`` bytes or all. Raises DataError with the line number of one
    that is unreadable or no line of metrics.
    """
    try:
        lines = read_file(path)[:size].splitlines()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error})") from None
        wrong = misfit(Row, row) or next(
            (w for name, value in row.items() if is_declared(name) and (w := misfit(float | None, value, name))), ""
        )
        if wrong:
            raise DataError(f"{path}, line {number}: {wrong}")
        rows.append(row)
    return rows


def read_summary(run: Path) -> dict[str, Any]:
    """The summary.json of a run. Raises DataError for one that cannot be read, and for what is no summary."""
    summary = read_object(run / "summary.json")
    if wrong := misfit(Summary, summary):
        raise DataError(f"{run / 'summary.json'}: {wrong}")
    return summary


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise ConfigError(
            "tensorboard", True, "the package 'tensorboard'", "pip install 'tppo[tensorboard]', or leave the option out"
        ) from None
    return SummaryWriter
