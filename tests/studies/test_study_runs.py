"""What runs a study: folders, options, processes, errors."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from paper_repro.studies.intervals import mean_interval
from tests.support import toy_studies
from tppo.cli import main
from tppo.errors import ConfigError
from tppo.studies.folder import FILES, read_study
from tppo.studies.study import StudyOptions, Ticks, load_study, resolve, run_study, study_entry_points

NINE = {"bias", "gradient", "last-m", "window", "zero-critic", "ablation", "staleness", "transient", "clock"}


def folder(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_the_nine_studies_are_registered() -> None:
    assert set(study_entry_points()) == NINE


def test_the_library_of_studies_loads_no_torch() -> None:
    code = "import sys; from tppo.studies import command, page, study; print({'torch', 'sim'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_run_writes_four_files_with_its_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, toy="TOY")
    out = tmp_path / "deep" / "toy"
    assert main(["study", "toy", "--out", str(out), "--quiet"]) == 0
    assert set(folder(out)) == set(FILES)
    values = [toy_studies.draw(seed) for seed in range(4)]
    lines = (out / "data.csv").read_text().splitlines()
    assert lines[0] == "seed,value,note"
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(values, rel=1e-8)
    text = (out / "findings.md").read_text()
    assert text.startswith("# What is the mean of `seeds` draws?\n\nThe mean is **" + mean_interval(values).text())
    assert "![One draw" in text
    assert "## Limits\n\n- Nothing depends on it." in text
    stored = read_study(out)
    assert stored["options"] == {"full": False, "seeds": 4, "seed": 0, "jobs": 1}
    assert stored["environment"]["packages"]["numpy"]
    assert stored["seconds"] >= 0
    assert (out / "figure.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert [p.name for p in out.parent.iterdir()] == ["toy"]  # nothing half-written is left beside it
    assert "The mean is" in capsys.readouterr().out


def test_same_seed_same_bytes_and_jobs_change_nothing(tmp_path: Path) -> None:
    study = toy_studies.TOY
    for name, jobs in (("a", 1), ("b", 1), ("c", 2)):
        run_study(study, resolve(study, jobs=jobs, seed=5), tmp_path / name)
    a, b, c = (folder(tmp_path / name) for name in "abc")
    for name in ("data.csv", "figure.png", "findings.md"):
        assert a[name] == b[name] == c[name]
    run_study(study, resolve(study, seed=6), tmp_path / "d")
    assert folder(tmp_path / "d")["data.csv"] != a["data.csv"]


def test_parts_run_on_one_thread_and_the_environment_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for jobs in (1, 2):
            assert Ticks(jobs=jobs).map(os.getenv, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"]) == ["1", "1"]
        assert [torch.get_num_threads() for _ in Ticks().track([0])] == [1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def test_the_error_of_a_part_in_another_process_arrives() -> None:
    with pytest.raises(ValueError, match=r"math domain error|nonnegative"):
        Ticks(jobs=2).map(math.sqrt, [1.0, -1.0, 4.0])


def test_options(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(toy_studies.TOY, full=True) == StudyOptions(full=True, seeds=6)
    assert resolve(toy_studies.TOY, full=True, seeds=2).seeds == 2
    assert resolve(toy_studies.EXACT, full=True).seeds == 0
    with pytest.raises(ConfigError, match=r"seeds = 3: expected no number, for 'exact-toy' is exact"):
        resolve(toy_studies.EXACT, seeds=3)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nonsense"], "study = 'nonsense': expected one of toy, all, list"),
        ([], "study = None: expected one of toy, all, list"),
        (["toy", "--jobs", "0"], "jobs = 0: expected a number in [1, 4096] [processes]"),
        (["toy", "--seeds", "0"], "seeds = 0: expected a number in [1, 10000]"),
        (["toy", "--seed", "-1"], "seed = -1: expected a number in [0, 2147483647]"),
        (["toy", "--reuse", "x"], "reuse = 'x'"),
        (["toy", "--out", "/dev/null"], "out = '/dev/null'"),
        (["toy", "--out", "/proc/nowhere/toy"], "out = '/proc/nowhere/toy'"),
        (["all", "--reuse", "/nonexistent"], "reuse = '/nonexistent': expected a folder with finished studies"),
        (["all", "--reuse", "/tmp", "--full"], "neither --full nor --seeds"),
    ],
)
def test_bad_input_exits_with_2_and_says_why(
    args: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    toy_studies.install(monkeypatch, toy="TOY")
    monkeypatch.chdir(tmp_path)
    assert main(["study", *args]) == 2
    assert says in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unknown_options_exit_with_2() -> None:
    assert main(["study", "toy", "--no-such", "1"]) == 2
    with pytest.raises(SystemExit) as caught:
        main(["study", "toy", "--seeds", "three"])
    assert caught.value.code == 2


def test_the_default_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_studies.install(monkeypatch, toy="TOY")
    monkeypatch.chdir(tmp_path)
    assert main(["study", "toy", "--quiet"]) == 0
    assert set(folder(tmp_path / "runs/studies/toy")) == set(FILES)


def test_a_finished_study_is_replaced_only_when_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, toy="TOY")
    out = tmp_path / "toy"
    call = ["study", "toy", "--quiet", "--out", str(out)]
    assert main(call) == 0
    before = folder(out)
    assert main([*call, "--seed", "1"]) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert folder(out) == before
    assert main([*call, "--seed", "1", "--force"]) == 0
    assert read_study(out)["options"]["seed"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["toy"]


@pytest.mark.parametrize("force", [False, True])
def test_the_folder_of_another_study_or_of_someone_is_never_touched(force: bool, tmp_path: Path) -> None:
    options = resolve(toy_studies.TOY)
    run_study(toy_studies.TOY, options, tmp_path / "toy")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    half = tmp_path / "half"
    half.mkdir()
    (half / "data.csv").write_text("a,b\n")
    for out, study, says in (
        (tmp_path / "toy", toy_studies.EXACT, "the study 'toy'"),
        (mine, toy_studies.TOY, r"files that no study wrote \(thesis.tex\)"),
        (half, toy_studies.TOY, "without the study None"),
    ):
        before = folder(out)
        with pytest.raises(ConfigError, match=says):
            run_study(study, resolve(study), out, force=force)
        assert folder(out) == before


def test_a_study_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    with pytest.raises(ArithmeticError):
        run_study(toy_studies.BROKEN, resolve(toy_studies.BROKEN), tmp_path / "broken")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="0 limits"):
        run_study(toy_studies.NO_LIMITS, resolve(toy_studies.NO_LIMITS), tmp_path / "no-limits")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_study_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, interrupted="INTERRUPTED", toy="TOY")
    assert main(["study", "interrupted", "--out", str(tmp_path / "one")]) == 130
    assert main(["study", "all", "--out", str(tmp_path / "all"), "--quiet"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert not (tmp_path / "one").exists()
    assert list((tmp_path / "all").iterdir()) == []


@pytest.mark.parametrize("where", ["MISSING", "no_such_module:STUDY", "OTHER", "json:dumps"])
def test_a_study_that_cannot_be_loaded_says_so(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_studies.install(monkeypatch, toy="TOY", other=where)
    with pytest.raises(ConfigError, match="study = 'other'"):
        load_study("other")
    assert load_study("toy") is toy_studies.TOY


def test_the_list_names_questions_and_what_cannot_be_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, toy="TOY", gone="no_such_module:STUDY")
    assert main(["study", "list"]) == 0
    out = capsys.readouterr().out
    assert "toy            What is the mean" in out
    assert "gone           (cannot be loaded: no_such_module:STUDY: ModuleNotFoundError: No module named" in out


@pytest.mark.parametrize("text", ["not json", "[]", '{"name": "toy"}'])
def test_an_unreadable_record_is_a_clear_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(ConfigError, match=r"study\.json"):
        read_study(tmp_path)


def test_numbers_of_the_record_are_json(tmp_path: Path) -> None:
    run_study(toy_studies.TOY, resolve(toy_studies.TOY), tmp_path / "toy")
    json.loads((tmp_path / "toy" / "study.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_an_interval_needs_two_values() -> None:
    with pytest.raises(ValueError, match="at least two numbers"):
        mean_interval([1.0])
