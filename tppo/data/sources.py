"""Where problems come from: what describes a source, how its rows are read, and the named sources.

Needs the extra 'data' only for parquet files (pyarrow) and for Hugging Face names (datasets).
"""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, Literal

from tppo.errors import ConfigError, DataError
from tppo.ranges import Range, check_ranges

Policy = Literal["error", "drop"]
SLOT = "{question}"
DAPO_PROMPT = (
    "Solve the following math problem step by step. The last line of your response should be of the form "
    "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n{question}\n\n"
    'Remember to put your answer on its own line after "Answer:".'
)
"""The instruction that DAPO (arXiv 2503.14476) trains and evaluates with."""


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what. Dots go into objects, numbers into lists: ``prompt.0.content``."""

    question: str = "question"
    answer: str = "answer"
    id: str | None = None
    """None numbers the problems by their lines."""


@dataclass(frozen=True)
class Policies:
    """What to do about a row that is not a problem: stop, or go on without it. Either way it is counted."""

    unreadable: Policy = "error"
    """Not a JSON object, wrong encoding, or something else where text should be."""
    question: Policy = "drop"
    """No question, or an empty one."""
    answer: Policy = "drop"
    """No answer, or an empty one."""
    wrapper: Policy = "error"
    """The question is not inside ``DataSource.wrapped_in``."""
    duplicate: Policy = "drop"
    """The same question and the same answer again; the first row stays."""
    conflict: Policy = "error"
    """The same question with different answers; 'drop' drops all its rows."""
    repeated_id: Policy = "error"
    """A different question with an id that is taken."""


@dataclass(frozen=True)
class DataSource:
    """One set of problems: a file or a Hugging Face name, and how to read it."""

    name: str
    """Short name; the source of its prompts, and the first part of their ids."""
    path: str | None = None
    """A .parquet, .json or .jsonl file. Either this or ``hub``."""
    hub: str | None = None
    """A data-set name on the Hugging Face hub, such as 'owner/name'."""
    subset: str | None = None
    """Configuration of the hub's data set."""
    revision: str | None = None
    """Commit of the hub's data set; None is the newest."""
    split: str = "train"
    """Split of the hub's data set."""
    rows_key: str | None = None
    """Key of the list of rows in a .json file that is an object; None when it has a single list."""
    columns: Columns = field(default_factory=Columns)
    template: str = SLOT
    """The prompt; '{question}' stands for the question."""
    wrapped_in: str = SLOT
    """The template that the file's questions are already in. It is taken off, so that questions can be compared."""
    chat: bool = True
    """The prompt is a user's message, for a chat template. False is plain text."""
    answer_after: str | None = None
    """The answer is what follows the last of these marks, such as '####'; None takes all."""
    bare_numbers: bool = False
    """Take the thousands separators out of answers that are numbers: '1,200' becomes '1200'."""
    limit: Annotated[int, Range(1, unit="problems")] | None = None
    """At most so many problems, the first ones."""
    policies: Policies = field(default_factory=Policies)

    @property
    def where(self) -> str:
        """File or data set, for messages."""
        return str(self.path if self.path is not None else f"{self.hub} [{self.split}]")


def validate(source: DataSource) -> None:
    """Ranges and combinations, before anything is opened. Raises ConfigError."""
    check_ranges(source, "data")
    if not source.name:
        raise ConfigError("data.name", source.name, "a short name")
    if (source.path is None) == (source.hub is None):
        found = {"path": source.path, "hub": source.hub}
        raise ConfigError("data.path", found, "either path or hub", "set exactly one of them")
    for name in ("template", "wrapped_in"):
        if (text := getattr(source, name)).count(SLOT) != 1:
            raise ConfigError(f"data.{name}", text, f"text with exactly one {SLOT}")
    for name in ("question", "answer", "id"):
        if getattr(source.columns, name) == "":
            raise ConfigError(f"data.columns.{name}", "", "the name of a column")
    if source.answer_after == "":
        raise ConfigError("data.answer_after", "", "a mark such as '####', or None")


Row = dict[str, Any] | str
"""A row, or why it is unreadable."""


def read_rows(source: DataSource) -> Iterator[tuple[int, Row]]:
    """(line from 1, row) of everything but blank lines, one at a time where the format allows."""
    if source.path is None:
        return _hub_rows(source)
    readers = {".parquet": _parquet_rows, ".json": _json_rows, ".jsonl": _jsonl_rows}
    path = Path(source.path).expanduser()
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise ConfigError("data.path", source.path, "an existing file", str(error)) from error
    if not stat.S_ISREG(mode):
        remedy = "name one file in it" if stat.S_ISDIR(mode) else ""
        raise ConfigError("data.path", source.path, "a regular file", remedy)
    if path.suffix.lower() not in readers:
        raise ConfigError("data.path", source.path, f"a name that ends in {', '.join(readers)}")
    return readers[path.suffix.lower()](source, path)


def _row(value: Any) -> Row:
    return value if isinstance(value, dict) else f"a {type(value).__name__} where an object should be"


def _jsonl_rows(source: DataSource, path: Path) -> Iterator[tuple[int, Row]]:
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if line == 1 else raw
            if not raw.strip():
                continue
            try:
                yield line, _row(json.loads(raw.decode("utf-8")))
            except (ValueError, RecursionError) as error:
                yield line, str(error)


def _json_rows(source: DataSource, path: Path) -> Iterator[tuple[int, Row]]:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
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
            for batch in file.iter_batches(batch_size=4096, columns=_wanted(source, file.schema_arrow.names)):
                yield from enumerate(_batch_rows(batch), start)
                start += batch.num_rows
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: {error}, at row {start}; expected a whole parquet file; copy it again") from error


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


def dapo_math_17k(path: str | Path | None = None) -> DataSource:
    """DAPO-Math-17k from the hub, or from a downloaded parquet file; its rows are repeated about a hundred times.

    Rows outside DAPO's prompt and questions with several answers are dropped and counted.
    """
    return DataSource(
        name="dapo-math-17k",
        path=None if path is None else str(path),
        hub="BytedTsinghua-SIA/DAPO-Math-17k" if path is None else None,
        columns=Columns("prompt.0.content", "reward_model.ground_truth", "extra_info.index"),
        template=DAPO_PROMPT,
        wrapped_in=DAPO_PROMPT,
        policies=Policies(wrapper="drop", conflict="drop", repeated_id="drop"),
    )


STRICT = Policies(question="error", answer="error")
"""For evaluation: a problem that goes missing would change the score."""


def aime_2024(path: str | Path) -> DataSource:
    """AIME 2024 as DAPO publishes it (parquet): 30 problems, each 32 times, in DAPO's prompt."""
    return DataSource(
        name="aime-2024",
        path=str(path),
        columns=Columns("prompt.0.content", "reward_model.ground_truth", "extra_info.index"),
        template=DAPO_PROMPT,
        wrapped_in=DAPO_PROMPT,
        policies=STRICT,
    )


def math500(path: str | Path) -> DataSource:
    """MATH-500 (json), questions as conversations. Answers are LaTeX."""
    columns = Columns("prompt.0.value", "final_answer")
    return DataSource(name="math500", path=str(path), columns=columns, template=DAPO_PROMPT, policies=STRICT)


def amc23(path: str | Path) -> DataSource:
    """AMC 2023 (jsonl). Answers are whole numbers, stored as floats."""
    columns = Columns("problem", "answer", "id")
    return DataSource(name="amc23", path=str(path), columns=columns, template=DAPO_PROMPT, policies=STRICT)


def gsm8k(path: str | Path) -> DataSource:
    """GSM8K (jsonl, either split): the final answer follows '####', thousands separators are taken out."""
    return DataSource(
        name="gsm8k",
        path=str(path),
        template=DAPO_PROMPT,
        answer_after="####",
        bare_numbers=True,
        policies=STRICT,
    )
