"""Problems: loaded, checked, reported, turned into prompts, streamed.

Nothing is skipped in silence: every row is a problem or is counted under one kind of finding, with its line.
"""

from __future__ import annotations

import math
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from tppo.data.sources import SLOT, DataSource, Policy, lookup, paths_of, read_rows, validate
from tppo.errors import ConfigError, DataError
from tppo.types import Prompt

SHOWN = 20
"""Lines listed in a report."""


@dataclass(frozen=True, slots=True)
class Problem:
    """id: unique in its source. question: bare, without template. line: line of a .jsonl file, else row, from 1."""

    id: str
    question: str
    answer: str
    source: str
    line: int


@dataclass(frozen=True, slots=True)
class Finding:
    """count: rows of this kind. lines: the first 20 of them. example: what was wrong with one."""

    count: int
    lines: tuple[int, ...]
    example: str = ""

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.lines) else ""
        text = f"{self.count} (line {', '.join(map(str, self.lines))}{more})"
        return f"{text}: {self.example}" if self.example else text


@dataclass(frozen=True)
class LoadReport:
    """rows: read, blank lines apart; always problems plus findings. copies: rows of each problem, itself included."""

    source: DataSource
    rows: int
    problems: tuple[Problem, ...]
    copies: tuple[int, ...]
    findings: dict[str, Finding]

    def count(self, kind: str) -> int:
        """Rows of one kind of finding: a field of Policies, or 'limit'."""
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
    validate(source)
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
        if len(entry.answers) < 2 and answer not in entry.answers:  # two are a conflict
            entry.answers.append(answer)
    for name in names:
        if sample and name in absent:
            found = ", ".join(map(repr, paths_of(sample)))
            raise ConfigError(f"data.columns.{name}", getattr(source.columns, name), f"one of {found}")
    problems, copies = _unique(source, questions, notes)
    report = LoadReport(source, rows, problems, copies, notes.findings())
    stop = [kind for kind in report.findings if getattr(source.policies, kind, "drop") == "error"]
    if stop:
        remedy = " and ".join(f"data.policies.{kind} = 'drop'" for kind in stop)
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
    return inside, answer, name.strip() or None


def _text(row: dict[str, Any], column: str | None) -> str | None:
    """Text of a cell; 27.0 is '27', 1e-07 is '0.0000001', NaN is missing."""
    value = None if column is None else lookup(row, column)[1]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise _BadRow("unreadable", f"column {column!r} holds {type(value).__name__}: expected text or a number")
    text = f"{value:.0f}" if isinstance(value, float) and value.is_integer() else str(value)
    if isinstance(value, float | Decimal) and "e" in text.lower():
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
    """pairs: (training problem, the evaluation problem that asks the same). train: the training problems left."""

    pairs: tuple[tuple[Problem, Problem], ...]
    train: tuple[Problem, ...]

    def __str__(self) -> str:
        shown = [f"{a.source} line {a.line} = {b.source} line {b.line}" for a, b in self.pairs[:SHOWN]]
        more = ["..."] if len(self.pairs) > SHOWN else []
        return f"{len(self.pairs)} training problems are in the evaluation" + "".join(f"\n  {s}" for s in shown + more)


def check_overlap(train: Sequence[Problem], evaluation: Iterable[Problem], on_overlap: Policy = "error") -> Overlap:
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


@dataclass(frozen=True)
class PromptReport:
    """overlong: problems whose prompt is longer than the cap. longest: of all prompts [tokens]."""

    prompts: list[Prompt]
    overlong: Finding
    longest: int

    def __str__(self) -> str:
        head = f"{len(self.prompts)} prompts, longest seen {self.longest} tokens"
        return f"{head}\n  overlong: {self.overlong}" if self.overlong.count else head


def to_prompts(
    problems: Sequence[Problem],
    encode: Callable[[str], Sequence[int]],
    *,
    template: str = SLOT,
    chat: Callable[[str], str] | None = None,
    max_prompt_tokens: int,
    on_overlong: Policy = "error",
) -> PromptReport:
    """Fill the template, wrap it by ``chat`` (user's message -> text with role marks), encode, keep what fits.

    With ``chat``, ``encode`` must add no special tokens: the chat template has them.
    """
    if template.count(SLOT) != 1:
        raise ConfigError("template", template, f"text with exactly one {SLOT}")
    if isinstance(max_prompt_tokens, bool) or not isinstance(max_prompt_tokens, int) or max_prompt_tokens < 1:
        raise ConfigError("max_prompt_tokens", max_prompt_tokens, "a whole number in [1, inf) [tokens]")
    if on_overlong not in ("error", "drop"):
        raise ConfigError("on_overlong", on_overlong, "one of 'error', 'drop'")
    prompts, lines, longest, example = [], [], 0, ""
    for problem in problems:
        text = template.replace(SLOT, problem.question)
        tokens = tuple(encode(text if chat is None else chat(text)))
        if not tokens or not all(isinstance(t, int | np.integer) for t in tokens):
            found = f"{tokens[:3]!r}"
            raise DataError(
                f"{problem.source} line {problem.line}: encode gave {found}; expected token ids, at least one"
            )
        longest = max(longest, len(tokens))
        if len(tokens) > max_prompt_tokens:
            lines.append(problem.line)
            example = example or f"{len(tokens)} tokens where {max_prompt_tokens} fit"
        else:
            ids = tuple(map(int, tokens))
            prompts.append(Prompt(id=problem.id, tokens=ids, truth=problem.answer, source=problem.source))
    report = PromptReport(prompts, Finding(len(lines), tuple(lines[:SHOWN]), example), longest)
    if lines and on_overlong == "error":
        raise DataError(f"{report}\nexpected none; raise max_prompt_tokens, or set on_overlong = 'drop'")
    if not prompts:
        raise DataError(f"{report}\nexpected at least one prompt; raise max_prompt_tokens, or load more problems")
    return report


class PromptStream:
    """An endless order of prompts: ``stream(i)`` is the same prompt whenever it is asked, on every machine.

    Each epoch is a permutation, by the ranks of Philox numbers keyed by (seed, epoch); nothing but the newest epoch is
    kept.

    >>> stream = PromptStream([Prompt(id=name, tokens=(1,)) for name in "abc"], seed=0)
    >>> sorted(stream(i).id for i in range(3, 6))
    ['a', 'b', 'c']
    """

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        if not prompts:
            raise DataError("prompts is empty; expected at least one prompt to stream")
        if not 0 <= seed < 2**63:
            raise ConfigError("seed", seed, "a number in [0, 2**63)")
        self.prompts, self.seed = tuple(prompts), seed
        self._newest = (-1, np.empty(0, dtype=np.int64))

    def __call__(self, index: int) -> Prompt:
        """The prompt at ``index``, from 0."""
        if index < 0:
            raise IndexError(f"index = {index}: expected 0 or more")
        epoch, place = divmod(index, len(self.prompts))
        newest, order = self._newest
        if newest != epoch:
            order = self._order(epoch)
            self._newest = (epoch, order)
        return self.prompts[order[place]]

    def _order(self, epoch: int) -> np.ndarray:
        """Raw numbers and a stable sort: numpy promises both for all its versions, unlike ``permutation``."""
        key = np.array([self.seed, 2**63 + epoch], dtype=np.uint64)  # the upper half: engines use the lower one
        return np.argsort(np.random.Philox(key=key).random_raw(len(self.prompts)), kind="stable")
