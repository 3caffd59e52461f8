"""Figures and tables of real runs, and clear errors for what is not a run."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from paper_repro.reproduction.figures import main, write_all
from paper_repro.reproduction.panels import PANELS, phase_seconds, smooth
from paper_repro.reproduction.records import Point, markdown, ratios, read_run, read_runs, table_of
from tppo.config.recipes import load_recipe
from tppo.errors import ConfigError, DataError
from tppo.runs.run import run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds of T-PPO and one of PPO, a dozen steps each."""
    root = tmp_path_factory.mktemp("runs")
    folders = []
    for recipe, seed in (("token-mdp", 0), ("token-mdp-ppo", 0), ("token-mdp", 1)):
        config = load_recipe(recipe).with_values(
            seed=seed, steps=12, evaluation__every=4, evaluation__problems=64, checkpoint__every=0
        )
        folders.append(root / f"{recipe}-{seed}")
        run(config, folders[-1], progress=False)
    return folders


def copy(source: Path, target: Path, *, without: str = "") -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(without) if without else None)
    return target


def test_everything_is_written(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*map(str, runs), "--out", str(tmp_path / "f"), "--target", "0.2"]) == 0
    out = capsys.readouterr().out
    assert "token-mdp-ppo / token-mdp to 0.2, median (range) over seeds 0: seconds" in out
    png = [tmp_path / "f" / "figure.png", *(tmp_path / "f" / "panels" / f"{name}.png" for name in PANELS)]
    assert all(path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000 for path in png)
    with (tmp_path / "f" / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Seeds of one recipe stand together, whatever the order they were given in.
    assert [row["run"] for row in rows] == ["token-mdp, seed 0", "token-mdp, seed 1", "token-mdp-ppo, seed 0"]
    summary = json.loads((runs[0] / "summary.json").read_text())
    assert float(rows[0]["score"]) == summary["solve_rate_final"]
    assert int(rows[0]["tokens"]) == summary["tokens_generated"]
    assert float(rows[0]["training_seconds"]) == summary["train_seconds"]
    assert float(rows[0]["score_low"]) < float(rows[0]["score"]) < float(rows[0]["score_high"])
    assert out.startswith((tmp_path / "f" / "table.md").read_text())


def test_the_target_is_the_first_evaluation_that_reaches_it(runs: list[Path]) -> None:
    record = read_run(runs[0])
    assert [p.step for p in record.points] == [0, 4, 8, 12]
    rates = [p.rate for p in record.points]
    at = record.reached(rates[2])
    assert at is not None
    assert at.step == next(p.step for p in record.points if p.rate >= rates[2])
    line = json.loads((runs[0] / "metrics.jsonl").read_text().splitlines()[at.step - 1])
    assert (at.seconds, at.tokens) == (line["train_seconds"], line["tokens_generated"])
    assert record.reached(1.0) is None
    assert "not reached | not reached | not reached |" in markdown(table_of([record], 1.0), 1.0)
    assert ratios(read_runs(runs), 1.0) == ""


def test_phases_add_up_to_the_step(runs: list[Path]) -> None:
    record = read_run(runs[0])
    whole = np.mean([row["seconds_step"] for row in record.rows])
    parts = phase_seconds(record)
    assert sum(parts.values()) == pytest.approx(whole)
    assert parts["generate"] > 0
    assert parts["rest"] < whole / 2


def test_smoothing_keeps_constants_and_ends() -> None:
    assert smooth(np.full(200, 3.0)) == pytest.approx(np.full(200, 3.0))
    step = smooth(np.r_[np.zeros(100), np.ones(100)])
    assert step[0] == 0
    assert step[-1] == 1
    assert 0 < step[100] < 1
    assert smooth(np.array([])).size == 0


def test_runs_of_one_recipe_with_other_fields_are_other_groups(runs: list[Path], tmp_path: Path) -> None:
    other = copy(runs[0], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["config"]["algorithm"]["window"] = 9
    (other / "config.json").write_text(json.dumps(config))
    labels = [run.label for run in read_runs([runs[0], other, runs[1]])]
    assert labels == ["token-mdp (window 8), seed 0", "token-mdp (window 9), seed 0", "token-mdp-ppo, seed 0"]
    twin = copy(runs[0], tmp_path / "twin")
    labels = [run.label for run in read_runs([runs[0], twin])]
    assert labels == [f"token-mdp, seed 0 [{runs[0]}]", f"token-mdp, seed 0 [{twin}]"]


def test_an_unfinished_run_can_be_drawn(runs: list[Path], tmp_path: Path) -> None:
    folder = copy(runs[0], tmp_path / "r", without="summary.json")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:6]) + "\n")
    text = write_all(read_runs([folder]), tmp_path / "f")
    assert " at step 4 |" in text


def test_intervals_are_honest_at_the_edges() -> None:
    """None for one problem; never a point, however few problems were all missed."""
    assert Point(1, 1.0, 1, 0.5, None, 1).interval is None
    low, high = Point(1, 1.0, 1, 0.0, 0.0, 30).interval or (0.0, 0.0)
    assert (low, high) == (0.0, pytest.approx(0.1135, abs=1e-4))  # Wilson's, for none of 30
    low, high = Point(1, 1.0, 1, 0.5, 0.05, 30).interval or (0.0, 0.0)
    assert (low, high) == (pytest.approx(0.5 - 1.96 * 0.05, abs=2e-3), pytest.approx(0.5 + 1.96 * 0.05, abs=2e-3))


def test_what_is_not_a_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run = .*nowhere.*: expected the folder of a run; give folders"):
        read_run(tmp_path / "nowhere")
    for name in ("config.json", "metrics.jsonl"):
        with pytest.raises(ConfigError, match=f"expected a run folder, with {name}"):
            read_run(copy(runs[0], tmp_path / f"without-{name}", without=name))
    with pytest.raises(ConfigError, match="every folder once"):
        read_runs([runs[0], runs[0]])
    empty = copy(runs[0], tmp_path / "empty")
    (empty / "metrics.jsonl").write_text("")
    with pytest.raises(DataError, match=r"metrics\.jsonl has no step: expected at least one line"):
        read_run(empty)
    (empty / "metrics.jsonl").write_text('{"step": 0, "train_seconds": 1.0, "tokens_generated": 5}\n')
    (empty / "summary.json").unlink()
    with pytest.raises(DataError, match=r"no held-out evaluation: expected at least one; set evaluation\.every"):
        read_run(empty)
    (empty / "metrics.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(DataError, match=r"line 1: expected a number 'tokens_generated'"):
        read_run(empty)
    (empty / "config.json").write_text("[]")
    with pytest.raises(DataError, match="expected a JSON object, found list"):
        read_run(empty)
    (empty / "config.json").write_text('{"config": {"recipe": "a"}}')
    with pytest.raises(DataError, match=r"expected the configuration of a run: .* is missing"):
        read_run(empty)


def test_bad_arguments(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs[0]), "--out", str(tmp_path / "f"), "--target", "90"]) == 2
    assert "target = 90.0: expected a number in (0, 1]" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main([str(runs[0]), "--out", str(tmp_path / "file")]) == 2
    assert "expected a folder that can be written" in capsys.readouterr().err
    assert not (tmp_path / "f").exists()
