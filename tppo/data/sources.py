"""What describes a source of problems: where it is, which columns it has, and what to do about bad rows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from tppo.errors import ConfigError
from tppo.ranges import PROBLEMS, Range, check_ranges

OnBadRow = Literal["error", "drop"]
"""What to do about a row that cannot be used: stop, or go on without it."""
SLOT = "{question}"
"""Where a template has the question."""


@dataclass(frozen=True)
class Columns:
    """Where a row keeps what. Dots go into objects, numbers into lists: ``prompt.0.content``."""

    question: str = "question"
    answer: str = "answer"
    id: str | None = None
    """None numbers the problems by their lines."""


@dataclass(frozen=True)
class BadRows:
    """What to do about a row that is not a problem: stop, or go on without it. Either way it is counted."""

    unreadable: OnBadRow = "error"
    """Not a JSON object, wrong encoding, or something else where text should be."""
    question: OnBadRow = "drop"
    """No question, or an empty one."""
    answer: OnBadRow = "drop"
    """No answer, an empty one, or one that no answer can be compared with: NaN, infinity, a number beyond computing."""
    wrapper: OnBadRow = "error"
    """The question is not inside ``DataSource.wrapped_in``."""
    duplicate: OnBadRow = "drop"
    """The same question and the same answer again; the first row stays."""
    conflict: OnBadRow = "error"
    """The same question with answers that say different things ('1' and '1.0' do not); 'drop' drops all its rows."""
    repeated_id: OnBadRow = "error"
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
    answer_after: str | None = None
    """The answer is what follows the last of these marks, such as '####'; None takes all."""
    bare_numbers: bool = False
    """Take the thousands separators out of answers that are numbers: '1,200' becomes '1200'."""
    limit: Annotated[int, Range(1, PROBLEMS, unit="problems")] | None = None
    """At most so many problems, the first ones."""
    bad_rows: BadRows = field(default_factory=BadRows)

    @property
    def where(self) -> str:
        """File or data set, for messages."""
        return str(self.path if self.path is not None else f"{self.hub} [{self.split}]")


def check_source(source: DataSource) -> None:
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
