"""The rows of a source, from .parquet, .json and .jsonl files or from the Hugging Face hub, and cells by dotted paths.

Needs the extra 'data' only for parquet files (pyarrow) and for Hugging Face names (datasets).
"""

from __future__ import annotations

import codecs
import itertools
import os
import re
import stat
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from tppo.data.sources import DataSource
from tppo.errors import ConfigError, DataError
from tppo.files import parse_json

Row = dict[str, Any] | str
"""A row, or why it is unreadable."""
MAX_LINE = 2**24
"""Bytes of a line of a .jsonl file; a longer one is unreadable, and never in memory as a whole."""
MAX_DOCUMENT = 2**30
"""Bytes of a .json file, all of which is in memory at once."""
MAX_CHUNK = 2**32
"""Bytes, decompressed, of a column in a row group of a .parquet file."""
BATCH = 64
"""Rows of a .parquet file in memory at a time: all of them may hold the longest cell of their row group."""


def read_rows(source: DataSource) -> Iterator[tuple[int, Row]]:
    """(line from 1, row) of everything but blank lines, one at a time where the format allows."""
    if source.path is None:
        return _hub_rows(source)
    readers = {".parquet": _parquet_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    path = Path(os.path.expanduser(source.path))
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ConfigError("data.path", source.path, "an existing file", str(error)) from error
    if not stat.S_ISREG(mode):
        remedy = "name one file in it" if stat.S_ISDIR(mode) else ""
        raise ConfigError("data.path", source.path, "a regular file", remedy)
    if path.suffix.lower() not in readers:
        raise ConfigError("data.path", source.path, f"a name that ends in {', '.join(readers)}")
    return _readable(readers[path.suffix.lower()](source, path), path)


def _readable(rows: Iterator[tuple[int, Row]], path: Path) -> Iterator[tuple[int, Row]]:
    """The rows; an error of the system while they are read becomes a DataError that names the file."""
    try:
        yield from rows
    except (OSError, MemoryError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        raise DataError(f"{path}: {reason}; expected a file that can be read to its end") from error


def _row(value: Any) -> Row:
    return value if isinstance(value, dict) else f"a {type(value).__name__} where an object should be"


def _jsonl_rows(source: DataSource, path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for line in itertools.count(1):
            raw = file.readline(MAX_LINE + 1)
            if not raw:
                return
            if len(raw) > MAX_LINE:
                while raw and not raw.endswith(b"\n"):  # the rest of it, which nobody needs
                    raw = file.readline(MAX_LINE)
                yield line, f"a line of more than {MAX_LINE} bytes"
                continue
            raw = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            if raw.strip():
                yield line, _parsed(raw)


def _parsed(raw: bytes) -> Row:
    try:
        return _row(parse_json(raw))
    except ValueError as error:
        return str(error)


def _json_rows(source: DataSource, path: Path) -> Iterator[tuple[int, Row]]:
    if (size := path.stat().st_size) > MAX_DOCUMENT:
        raise DataError(f"{path}: {size} bytes; expected at most {MAX_DOCUMENT} in one JSON document; use .jsonl")
    try:
        data = parse_json(path.read_bytes().removeprefix(codecs.BOM_UTF8))
    except ValueError as error:
        raise DataError(f"{path}: {error}; expected one JSON document in UTF-8; for a row a line use .jsonl") from error
    if isinstance(data, dict):
        lists = [key for key, value in data.items() if isinstance(value, list)]
        key = source.rows_key or (lists[0] if len(lists) == 1 else None)
        if key not in lists:
            raise ConfigError("data.rows_key", source.rows_key, f"one of {lists} in {path}")
        data = data[key]
    elif not isinstance(data, list):
        raise DataError(f"{path}: holds a {type(data).__name__}; expected a list of rows, or an object with one")
    for line, value in enumerate(data, 1):
        yield line, _row(value)


def _parquet_rows(source: DataSource, path: Path) -> Iterator[tuple[int, Row]]:
    arrow, parquet = _optional("pyarrow", source), _optional("pyarrow.parquet", source)
    start = 1
    try:
        with parquet.ParquetFile(path) as file:
            columns = _wanted(source, file.schema_arrow.names)
            _check_chunks(path, file.metadata, columns)
            for batch in file.iter_batches(batch_size=BATCH, columns=columns):
                yield from enumerate(_batch_rows(batch), start)
                start += batch.num_rows
    except (arrow.ArrowException, OSError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: {error}, at row {start}; expected a whole parquet file; copy it again") from error


def _check_chunks(path: Path, about: Any, columns: list[str]) -> None:
    """Refuse a few compressed bytes that would fill the memory before any of them is looked at."""
    for group in range(about.num_row_groups):
        for i in range(about.num_columns):
            chunk = about.row_group(group).column(i)
            if chunk.path_in_schema.split(".")[0] in columns and chunk.total_uncompressed_size > MAX_CHUNK:
                raise DataError(
                    f"{path}: column {chunk.path_in_schema!r} has {chunk.total_uncompressed_size} bytes in one row "
                    f"group; expected at most {MAX_CHUNK}; write it again in smaller row groups"
                )


def _batch_rows(batch: Any) -> Iterable[Row]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # one bad row must not take the others with it
        if batch.num_rows == 1:
            return [str(error)]
        return [row for i in range(batch.num_rows) for row in _batch_rows(batch.slice(i, 1))]


def _hub_rows(source: DataSource) -> Iterator[tuple[int, Row]]:
    datasets = _optional("datasets", source)
    try:
        rows = datasets.load_dataset(source.hub, source.subset, split=source.split, revision=source.revision)
    except Exception as error:  # its errors have no common base: network, name, split, gate, script
        reason = f"{type(error).__name__}: {error}"
        remedy = "check name, subset, split, revision and the network, or load a downloaded file by its path"
        raise DataError(f"data.hub = {source.hub!r}: {reason}; expected a data set that loads; {remedy}") from error
    start = 1
    for batch in rows.select_columns(_wanted(source, rows.column_names)).iter(batch_size=1024):
        values = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        yield from enumerate(values, start)
        start += len(values)


def _optional(module: str, source: DataSource) -> Any:
    try:
        return import_module(module)
    except ImportError as error:
        name = "data.path" if source.hub is None else "data.hub"
        package = module.partition(".")[0]
        raise ConfigError(
            name, source.path or source.hub, f"{package} to read it", "pip install 'tppo[data]'"
        ) from error


def _wanted(source: DataSource, names: list[str]) -> list[str]:
    """The top-level columns that are mapped, each once. Raises ConfigError when one does not exist."""
    tops: dict[str, None] = {}
    for name in ("question", "answer", "id"):
        if (column := getattr(source.columns, name)) is not None:
            top = column if column in names else column.partition(".")[0]
            if top not in names:
                raise ConfigError(f"data.columns.{name}", column, f"one of {', '.join(map(repr, names))}")
            tops[top] = None
    return list(tops)


def lookup(row: dict[str, Any], path: str) -> tuple[bool, Any]:
    """(found, value) at a dotted path; a null on the way is a found null.

    >>> lookup({"prompt": [{"content": "Add."}]}, "prompt.0.content")
    (True, 'Add.')
    >>> lookup({"prompt": []}, "prompt.0.content")
    (False, None)
    """
    if path in row:
        return True, row[path]
    value: Any = row
    for part in path.split("."):
        if value is None:
            return True, None
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and re.fullmatch(r"-?[0-9]{1,9}", part) and -len(value) <= int(part) < len(value):
            value = value[int(part)]
        else:
            return False, None
    return True, value


def paths_of(row: dict[str, Any], most: int = 40) -> list[str]:
    """Dotted paths to what a row holds; of a list the first three.

    >>> paths_of({"prompt": [{"role": "user", "content": "Add."}], "answer": "3"})
    ['prompt.0.role', 'prompt.0.content', 'answer']
    """
    found: list[str] = []

    def walk(value: Any, path: str) -> None:
        items: Iterable[tuple[Any, Any]] = ()
        if path.count(".") >= 8:  # deeper is not worth showing
            items = ()
        elif isinstance(value, dict):
            items = value.items()
        elif isinstance(value, list):
            items = enumerate(value[:3])
        inner = [(f"{path}.{key}" if path else str(key), v) for key, v in items]
        if not inner:
            found.append(path)
        for name, v in inner:
            walk(v, name)

    walk(row, "")
    return found[:most]
