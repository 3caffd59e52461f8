"""The named sources on the published files, where these are beside the checkout, and on look-alikes everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tppo.data.catalogue import DAPO_PROMPT, aime_2024, amc23, dapo_math_17k, gsm8k, math500
from tppo.data.problems import LoadReport, check_overlap, load_problems
from tppo.data.prompts import to_prompts
from tppo.data.readers import lookup, read_rows
from tppo.data.sources import DataSource
from tppo.errors import DataError

FOLDER = Path(__file__).parents[2].parent / "shared" / "data"


def real(name: str) -> Path:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    if not (FOLDER / name).is_file():
        pytest.skip(f"{name} is not in the folder shared/data beside the checkout")
    return FOLDER / name


def load_whole(source: DataSource, problems: int) -> LoadReport:
    report = load_problems(source)
    assert len(report.problems) == problems
    assert all(p.answer.strip() and p.question.strip() for p in report.problems)
    assert len({p.id for p in report.problems}) == problems
    assert set(report.findings) <= {"duplicate"}
    return report


def test_aime_2024_is_30_problems_32_times() -> None:
    source = aime_2024(real("dapo_aime_2024.parquet"))
    report = load_whole(source, 30)
    assert report.rows == 960
    assert report.copies == (32,) * 30
    assert report.count("duplicate") == 930
    assert "30 problems in 960 rows, each 32 times" in str(report)
    assert all(p.answer.isdigit() and 0 <= int(p.answer) <= 999 for p in report.problems)
    # Template and question together are the published prompt, character for character.
    rows = dict(read_rows(source))
    for p in report.problems:
        assert lookup(rows[p.line], "prompt.0.content")[1] == source.template.replace("{question}", p.question)  # type: ignore[arg-type]


def test_math500() -> None:
    assert load_whole(math500(real("math500.json")), 500).rows == 500


def test_amc23() -> None:
    report = load_whole(amc23(real("amc23.jsonl")), 40)
    assert all(p.answer.removeprefix("-").isdigit() for p in report.problems)


def test_gsm8k() -> None:
    report = load_whole(gsm8k(real("gsm8k_test.jsonl")), 1319)
    assert all(p.answer.removeprefix("-").isdigit() for p in report.problems)


def test_evaluation_sets_do_not_overlap() -> None:
    sets = [
        load_problems(source).problems
        for source in (
            math500(real("math500.json")),
            aime_2024(real("dapo_aime_2024.parquet")),
            amc23(real("amc23.jsonl")),
            gsm8k(real("gsm8k_test.jsonl")),
        )
    ]
    for i, train in enumerate(sets):
        for evaluation in sets[i + 1 :]:
            assert check_overlap(train, evaluation).pairs == ()


def wrapped(question: str, answer: str, index: int | str) -> dict[str, Any]:
    return {
        "data_source": "math_dapo",
        "prompt": [{"content": DAPO_PROMPT.replace("{question}", question), "role": "user"}],
        "ability": "MATH",
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index},
    }


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    arrow = pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    import pyarrow.parquet as parquet

    parquet.write_table(arrow.Table.from_pylist(rows), path)
    return path


def test_overlap_is_seen_through_the_prompt_around_the_question(tmp_path: Path) -> None:
    """DAPO's training questions come in its prompt, others come bare; the comparison is of bare questions."""
    rows = [wrapped("What is 1 + 1?", "2", "a"), wrapped("What is 2 + 2?", "4", "b")] * 3
    train = load_problems(dapo_math_17k(write_parquet(tmp_path / "train.parquet", rows)))
    assert train.copies == (3, 3)
    assert [p.id for p in train.problems] == ["dapo-math-17k/a", "dapo-math-17k/b"]
    bare = tmp_path / "test.jsonl"
    bare.write_text(json.dumps({"id": 0, "problem": "what is  2 + 2?", "answer": 4.0}))
    evaluation = load_problems(amc23(bare))
    with pytest.raises(DataError, match="dapo-math-17k line 2 = amc23 line 1"):
        check_overlap(train.problems, evaluation.problems)
    kept = check_overlap(train.problems, evaluation.problems, "drop").train
    made = to_prompts(kept, lambda t: list(t.encode()), template=train.source.template, max_prompt_tokens=999)
    assert bytes(made.prompts[0].tokens).decode() == rows[0]["prompt"][0]["content"]


def test_training_drops_what_it_cannot_use_and_says_so(tmp_path: Path) -> None:
    rows = [wrapped("1?", "1", "a"), wrapped("2?", "2", "b"), wrapped("2?", "3", "c"), wrapped("", "1", "d")]
    rows.append({**wrapped("4?", "4", "e"), "prompt": [{"content": "4?", "role": "user"}]})
    report = load_problems(dapo_math_17k(write_parquet(tmp_path / "train.parquet", rows)))
    assert [p.question for p in report.problems] == ["1?"]
    assert {kind: f.lines for kind, f in report.findings.items()} == {
        "question": (4,),
        "wrapper": (5,),
        "conflict": (2, 3),
    }


def test_evaluation_stops_where_a_problem_would_go_missing(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    good = {"question": "1?", "answer": "#### 1"}
    for bad in (
        {"question": "2?", "answer": "2"},
        {"question": "", "answer": "#### 2"},
        {"question": "1?", "answer": "#### 2"},
    ):
        path.write_text("\n".join(map(json.dumps, [good, bad])))
        with pytest.raises(DataError, match=r"(?s)line (1, )?2\).*expected no row of kind"):
            load_problems(gsm8k(path))


def test_every_evaluation_source_is_strict() -> None:
    for source in (aime_2024("a.parquet"), math500("a.json"), amc23("a.jsonl"), gsm8k("a.jsonl")):
        rows = source.bad_rows
        assert (rows.unreadable, rows.question, rows.answer, rows.wrapper) == ("error",) * 4
        assert (rows.conflict, rows.repeated_id, rows.duplicate) == ("error", "error", "drop")


def test_the_hub_name() -> None:
    source = dapo_math_17k()
    assert (source.hub, source.path, source.split) == ("BytedTsinghua-SIA/DAPO-Math-17k", None, "train")
