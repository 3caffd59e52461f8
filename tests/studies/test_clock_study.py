"""Measuring, validating and the study itself, on work small enough for seconds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import paper_repro.studies.time.clock as study
from paper_repro.studies.time import measure as clock_measure
from paper_repro.studies.time.cells import CAP, Grid, speed_up_cell
from paper_repro.studies.time.measure import Plan, measure_engine, plans, read_measurements, write_measurements
from paper_repro.studies.time.validate import validate, work
from sim.clock.fitted import FittedCost
from sim.clock.lengths import Lengths
from tppo.errors import ConfigError, DataError
from tppo.studies.study import resolve, run_study

PRICES = {
    "torch": FittedCost(3e-3, 2e-3, 3e-5, 5e-5, 4e-7, 3e-5, 1e-9, few_rows=8, padded=True),
    "vllm": FittedCost(6e-3, 1e-3, 7e-5, 1e-4, 2e-7, 2e-5, 0.0, few_rows=4),
}


def made_up(engine: str, chosen: Sequence[Plan], *, repeats: int, show: bool = True) -> list[dict[str, Any]]:
    """Measurements of an engine whose prices are known."""
    return [
        {"engine": engine, "split": plan.split, "plan": plan.name, "repeat": k, "machine": "made up",
         "tokens": sum(int(s.new_S.sum()) for s in plan.steps()), "load_seconds": 0.01,
         "cpu_seconds": PRICES[engine].seconds(work(plan)) * (1 + 0.02 * (k - 1)),
         "seconds": 2 * PRICES[engine].seconds(work(plan))}
        for plan in chosen for k in range(repeats)
    ]  # fmt: skip


def test_plans_for_fitting_and_checking_differ() -> None:
    fit, check = ([p for p in plans() if p.split == split] for split in ("fit", "check"))
    assert len(check) >= 12
    assert not {p.name for p in fit} & {p.name for p in check}
    assert len({p.name for p in plans()}) == len(plans())
    assert {p.window is None for p in check} == {True, False}
    for plan in plans():
        steps = plan.steps()
        assert max((s.start_S + s.new_S).max() for s in steps) + plan.prompt_tokens <= clock_measure.POSITIONS


@pytest.mark.parametrize("engine", ["torch", "vllm"], ids=["padded", "paged"])
def test_validation_finds_known_prices(engine: str) -> None:
    v = validate(engine, made_up(engine, plans(), repeats=3))
    assert np.abs(v.errors()).max() < 1e-6
    np.testing.assert_allclose(v.prices.prices, PRICES[engine].prices, rtol=1e-4, atol=1e-11)
    assert v.spread == pytest.approx(0.04)
    assert v.waiting == pytest.approx(2.0)
    assert len(v.speed_ups()) >= 6
    for _, predicted, at in v.speed_ups():
        assert predicted == pytest.approx(at, rel=1e-6)
    # Other lengths of the same distribution: near, not equal.
    other = np.abs(v.errors("other_draws_error"))
    assert 1e-3 < np.median(other) < 0.4


def test_validation_refuses_measurements_of_other_plans() -> None:
    rows = made_up("torch", plans(), repeats=1)
    rows[3]["tokens"] += 1
    with pytest.raises(DataError, match="other lengths"):
        validate("torch", rows)
    with pytest.raises(DataError, match="no measurement"):
        validate("vllm", rows)


def test_the_embedded_engine_is_measured(tmp_path: Path) -> None:
    """Every budget is spent and counted; the file comes back as it was."""
    few = [
        Plan("fit", 3, None, Lengths.constant(5), 4, 2),
        Plan("check", 4, 3, Lengths.sample([2, 9]), 4, 3, seed=1),
    ]
    rows = measure_engine("torch", few, repeats=2, show=False)
    assert len(rows) == 4
    for row in rows:
        plan = next(p for p in few if p.name == row["plan"])
        assert row["tokens"] == sum(int(s.new_S.sum()) for s in plan.steps()) > 0
        assert row["seconds"] > 0
        assert row["cpu_seconds"] > 0
    path = tmp_path / "deep" / "measurements.csv"
    write_measurements(path, rows)
    assert read_measurements(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["measurements.csv"]
    with pytest.raises(ConfigError, match="torch or vllm"):
        measure_engine("sglang", few, repeats=1, show=False)


@pytest.mark.vllm
@pytest.mark.filterwarnings("ignore")
def test_vllm_is_measured() -> None:
    few = [Plan("fit", 3, None, Lengths.constant(5), 4, 1), Plan("check", 4, 3, Lengths.sample([2, 9]), 4, 2, seed=1)]
    rows = measure_engine("vllm", few, repeats=1, show=False)
    assert [row["seconds"] > 0 for row in rows] == [True, True]


def test_a_measurement_file_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    path = tmp_path / "measurements.csv"
    with pytest.raises(DataError, match="cannot be read"):
        read_measurements(path)
    write_measurements(path, made_up("torch", plans()[:2], repeats=1))
    path.write_text(path.read_text().replace(",0.01,", ",soon,", 1))
    with pytest.raises(DataError, match=r"line 2.*soon"):
        read_measurements(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"line 2.*columns"):
        read_measurements(path)


def test_the_command_keeps_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "measurements.csv"
    monkeypatch.setattr(clock_measure, "measure_engine", made_up)

    def call(*args: str) -> None:
        monkeypatch.setattr("sys.argv", ["clock_measure", "--out", str(path), *args])
        clock_measure.main()

    call("--engine", "torch", "--repeats", "1")
    call("--engine", "vllm", "--repeats", "2")
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        call("--engine", "vllm")
    assert path.read_bytes() == before
    call("--engine", "vllm", "--repeats", "1", "--force")
    rows = read_measurements(path)
    assert len(rows) == 2 * len(plans())


def test_the_kept_measurements_are_of_these_plans() -> None:
    v = validate("vllm", read_measurements(study.KEPT))
    assert len(v.errors()) >= 12
    assert np.median(np.abs(v.errors())) <= 0.15


def test_a_window_at_the_cap_gains_nothing_and_loses_nothing() -> None:
    grid = Grid(windows=(2048, CAP), steps=2)
    cut, whole = speed_up_cell((grid, 1.0, 64, 0))
    assert whole["speed_up"] == whole["speed_up_finished"] == whole["speed_up_read_once"] == 1.0
    assert cut["speed_up_read_once"] > cut["speed_up"] > 1.5


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(sigmas=(0.5, 1.0), slots=(16, 64), windows=(2048, 8192, CAP), steps=2, reference=(1.0, 32, 2048))
    monkeypatch.setattr(study, "Grid", lambda: grid)
    monkeypatch.setattr(study, "measure_engine", made_up)
    monkeypatch.setattr(study, "CHANGES", {"as assumed": {}, "H200": {"hardware": "H200"}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def test_the_study_says_what_it_rests_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None) -> None:
    kept = tmp_path / "kept.csv"
    write_measurements(kept, made_up("vllm", plans(), repeats=2))
    monkeypatch.setattr(study, "KEPT", kept)
    result = run_study(study.STUDY, resolve(study.STUDY, seeds=2), tmp_path / "out")
    text = (tmp_path / "out" / "findings.md").read_text()
    assert "kept measurements of one made up" in text
    with (tmp_path / "out" / "data.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = [row["kind"] for row in rows]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "speed-up": 2 * 2 * 3 * 2, "phases": 7 * 2, "asynchronous": 3 * 2, "sensitivity": 2 * 2,
        "validation": 2 * len(plans()), "price": 2 * 7,
    }  # fmt: skip
    found = study.measure(list(result.rows), study.Grid(), {"torch": "made up", "vllm": "made up", "other": "absent"})
    assert set(found.best) == {(sigma, slots) for sigma in (0.5, 1.0) for slots in (16, 64)}
    assert {cell.window for cell in found.cells} == {2048, 8192}
    assert f"**{max(found.best.values()).speed_up:.2f}** times" in result.answer
    assert set(found.changed) == {"as assumed", "H200"}
    assert found.absent == {"other": "absent"}
    for check in found.engines.values():
        assert check.worst_error < 1e-5  # the prices are known
        assert check.waiting == pytest.approx(2.0, rel=0.03)
        assert check.rates is None or check.rates.flops > 0
    assert (tmp_path / "out" / "figure.png").stat().st_size < 150_000


def test_without_kept_measurements_the_study_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: None
) -> None:
    monkeypatch.setattr(study, "KEPT", tmp_path / "absent.csv")
    result = run_study(study.STUDY, resolve(study.STUDY, seeds=1), tmp_path / "out")
    assert any("not compared" in item for item in result.details)
    assert "vLLM" not in result.answer
