"""Every kind of bad row is counted with its line, and every row is either a problem or a finding."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tppo.data.catalogue import DAPO_PROMPT
from tppo.data.problems import Finding, LoadReport, Problem, check_overlap, load_problems
from tppo.data.sources import BadRows, Columns, DataSource
from tppo.errors import ConfigError, DataError

DROP = BadRows(**{f.name: "drop" for f in dataclasses.fields(BadRows)})  # type: ignore[arg-type]
STOP = BadRows(**{f.name: "error" for f in dataclasses.fields(BadRows)})  # type: ignore[arg-type]
GOOD = b'{"question": "One?", "answer": "1"}'


def load(folder: Path, lines: list[bytes], **changes: Any) -> LoadReport:
    path = folder / "rows.jsonl"
    path.write_bytes(b"\n".join(lines))
    return load_problems(DataSource(**{"name": "rows", "path": str(path), "bad_rows": DROP, **changes}))


BAD = {
    "torn": ("unreadable", b'{"question": "Two?", "ans'),
    "latin-1": ("unreadable", '{"question": "Zwölf?", "answer": "12"}'.encode("latin-1")),
    "utf-16": ("unreadable", '{"question": "Two?", "answer": "2"}'.encode("utf-16-le")),
    "list": ("unreadable", b'["Two?", "2"]'),
    "null": ("unreadable", b"null"),
    "deep": ("unreadable", b"[" * 100_000),
    "digits": ("unreadable", b'{"question": "Two?", "answer": ' + b"1" * 5000 + b"}"),
    "surrogate": ("unreadable", b'{"question": "Two \\ud800?", "answer": "2"}'),
    "object answer": ("unreadable", b'{"question": "Two?", "answer": {"value": 2}}'),
    "true answer": ("unreadable", b'{"question": "Two?", "answer": true}'),
    "no question": ("question", b'{"answer": "2"}'),
    "null question": ("question", b'{"question": null, "answer": "2"}'),
    "empty question": ("question", b'{"question": " \\n ", "answer": "2"}'),
    "no answer": ("answer", b'{"question": "Two?"}'),
    "empty answer": ("answer", b'{"question": "Two?", "answer": " "}'),
    "nan answer": ("answer", b'{"question": "Two?", "answer": NaN}'),
    "duplicate": ("duplicate", b'{"question": " one?\\n", "answer": " 1 "}'),
}


@pytest.mark.parametrize(("kind", "line"), BAD.values(), ids=BAD.keys())
def test_bad_rows_are_dropped_and_counted_or_stop(tmp_path: Path, kind: str, line: bytes) -> None:
    report = load(tmp_path, [GOOD, b"", line])
    assert [p.question for p in report.problems] == ["One?"]
    assert report.rows == 2
    assert {k: (f.count, f.lines) for k, f in report.findings.items()} == {kind: (1, (3,))}
    assert report.count(kind) == 1
    stop: dict[str, Any] = {kind: "error"}
    with pytest.raises(DataError, match=rf"(?s){kind}: 1 \(line 3\).*set data\.bad_rows\.{kind} = 'drop'"):
        load(tmp_path, [GOOD, b"", line], bad_rows=dataclasses.replace(DROP, **stop))
    drop: dict[str, Any] = {kind: "drop"}
    assert load(tmp_path, [GOOD, b"", line], bad_rows=dataclasses.replace(STOP, **drop)).problems == report.problems


def test_one_error_lists_everything(tmp_path: Path) -> None:
    lines = [line for _, line in BAD.values()]
    with pytest.raises(DataError) as caught:
        load(tmp_path, [GOOD, *lines], bad_rows=STOP)
    text = str(caught.value)
    assert "1 problems in 18 rows, each 2 times" in text
    assert "unreadable: 10 (line 2, 3, 4, 5, 6, 7, 8, 9, 10, 11): " in text
    assert "question: 3 (line 12, 13, 14)" in text
    assert "answer: 3 (line 15, 16, 17)" in text
    assert "duplicate: 1 (line 18)" in text


def test_defaults_stop_only_where_dropping_would_hide_a_fault() -> None:
    stops = {f.name for f in dataclasses.fields(BadRows) if getattr(BadRows(), f.name) == "error"}
    assert stops == {"unreadable", "wrapper", "conflict", "repeated_id"}


def test_only_the_first_twenty_lines_are_listed(tmp_path: Path) -> None:
    report = load(tmp_path, [GOOD, *[b"{"] * 30])
    assert report.findings["unreadable"] == Finding(30, tuple(range(2, 22)), report.findings["unreadable"].example)
    assert "20, 21, ...)" in str(report)


def test_lines_are_listed_in_order(tmp_path: Path) -> None:
    lines = [b'{"question": "%d?", "answer": 1}' % i for i in (1, 2, 2, 1)]
    assert load(tmp_path, lines).findings["duplicate"].lines == (3, 4)


def test_no_problem_left(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)0 problems in 2 rows.*unreadable: 2.*expected at least one problem"):
        load(tmp_path, [b"{", b"}"])


def test_conflicting_answers_drop_all_rows_of_the_question(tmp_path: Path) -> None:
    lines = [b'{"question": "Two?", "answer": 2}', GOOD, b'{"question": "two?", "answer": 3}', GOOD]
    report = load(tmp_path, lines)
    assert [(p.line, p.answer) for p in report.problems] == [(2, "1")]
    assert report.copies == (2,)
    assert report.findings["conflict"] == Finding(2, (1, 3), "one question, answers '2', '3'")
    assert report.findings["duplicate"].lines == (4,)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1", "1.0"),
        ("0.5", "\\frac12"),
        ("1200", "1,200"),
        ("2^{10}", "1024"),
        ("3", "$3$"),
        ("3", "003"),
        ("Yes", "yes"),
    ],
)
def test_equal_answers_are_no_conflict(one: str, other: str, tmp_path: Path) -> None:
    """The first spelling stays."""
    rows = [json.dumps({"question": "Which?", "answer": answer}).encode() for answer in (one, other, one)]
    report = load(tmp_path, rows)
    assert [(p.line, p.answer) for p in report.problems] == [(1, one)]
    assert report.findings["duplicate"].lines == (2, 3)
    assert "conflict" not in report.findings


@pytest.mark.parametrize("other", ["2", "1.01", "-1", "1/3", "x", "(1, 1)"])
def test_different_answers_are_a_conflict(other: str, tmp_path: Path) -> None:
    rows = [json.dumps({"question": "Which?", "answer": answer}).encode() for answer in ("1", other)]
    with pytest.raises(DataError, match="conflict: 2"):
        load(tmp_path, rows, bad_rows=STOP)


NEVER_RIGHT = [
    "Infinity", "-Infinity", "NaN", "1e400", "-1e999", '"Infinity"', '"inf"', '"nan"', '"-inf"', '"1e400"',
    '"9^{9^{9^9}}"', '"$9^{9^{9^{9}}}$"', '"\\\\frac{1}{9^{9^9}}"', '"(((9!)!)!)!"', '"5 + 7^{8^{9^9}}"',
]  # fmt: skip


@pytest.mark.parametrize("cell", NEVER_RIGHT)
def test_a_truth_that_no_answer_can_be_compared_with(cell: str, tmp_path: Path) -> None:
    row = b'{"question": "Two?", "answer": %s}' % cell.encode()
    report = load(tmp_path, [GOOD, row])
    assert report.findings["answer"].lines == (2,)
    with pytest.raises(DataError, match=r"answer: 1 \(line 2\)"):
        load(tmp_path, [GOOD, row], bad_rows=STOP)


@pytest.mark.parametrize(
    "answer",
    [
        "1e30",
        "2^{1000}",
        "2^{2^{3}}",
        "9" * 400,
        "\\infty",
        "(-\\infty, 3]",
        "x^{2^n}",
        "10!",
        "3!!",
        "nano",
        "info",
        "x^2",
    ],
)
def test_large_and_odd_truths_that_can(answer: str, tmp_path: Path) -> None:
    assert load(tmp_path, [json.dumps({"question": "Two?", "answer": answer}).encode()]).problems[0].answer == answer


def test_repeated_ids(tmp_path: Path) -> None:
    lines = [b'{"question": "%d?", "answer": 1, "id": %d}' % pair for pair in [(1, 7), (2, 8), (3, 7)]]
    report = load(tmp_path, lines, columns=Columns(id="id"))
    assert [p.id for p in report.problems] == ["rows/7", "rows/8"]
    assert report.findings["repeated_id"] == Finding(1, (3,), "'rows/7' is the id of line 1")


def test_a_missing_id_is_the_line(tmp_path: Path) -> None:
    lines = [b'{"question": "1?", "answer": 1, "id": 2}', b'{"question": "2?", "answer": 1}']
    assert [p.id for p in load(tmp_path, lines, columns=Columns(id="id")).problems] == ["rows/2", "rows/line-2"]


def test_limit_keeps_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    lines = [b'{"question": "%d?", "answer": 1}' % (i % 5) for i in range(7)]
    report = load(tmp_path, lines, limit=2)
    assert [p.question for p in report.problems] == ["0?", "1?"]
    assert report.findings["limit"].lines == (3, 4, 5)
    assert report.findings["duplicate"].lines == (6, 7)


def test_wrapper_is_taken_off_and_must_be_there(tmp_path: Path) -> None:
    questions = ["Add $\\{1\\}$.\n", "Bare."]
    texts = [DAPO_PROMPT.replace("{question}", questions[0]), questions[1], DAPO_PROMPT.replace("{question}", " ")]
    lines = [json.dumps({"question": t, "answer": 1}).encode() for t in texts]
    report = load(tmp_path, lines, wrapped_in=DAPO_PROMPT)
    assert [p.question for p in report.problems] == [questions[0]]  # verbatim: the prompt can be put together again
    assert report.findings["wrapper"] == Finding(1, (2,), "begins 'Bare.'")
    assert report.findings["question"].lines == (3,)
    # A text that only looks wrapped because the two ends share characters.
    overlapping = b'{"question": "abab", "answer": 1}'
    with pytest.raises(DataError, match="wrapper: 1"):
        load(tmp_path, [overlapping], wrapped_in="aba{question}bab", bad_rows=STOP)


@pytest.mark.parametrize(
    ("value", "answer"),
    [("27.0", "27"), ("0.5", "0.5"), ("-3", "-3"), ("1e3", "1000"), ('" \\\\frac{1}{2} "', "\\frac{1}{2}"), ("0", "0")],
)
def test_answers_become_text(tmp_path: Path, value: str, answer: str) -> None:
    assert load(tmp_path, [b'{"question": "?", "answer": %b}' % value.encode()]).problems[0].answer == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("7 + 1 = 8 #### 8", "8"),
        ("#### 3 was wrong #### 1,234,567.5", "1234567.5"),
        ("#### -1,000", "-1000"),
        ("#### 1,2", "1,2"),
        ("#### (1,000, 2)", "(1,000, 2)"),
        ("8", None),
        ("8 ####", None),
    ],
)
def test_final_answers_after_a_mark(tmp_path: Path, text: str, answer: str | None) -> None:
    lines = [GOOD.replace(b'"1"', b'"#### 1"'), json.dumps({"question": "Two?", "answer": text}).encode()]
    report = load(tmp_path, lines, answer_after="####", bare_numbers=True)
    assert [p.answer for p in report.problems[1:]] == ([] if answer is None else [answer])
    assert report.count("answer") == (answer is None)


rows = st.one_of(
    st.sampled_from([line for _, line in BAD.values() if len(line) < 1000]),
    st.builds(lambda q, a: b'{"question": "%d?", "answer": %d}' % (q, a), st.integers(0, 5), st.integers(0, 1)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(rows, max_size=30), limit=st.none() | st.integers(1, 4))
def test_every_row_is_a_problem_or_one_finding(tmp_path: Path, lines: list[bytes], limit: int | None) -> None:
    report = load(tmp_path, [GOOD, *lines], limit=limit)
    assert report.rows == 1 + len(lines)
    assert report.rows == len(report.problems) + sum(f.count for f in report.findings.values())
    assert len({p.id for p in report.problems}) == len(report.problems) == len(report.copies)
    assert limit is None or len(report.problems) <= limit
    again = load(tmp_path, [GOOD, *lines], limit=limit)
    assert again == report


def problem(question: str, line: int, source: str = "train") -> Problem:
    return Problem(f"{source}/{line}", question, "1", source, line)


def test_overlap_is_an_error_with_lines() -> None:
    train = [problem("One  plus one?", 3), problem("Two?", 4), problem("Three?", 9)]
    evaluation = [problem("three?\n", 1, "test"), problem("ONE plus\tone?", 2, "test"), problem("Four?", 3, "test")]
    with pytest.raises(DataError) as caught:
        check_overlap(train, evaluation)
    text = str(caught.value)
    assert text.startswith("2 training problems are in the evaluation")
    assert "train line 3 = test line 2" in text
    assert "train line 9 = test line 1" in text
    overlap = check_overlap(train, evaluation, "drop")
    assert overlap.train == (train[1],)
    assert overlap.pairs == ((train[0], evaluation[1]), (train[2], evaluation[0]))


def test_no_overlap_changes_nothing() -> None:
    train = [problem("One?", 1), problem("Two?", 2)]
    overlap = check_overlap(train, [problem("One and a half?", 1, "test")])
    assert overlap.train == tuple(train)
    assert overlap.pairs == ()


def test_overlap_sees_accents_however_they_are_composed() -> None:
    assert len(check_overlap([problem("Rene\u0301?", 1), problem("x", 2)], [problem("RENÉ?", 1)], "drop").pairs) == 1


def test_overlap_of_a_file_with_itself_leaves_nothing() -> None:
    train = [problem(f"{i}?", i) for i in range(30)]
    with pytest.raises(DataError, match=r"(?s)30 training problems.*\.\.\..*is it the same file\?"):
        check_overlap(train, train, "drop")
    with pytest.raises(ConfigError, match="on_overlap = 'keep'"):
        check_overlap(train, train, "keep")  # type: ignore[arg-type]
