"""Every format, and everything that can be wrong with a file as a whole."""

from __future__ import annotations

import errno
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tppo.data import problems, readers
from tppo.data.catalogue import dapo_math_17k
from tppo.data.problems import load_problems
from tppo.data.sources import BadRows, Columns, DataSource
from tppo.errors import ConfigError, DataError

ROWS = [{"question": f"What is {i} + {i}?", "answer": f"{2 * i}"} for i in range(5)]


def source(path: Path, **changes: Any) -> DataSource:
    return DataSource(**{"name": "sums", "path": str(path), **changes})


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path, row_group_size=2)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".JSONL"])
def test_all_formats_give_the_same_problems(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"sums{suffix}"
    if suffix.lower() == ".jsonl":
        write_jsonl(path, ROWS)
    elif suffix == ".json":
        path.write_text(json.dumps(ROWS, indent=2))
    else:
        write_parquet(path, ROWS)
    report = load_problems(source(path))
    assert [(p.question, p.answer) for p in report.problems] == [(r["question"], r["answer"]) for r in ROWS]
    assert [p.line for p in report.problems] == [1, 2, 3, 4, 5]
    assert [p.id for p in report.problems] == [f"sums/line-{i}" for i in range(1, 6)]
    assert {p.source for p in report.problems} == {"sums"}
    assert report.rows == 5
    assert report.copies == (1, 1, 1, 1, 1)
    assert report.findings == {}


def test_json_object_holds_one_list_or_names_it(tmp_path: Path) -> None:
    path = tmp_path / "sums.json"
    path.write_text(json.dumps({"version": 2, "rows": ROWS}))
    assert len(load_problems(source(path)).problems) == 5
    path.write_text(json.dumps({"train": ROWS[:2], "test": ROWS[2:]}))
    assert len(load_problems(source(path, rows_key="test")).problems) == 3
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())  # a byte-order mark changes nothing
    with pytest.raises(ConfigError, match=r"data.rows_key = None: expected one of \['train', 'test'\]"):
        load_problems(source(path))
    with pytest.raises(ConfigError, match=r"data\.rows_key = 'dev'"):
        load_problems(source(path, rows_key="dev"))


def test_jsonl_lines_are_physical_lines(tmp_path: Path) -> None:
    path = tmp_path / "sums.jsonl"
    # A byte-order mark, Windows line ends, a blank line, and a line separator that is not a line end in JSON.
    text = '\ufeff{"question": "a\u2028b", "answer": "1"}\r\n\r\n{"question": "c", "answer": "2"}'
    path.write_bytes(text.encode())
    report = load_problems(source(path))
    assert [(p.line, p.question) for p in report.problems] == [(1, "a\u2028b"), (3, "c")]
    assert report.rows == 2


def test_jsonl_is_read_a_line_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "sums.jsonl", ROWS)
    parsed = []

    def parse(text: bytes) -> dict[str, Any]:
        parsed.append(text)
        return {}

    monkeypatch.setattr(readers, "parse_json", parse)
    rows = readers.read_rows(source(path))
    assert next(rows)[0] == 1
    assert len(parsed) == 1


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_nested_columns(tmp_path: Path, suffix: str) -> None:
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": r["question"]}],
            "reward_model": {"ground_truth": r["answer"]},
            "extra_info": {"index": 10 + i},
            "unused": i,
        }
        for i, r in enumerate(ROWS)
    ]
    path = tmp_path / f"nested{suffix}"
    (write_jsonl if suffix == ".jsonl" else write_parquet)(path, rows)
    for column in ("prompt.1.content", "prompt.-1.content"):
        columns = Columns(column, "reward_model.ground_truth", "extra_info.index")
        problems = load_problems(source(path, columns=columns)).problems
        assert [(p.id, p.question, p.answer) for p in problems] == [
            (f"sums/{10 + i}", r["question"], r["answer"]) for i, r in enumerate(ROWS)
        ]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_column_whose_name_has_a_dot(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"dotted{suffix}"
    (write_jsonl if suffix == ".jsonl" else write_parquet)(path, [{"q.text": "One?", "answer": "1"}])
    assert load_problems(source(path, columns=Columns("q.text"))).problems[0].question == "One?"


def test_rows_of_a_long_parquet_file_are_numbered_through(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "long.parquet", [{"question": f"{i}?", "answer": i} for i in range(5000)])
    assert [p.line for p in load_problems(source(path)).problems] == list(range(1, 5001))


def test_a_null_on_the_way_is_a_missing_value_not_a_missing_column(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "null.jsonl", [{"question": "One?", "reward_model": None}])
    with pytest.raises(DataError, match=r"answer: 1 \(line 1\)"):
        load_problems(source(path, columns=Columns(answer="reward_model.ground_truth")))


def test_the_columns_found_are_of_a_row_that_has_some(tmp_path: Path) -> None:
    deep: Any = "end"
    for _ in range(500):
        deep = {"x": deep}
    path = write_jsonl(tmp_path / "ragged.jsonl", [{}, {**ROWS[0], "deep": deep}, {}])
    with pytest.raises(ConfigError, match=r"one of 'question', 'answer', 'deep(\.x){8}'$"):
        load_problems(source(path, columns=Columns("nonesuch")))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("field", ["question", "answer", "id"])
def test_a_column_that_does_not_exist_lists_those_found(tmp_path: Path, suffix: str, field: str) -> None:
    path = tmp_path / f"sums{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(ROWS))
    else:
        (write_jsonl if suffix == ".jsonl" else write_parquet)(path, ROWS)
    columns = Columns(**{field: "nonesuch"})
    with pytest.raises(ConfigError, match=rf"data.columns.{field} = 'nonesuch': .*'question', 'answer'"):
        load_problems(source(path, columns=columns))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_a_nested_column_that_does_not_exist_lists_paths(tmp_path: Path, suffix: str) -> None:
    rows = [{"question": "One?", "reward_model": {"ground_truth": "1", "style": "rule"}}]
    path = tmp_path / f"nested{suffix}"
    (write_jsonl if suffix == ".jsonl" else write_parquet)(path, rows)
    with pytest.raises(ConfigError, match=r"reward_model\.truth.*'reward_model\.ground_truth'"):
        load_problems(source(path, columns=Columns(answer="reward_model.truth")))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path = .*missing.jsonl.*expected an existing file"):
        load_problems(source(tmp_path / "missing.jsonl"))
    folder = tmp_path / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(ConfigError, match="expected a regular file; name one file in it"):
        load_problems(source(folder))
    for name in ("sums.csv", "sums", "sums.jsonl.gz"):
        (tmp_path / name).write_text("question,answer\n")
        with pytest.raises(ConfigError, match=r"expected a name that ends in \.parquet, \.json, \.jsonl"):
            load_problems(source(tmp_path / name))
    for name in ("nul\0.jsonl", "x" * 5000 + ".jsonl"):
        with pytest.raises(ConfigError, match="expected an existing file"):
            load_problems(source(Path(name)))


def test_a_home_that_nobody_has() -> None:
    with pytest.raises(ConfigError, match=r"data.path = '~nobody-of-this-name/a.jsonl': expected an existing file"):
        load_problems(source(Path("~nobody-of-this-name/a.jsonl")))


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_file_that_the_system_does_not_give(
    suffix: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No permission, a broken disk, a network that went away: at the opening or between two rows."""
    path = tmp_path / f"sums{suffix}"
    (write_parquet if suffix == ".parquet" else write_jsonl)(path, ROWS)
    if suffix == ".json":
        path.write_text(json.dumps(ROWS))

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code), str(path))

    for name in ("open", "read_bytes"):
        monkeypatch.setattr(Path, name, refuse)
    if suffix == ".parquet":
        monkeypatch.setattr("pyarrow.parquet.ParquetFile.iter_batches", refuse)
    with pytest.raises(DataError, match=rf"sums{suffix}: .*{os.strerror(code)}.*; expected a") as caught:
        load_problems(source(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pipe.jsonl", "pipe.json", "pipe.parquet"])
def test_a_pipe_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ConfigError, match="expected a regular file"):
        load_problems(source(tmp_path / name))


def test_a_line_without_an_end_is_never_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE", 200)
    path = write_jsonl(tmp_path / "sums.jsonl", [ROWS[0], {"question": "x" * 2000, "answer": "1"}, ROWS[1]])
    with pytest.raises(DataError, match=r"unreadable: 1 \(line 2\): a line of more than 200 bytes"):
        load_problems(source(path))
    report = load_problems(source(path, bad_rows=BadRows(unreadable="drop")))
    assert [p.line for p in report.problems] == [1, 3]


def test_a_cell_and_a_document_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sums.json"
    path.write_text(json.dumps([ROWS[0], {"question": "x" * (problems.MAX_CELL + 1), "answer": "1"}]))
    with pytest.raises(DataError, match=r"column 'question' holds 1048577 characters: expected at most 1048576"):
        load_problems(source(path))
    monkeypatch.setattr(readers, "MAX_DOCUMENT", 99)
    with pytest.raises(DataError, match=r"expected at most 99 in one JSON document; use \.jsonl"):
        load_problems(source(path))


def test_a_parquet_file_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte of one letter in a thousand bytes."""
    path = write_parquet(tmp_path / "sums.parquet", [{"question": "x" * 10**6, "answer": "1", "other": "y" * 10**7}])
    assert path.stat().st_size < 10**6
    with pytest.raises(ConfigError):
        load_problems(source(path, columns=Columns(answer="nonesuch")))
    assert load_problems(source(path)).rows == 1  # a column that is not read may be of any size
    monkeypatch.setattr(readers, "MAX_CHUNK", 10**5)
    with pytest.raises(DataError, match=r"column 'question' has \d+ bytes in one row group; expected at most 100000"):
        load_problems(source(path))


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b""), ("b.jsonl", b"\n \n"), ("c.json", b"[]")])
def test_files_without_rows(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"0 problems in 0 rows\nexpected at least one problem"):
        load_problems(source(tmp_path / name))


@pytest.mark.parametrize(
    "content",
    [b"", b'[{"question": "One?"', b"\xff\xfe\x00", b"[" * 100_000, b'"text"', b"3"],
    ids=["empty", "torn", "encoding", "deep", "string", "number"],
)
def test_json_that_is_no_list(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "sums.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"sums\.json: .*expected"):
        load_problems(source(path))


def test_json_lines_under_the_wrong_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "sums.json", ROWS)
    with pytest.raises(DataError, match=r"for a row a line use \.jsonl"):
        load_problems(source(path))


@pytest.mark.parametrize("keep", [0, 3, 40, -1])
def test_torn_parquet(tmp_path: Path, keep: int) -> None:
    path = write_parquet(tmp_path / "sums.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"sums\.parquet: .*expected a whole parquet file"):
        load_problems(source(path))


def test_parquet_with_damaged_pages(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "sums.parquet", ROWS * 100)
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(DataError, match="expected a whole parquet file"):
        load_problems(source(path))


def test_one_undecodable_parquet_row_does_not_take_the_others(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    import pyarrow.parquet as parquet

    texts = [b"One?", b"\xff\xfe", b"Three?"]
    questions = arrow.array(texts, type=arrow.binary()).cast(arrow.string(), safe=False)
    path = tmp_path / "bytes.parquet"
    parquet.write_table(arrow.table({"question": questions, "answer": ["1", "2", "3"]}), path)
    report = load_problems(source(path, bad_rows=BadRows(unreadable="drop")))
    assert [p.line for p in report.problems] == [1, 3]
    assert report.findings["unreadable"].lines == (2,)


def test_packages_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("pyarrow", "pyarrow.parquet", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    path = tmp_path / "sums.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"data.path = .*expected pyarrow to read it; pip install 'tppo\[data\]'"):
        load_problems(source(path))
    with pytest.raises(ConfigError, match=r"data.hub = 'a/b': expected datasets to read it; pip install"):
        load_problems(DataSource(name="hub", hub="a/b"))


class FakeDataset:
    """The three things that are used of a datasets.Dataset."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])

    def select_columns(self, names: list[str]) -> FakeDataset:
        return FakeDataset([{n: row[n] for n in names} for row in self.rows])

    def iter(self, batch_size: int) -> Iterator[dict[str, list[Any]]]:
        for start in range(0, len(self.rows), 2):
            rows = self.rows[start : start + 2]
            yield {n: [row[n] for row in rows] for n in self.column_names}


def test_hub_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def load_dataset(name: str, subset: str | None, *, split: str, revision: str | None) -> FakeDataset:
        calls.append((name, subset, split, revision))
        return FakeDataset([{**row, "unused": object()} for row in ROWS])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    hub = DataSource(name="sums", hub="owner/sums", subset="main", split="test", revision="abc")
    report = load_problems(hub)
    assert calls == [("owner/sums", "main", "test", "abc")]
    assert [(p.line, p.answer) for p in report.problems] == [(i + 1, f"{2 * i}") for i in range(5)]
    assert str(report) == "owner/sums [test]: 5 problems in 5 rows"
    with pytest.raises(
        ConfigError, match=r"data.columns.question = 'prompt.0.content'.*'question', 'answer', 'unused'"
    ):
        load_problems(dapo_math_17k())


def test_hub_data_set_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        DataError, match=r"data.hub = 'a/b': ConnectionError: no network; expected a data set that loads"
    ):
        load_problems(DataSource(name="hub", hub="a/b"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": ""}, "data.name"),
        ({"path": None}, "either path or hub"),
        ({"hub": "a/b"}, "either path or hub"),
        ({"path": Path("a.json")}, "data.path = .*expected text"),
        ({"limit": 0}, r"data.limit = 0: expected a number in \[1, 10000000\] \[problems\]"),
        ({"limit": 1.5}, "data.limit = 1.5: expected a whole number"),
        ({"template": "Solve."}, "data.template = 'Solve.': expected text with exactly one {question}"),
        ({"template": "{question}{question}"}, "exactly one"),
        ({"wrapped_in": ""}, "data.wrapped_in"),
        ({"columns": Columns(question="")}, "data.columns.question"),
        ({"columns": Columns(id="")}, "data.columns.id"),
        ({"answer_after": ""}, "data.answer_after"),
        ({"bare_numbers": 1}, "data.bare_numbers = 1: expected True or False"),
        ({"bad_rows": BadRows(answer="keep")}, "data.bad_rows.answer = 'keep': expected one of 'error', 'drop'"),  # type: ignore[arg-type]
    ],
)
def test_sources_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_problems(DataSource(**{"name": "sums", "path": "nowhere.jsonl", **changes}))
