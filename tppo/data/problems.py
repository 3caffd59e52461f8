"""Problems: loaded, checked, reported.

Nothing is skipped in silence: every row is a problem or is counted under one kind of finding, with its line.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tppo.data.readers import lookup, paths_of, read_rows
from tppo.data.sources import SLOT, DataSource, OnBadRow, check_source
from tppo.errors import ConfigError, DataError
from tppo.grading.reading import read, vote_key

SHOWN = 20
"""Lines listed in a report."""
MAX_CELL = 2**20
"""A question, answer or id has no more characters."""
_TOWER = re.compile(r"[0-9)}]\s*(?:\^|\*\*)\s*\{?\s*\(?\s*[0-9]+\s*(?:\^|\*\*)|!\s*[)}]*\s*!\s*[)}]*\s*!")


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with its reference answer."""

    id: str
    """Unique in its source."""
    question: str
    """Bare, without the template."""
    answer: str
    source: str
    """Name of the source."""
    line: int
    """Line of a .jsonl file, else row, from 1."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The rows of a source that have one thing wrong with them."""

    count: int
    """Rows of this kind."""
    lines: tuple[int, ...]
    """The first `SHOWN` of them."""
    example: str = ""
    """What was wrong with one."""

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.lines) else ""
        text = f"{self.count} (line {', '.join(map(str, self.lines))}{more})"
        return f"{text}: {self.example}" if self.example else text


@dataclass(frozen=True)
class LoadReport:
    """What a source holds: its problems, and every row that is none."""

    source: DataSource
    rows: int
    """Rows read, blank lines apart; always problems plus findings."""
    problems: tuple[Problem, ...]
    copies: tuple[int, ...]
    """Rows of each problem, itself included."""
    findings: dict[str, Finding]
    """By kind: a field of `BadRows`, or 'limit'."""

    def count(self, kind: str) -> int:
        """Rows of one kind of finding."""
        return self.findings[kind].count if kind in self.findings else 0

    def __str__(self) -> str:
        low, high = min(self.copies, default=0), max(self.copies, default=0)
        times = "" if high <= 1 else f", each {low} times" if low == high else f", each {low} to {high} times"
        head = f"{self.source.where}: {len(self.problems)} problems in {self.rows} rows{times}"
        return "\n".join([head, *(f"  {kind}: {finding}" for kind, finding in self.findings.items())])


class _Notes:
    """Lines of each kind of finding, and one example."""

    def __init__(self) -> None:
        self.lines: dict[str, array[int]] = {}
        self.examples: dict[str, str] = {}

    def add(self, kind: str, lines: Iterable[int], example: str = "") -> None:
        self.lines.setdefault(kind, array("q")).extend(lines)
        self.examples.setdefault(kind, example)

    def findings(self) -> dict[str, Finding]:
        return {k: Finding(len(v), tuple(sorted(v)[:SHOWN]), self.examples[k]) for k, v in self.lines.items()}


class _BadRow(Exception):
    def __init__(self, kind: str, example: str = "") -> None:
        self.kind, self.example = kind, example


@dataclass(slots=True)
class _Question:
    """All rows that ask the same."""

    text: str
    id: str | None
    answers: list[str]
    lines: array[int]


def normalise(text: str) -> str:
    """What two spellings of one question share: composed characters, single spaces, no case.

    >>> normalise("Find  X.\\n") == normalise("find x.")
    True
    """
    return " ".join(unicodedata.normalize("NFC", text).split()).casefold()


def load_problems(source: DataSource) -> LoadReport:
    """Read every row; then raise one error that lists everything wrong, or return problems and findings.

    Raises ConfigError for a source that cannot be opened or a column that does not exist, DataError for bad content.
    """
    check_source(source)
    notes, rows = _Notes(), 0
    names = [name for name in ("question", "answer", "id") if getattr(source.columns, name) is not None]
    absent, sample = set(names), dict[str, Any]()
    questions: dict[str, _Question] = {}
    for line, row in read_rows(source):
        rows += 1
        if isinstance(row, str):
            notes.add("unreadable", [line], row)
            continue
        sample = sample or row
        absent -= {name for name in absent if lookup(row, getattr(source.columns, name))[0]}
        try:
            question, answer, name = _parse(source, row)
        except _BadRow as bad:
            notes.add(bad.kind, [line], bad.example)
            continue
        entry = questions.setdefault(normalise(question), _Question(question, name, [], array("q")))
        entry.lines.append(line)
        if len(entry.answers) < 2 and not any(_same(answer, other) for other in entry.answers):  # two are a conflict
            entry.answers.append(answer)
    for name in names:
        if sample and name in absent:
            found = ", ".join(map(repr, paths_of(sample)))
            raise ConfigError(f"data.columns.{name}", getattr(source.columns, name), f"one of {found}")
    problems, copies = _unique(source, questions, notes)
    report = LoadReport(source, rows, problems, copies, notes.findings())
    stop = [kind for kind in report.findings if getattr(source.bad_rows, kind, "drop") == "error"]
    if stop:
        remedy = " and ".join(f"data.bad_rows.{kind} = 'drop'" for kind in stop)
        raise DataError(f"{report}\nexpected no row of kind {', '.join(stop)}; mend the rows, or set {remedy}")
    if not problems:
        raise DataError(f"{report}\nexpected at least one problem; check the file and the columns")
    return report


def _parse(source: DataSource, row: dict[str, Any]) -> tuple[str, str, str | None]:
    """Question, answer and id of a row."""
    question = _text(row, source.columns.question) or ""
    answer = _text(row, source.columns.answer) or ""
    name = _text(row, source.columns.id) or ""
    before, _, after = source.wrapped_in.partition(SLOT)
    inside = question.removeprefix(before).removesuffix(after)
    if question.strip() and len(before) + len(inside) + len(after) != len(question):
        raise _BadRow("wrapper", f"begins {question[:40]!r}")
    if not inside.strip():
        raise _BadRow("question")
    if source.answer_after is not None:
        answer = answer.rpartition(source.answer_after)[2] if source.answer_after in answer else ""
    answer = answer.strip()
    if source.bare_numbers and re.fullmatch(r"[-+]?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", answer):
        answer = answer.replace(",", "")
    if not answer:
        raise _BadRow("answer")
    if not _can_be_judged(answer):
        raise _BadRow("answer", f"{answer[:40]!r}: expected a finite number, or one that can be computed")
    return inside, answer, name.strip() or None


def _same(one: str, other: str) -> bool:
    """Whether two reference answers say the same: no conflict, whatever the policy will answer."""
    return one == other or vote_key(one) == vote_key(other)


def _can_be_judged(answer: str) -> bool:
    """False for spellings of NaN and infinity, of a float beyond its range, and for towers of powers or factorials that
    nobody computes: no answer equals them, and looking for one takes all the time there is.
    """
    try:
        return math.isfinite(float(answer)) or answer.lstrip("+-").isdigit()
    except ValueError:
        return not (_TOWER.search(answer) and read(answer).reason == "" and not read(answer).exact)


def _text(row: dict[str, Any], column: str | None) -> str | None:
    """Text of a cell; 27.0 is '27', 1e-07 is '0.0000001', NaN is missing."""
    value = None if column is None else lookup(row, column)[1]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _BadRow("unreadable", f"column {column!r} holds {type(value).__name__}: expected text or a number")
    if isinstance(value, str) and len(value) > MAX_CELL:
        raise _BadRow("unreadable", f"column {column!r} holds {len(value)} characters: expected at most {MAX_CELL}")
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, float | Decimal) and "e" in text.lower() and math.isfinite(value):
        text = f"{Decimal(text):f}"
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        raise _BadRow("unreadable", f"column {column!r} holds half a surrogate pair: expected Unicode text")
    return text


def _unique(
    source: DataSource, questions: dict[str, _Question], notes: _Notes
) -> tuple[tuple[Problem, ...], tuple[int, ...]]:
    """One problem a question, and its copies. Every other row becomes a finding."""
    problems: dict[str, Problem] = {}
    copies: list[int] = []
    for entry in questions.values():
        line = entry.lines[0]
        name = f"{source.name}/{entry.id or f'line-{line}'}"
        if len(entry.answers) > 1:
            shown = ", ".join(repr(answer[:40]) for answer in entry.answers[:2])
            notes.add("conflict", entry.lines, f"one question, answers {shown}")
            continue
        if name in problems:
            notes.add("repeated_id", entry.lines, f"{name!r} is the id of line {problems[name].line}")
            continue
        if len(entry.lines) > 1:
            notes.add("duplicate", entry.lines[1:])
        if source.limit is not None and len(problems) >= source.limit:
            notes.add("limit", [line])
            continue
        problems[name] = Problem(name, entry.text, entry.answers[0], source.name, line)
        copies.append(len(entry.lines))
    return tuple(problems.values()), tuple(copies)


@dataclass(frozen=True)
class Overlap:
    """Training problems that an evaluation asks too."""

    pairs: tuple[tuple[Problem, Problem], ...]
    """(training problem, the evaluation problem that asks the same)."""
    train: tuple[Problem, ...]
    """The training problems that are left."""

    def __str__(self) -> str:
        shown = [f"{a.source} line {a.line} = {b.source} line {b.line}" for a, b in self.pairs[:SHOWN]]
        more = ["..."] if len(self.pairs) > SHOWN else []
        return f"{len(self.pairs)} training problems are in the evaluation" + "".join(f"\n  {s}" for s in shown + more)


def check_overlap(train: Sequence[Problem], evaluation: Iterable[Problem], on_overlap: OnBadRow = "error") -> Overlap:
    """Training problems that are evaluation problems too, up to white space and case. Raises DataError on 'error'."""
    if on_overlap not in ("error", "drop"):
        raise ConfigError("on_overlap", on_overlap, "one of 'error', 'drop'")
    asked: dict[str, Problem] = {}
    for problem in evaluation:
        asked.setdefault(normalise(problem.question), problem)
    twins = [asked.get(normalise(problem.question)) for problem in train]
    overlap = Overlap(
        pairs=tuple((p, twin) for p, twin in zip(train, twins, strict=True) if twin is not None),
        train=tuple(p for p, twin in zip(train, twins, strict=True) if twin is None),
    )
    if overlap.pairs and on_overlap == "error":
        raise DataError(f"{overlap}\nexpected none; take them out of the training data, or set on_overlap = 'drop'")
    if train and not overlap.train:
        raise DataError(f"{overlap}\nexpected at least one problem to train on; is it the same file?")
    return overlap
