"""What the studies find in the data that are kept: numbers, and that the kept texts are made of them."""

from __future__ import annotations

import csv
import functools
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from paper_repro.studies.time.cells import Grid
from tppo.figures import new_figure
from tppo.studies.folder import read_study
from tppo.studies.study import StudyResult, findings, load_study, study_entry_points

EVIDENCE = Path(__file__).parents[2] / "paper_repro" / "evidence" / "studies"
NAMES = sorted(path.name for path in EVIDENCE.iterdir())
# Where the measurements of the kept clock come from, which is not in its data.
SOURCES = {
    "torch": "measured in this run",
    "vllm": "not installed here, so from the kept measurements of one AMD EPYC, threads: 1",
}


def module_of(name: str) -> ModuleType:
    return importlib.import_module(study_entry_points()[name].module)


def value(text: str) -> Any:
    if text in ("", "True", "False"):
        return {"": None, "True": True, "False": False}[text]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@functools.cache
def kept(name: str) -> Any:
    """The findings of the kept data."""
    with (EVIDENCE / name / "data.csv").open(newline="", encoding="utf-8") as file:
        rows = [{key: value(text) for key, text in row.items()} for row in csv.DictReader(file)]
    more = (Grid(), SOURCES) if name == "clock" else ()
    return module_of(name).measure(rows, *more)


@pytest.mark.parametrize("name", NAMES)
def test_kept_texts_are_what_the_kept_data_say(name: str) -> None:
    """Answer and details follow from data.csv alone, by the code of today; findings.md says them."""
    stored = read_study(EVIDENCE / name)
    answer, details = module_of(name).say(kept(name))
    assert answer == stored["answer"]
    assert details == stored["details"]
    result = StudyResult([], new_figure(1, 1), stored["caption"], answer, details, stored["limits"])
    assert findings(load_study(name), result) == (EVIDENCE / name / "findings.md").read_text(encoding="utf-8")
    assert stored["options"]["full"] is False


@pytest.mark.parametrize("name", NAMES)
def test_kept_files_are_small(name: str) -> None:
    assert (EVIDENCE / name / "data.csv").stat().st_size < 200_000
    assert (EVIDENCE / name / "figure.png").stat().st_size < 150_000


def test_bias() -> None:
    found = kept("bias")
    assert found.exact["EGAE, critic"].highest < 1e-12  # unbiased with an exact critic
    assert found.exact["GAE"].highest < 1e-12
    assert found.exact["EGAE, repeat"] == pytest.approx((0.07, 0.06, 0.13), abs=0.005)
    assert found.exact["EGAE, terminal"] == pytest.approx((2.34, 2.28, 3.71), abs=0.005)
    assert found.steering["EGAE, repeat"] == pytest.approx((0.26, 0.13, 0.38), abs=0.005)
    assert found.steering["GAE"] == pytest.approx((0.16, 0.08, 0.22), abs=0.005)
    assert found.steering["Monte Carlo"].highest < 1e-12
    assert found.spread_ratio.highest < 1  # EGAE varies less than Monte Carlo on every table
    assert list(found.by_window) == [8, 16, 32]
    assert found.by_window[8].median > found.by_window[16].median > found.by_window[32].median
    assert found.by_window[16] == found.by_lam[0.95] == found.exact["EGAE, repeat"]
    # The bias sits at the cut and fades with the distance from it.
    places = [found.by_place[left].median for left in range(16)]
    assert places == sorted(places, reverse=True)
    assert places[0] == pytest.approx(0.32, abs=0.005)
    assert set(found.least_error.values()) == {"EGAE, repeat"}
    assert found.discount == 0.99
    assert found.discount_bias == pytest.approx((0.14, 0.13, 0.14), abs=0.005)


def test_gradient() -> None:
    found = kept("gradient")
    for kind in ("exact", "zero", "optimistic", "noisy", "stale"):
        assert found.angles["Monte Carlo", kind].highest < 0.05  # unbiased whatever the critic
        worst = max(found.angles[name, kind].median for name in ("EGAE, repeat", "EGAE, critic", "GAE"))
        assert found.angles["EGAE, terminal", kind].median > 0.9 * worst
    assert found.angles["EGAE, repeat", "exact"] == pytest.approx((0.3, 0.0, 0.5), abs=0.05)
    assert found.angles["EGAE, repeat", "stale"] == pytest.approx((8.4, 2.9, 13.9), abs=0.05)
    assert found.angles["GAE", "stale"] == pytest.approx((5.6, 1.9, 9.5), abs=0.05)
    assert found.angles["EGAE, terminal", "stale"] == pytest.approx((22.2, 15.4, 26.3), abs=0.05)
    assert found.by_window[16] == found.angles["EGAE, repeat", "stale"]
    assert found.by_window[8].median > found.by_window[16].median > found.by_window[32].median
    assert found.length == pytest.approx((1.10, 0.86, 1.29), abs=0.005)
    assert list(found.as_trained) == ["garnet", "ladder", "lock", "tail"]
    for cosine in found.as_trained.values():
        assert 0.97 < cosine.low <= cosine.mean <= cosine.high <= 1.0
    assert found.as_trained["lock"] == pytest.approx((0.9783, 0.9775, 0.9792), abs=1e-4)
    assert found.filter_change == pytest.approx((-3.3, 3.5), abs=0.05)
    assert found.filter_alone == pytest.approx((1.8, 1.4, 3.4), abs=0.05)
    assert found.whitening_change == pytest.approx((-1.3, 0.1), abs=0.05)
    assert found.clamped_at_10 == 0
    assert found.clamped_at_2 == pytest.approx((0.052, 0.005, 0.091), abs=0.0005)


def test_last_m() -> None:
    found = kept("last-m")
    assert found.port.ignore_last == 8
    assert found.angles["exact"][0] == pytest.approx((0.3, 0.1, 0.5), abs=0.05)
    assert found.angles["exact"][8] == pytest.approx((3.1, 2.4, 7.1), abs=0.05)
    assert found.angles["stale"][8] == pytest.approx((6.3, 1.4, 12.1), abs=0.05)
    assert found.angles_at_critic[0].highest < 1e-3  # nothing is biased but the filter
    assert found.angles_at_critic[1] == pytest.approx((0.7, 0.4, 0.9), abs=0.05)
    assert found.dropped[0].highest < 1e-12
    assert found.dropped[8] == pytest.approx((0.22, 0.17, 0.32), abs=0.005)
    assert found.lengths[8] == pytest.approx((0.94, 0.83, 0.99), abs=0.005)
    errors = [found.errors[m].median for m in sorted(found.errors)]
    assert errors == sorted(errors)
    for kind in ("exact", "stale"):
        assert found.worth[kind][0] == found.noise[kind][0] == (1.0, 1.0, 1.0)
        assert found.noise[kind][8].highest <= 1.005
    assert found.worth["exact"][8] == pytest.approx((0.99, 0.94, 0.99), abs=0.005)
    assert found.worth["stale"][8] == pytest.approx((0.99, 0.97, 1.01), abs=0.005)
    assert found.worth_error < 0.0015
    assert found.worth_range == pytest.approx((0.88, 1.02), abs=0.005)
    assert found.cells == {"exact": 24, "stale": 24}
    assert sum(found.paying["exact"].values()) == 0
    assert found.paying["stale"] == {"garnet": 1, "ladder": 2, "lock": 6, "tail": 0}


def test_clock() -> None:
    found = kept("clock")
    assert len(found.cells) == 45
    assert found.reaching == 2
    assert found.losing == 16
    assert found.best[1.0, 128][0::3] == pytest.approx((2.62, 4096), abs=0.005)
    assert found.best[1.5, 8192][0::3] == pytest.approx((0.93, 16384), abs=0.005)
    assert min(found.cells).speed_up == pytest.approx(0.30, abs=0.005)
    for key, cell in found.best.items():
        assert 1 <= found.best_read_once[key].speed_up / cell.speed_up < 1.21
    assert found.decode_share == pytest.approx({128: 0.88, 1024: 0.66, 8192: 0.39}, abs=0.005)
    assert found.phases["PPO"] == pytest.approx(170, abs=0.5)
    assert min(found.phases, key=found.phases.__getitem__) == "partial, ½"
    assert found.asynchronous["staleness 0"] > 2 * found.asynchronous["staleness 1"]
    assert found.changed["as assumed"] == pytest.approx(1.88, abs=0.005)
    assert (min(found.changed.values()), max(found.changed.values())) == pytest.approx((1.17, 2.99), abs=0.005)
    torch, vllm = found.engines["torch"], found.engines["vllm"]
    assert torch.checked == vllm.checked == 16
    assert (torch.error, vllm.error) == pytest.approx((0.084, 0.047), abs=0.0005)
    assert max(torch.worst_error, vllm.worst_error) < 0.21
    assert (min(vllm.speed_ups), max(vllm.speed_ups)) == pytest.approx((1.04, 1.58), abs=0.005)
    assert vllm.rates.flops == pytest.approx(71e9, abs=0.5e9)


def test_window() -> None:
    found = kept("window")
    assert list(found.reached) == [
        "W = 4", "W = 8", "W = 16", "W = 32", "W = 64", "W = 64, half the slots", "W = 4, rate 0.2", "W = 64, rate 0.2",
    ]  # fmt: skip
    assert {(of.runs, of.missed) for of in found.reached.values()} == {(10, 0)}
    clock = [found.reached[f"W = {w}"].need["decode_steps"].mean for w in (4, 8, 16, 32, 64)]
    assert clock == sorted(clock)
    assert clock[0] == pytest.approx(180, abs=0.5)
    assert found.clock_ratio["W = 64", "W = 4"] == pytest.approx((5.9, 5.5, 6.4), abs=0.05)
    assert found.tokens_ratio["W = 64", "W = 4"] == pytest.approx((1.85, 1.76, 1.98), abs=0.005)
    assert found.tokens_ratio["W = 64, half the slots", "W = 4"] == pytest.approx((1.18, 1.13, 1.28), abs=0.005)
    assert found.tokens_ratio["W = 64, rate 0.2", "W = 4"].high < 1  # with a rate of its own PPO needs fewer tokens
    assert found.clock_ratio["W = 64, rate 0.2", "W = 4"].low > 2  # and still more time
    assert found.end >= 13_000
    assert found.last_return["W = 4"] == pytest.approx((0.945, 0.941, 0.949), abs=0.0005)


def test_zero_critic() -> None:
    found = kept("zero-critic")
    assert len(found.reached) == 11
    assert {(of.runs, of.missed) for of in found.reached.values()} == {(6, 0)}
    lost = found.steps_lost
    assert lost["V = 0", "exact V"] == pytest.approx((5.8, 4.4, 7.1), abs=0.05)
    assert lost["V = 0, slow critic", "exact V"] == pytest.approx((17.3, 12.3, 23.9), abs=0.05)
    assert lost["V = 0, PPO", "exact V, PPO"] == pytest.approx((2.1, 0.6, 3.6), abs=0.05)
    assert lost["V = 0", "V = 0, warm-up 5"].high < 0  # five steps of warm-up cost more than they bring
    assert lost["V = 0", "V = 0, not centred"] == pytest.approx((5.3, 4.5, 6.4), abs=0.05)
    assert lost["V = 0, slow critic", "V = 0, not centred, slow critic"].low > 10
    assert found.final["V = 0"] == pytest.approx((0.912, 0.908, 0.916), abs=0.0005)


def test_ablation() -> None:
    found = kept("ablation")
    assert len(found.reached) == 8
    assert {(of.runs, of.missed) for of in found.reached.values()} == {(8, 0)}
    ratio = found.tokens_ratio
    assert ratio["wait for the end", "T-PPO"] == pytest.approx((1.06, 1.00, 1.12), abs=0.005)
    assert ratio["PPO, critic apart", "T-PPO"] == pytest.approx((1.29, 1.23, 1.38), abs=0.005)
    same = [("critic on all", "T-PPO"), ("no token filter", "T-PPO")]
    for pair in [*same, ("PPO, critic on the policy's targets", "PPO, critic apart")]:
        assert ratio[pair].low < 1 < ratio[pair].high
        assert ratio[pair].mean == pytest.approx(1, abs=0.025)
    assert found.reached["T-PPO"].need["tokens"] == pytest.approx((6671, 6462, 6958), abs=0.5)
    assert found.reached["T-PPO"].need["decode_steps"] == pytest.approx((336, 325, 346), abs=0.5)


def test_staleness() -> None:
    found = kept("staleness")
    assert found.end == 480
    assert len(found.mean) == 12
    for gain in (found.mean_gain, found.final_gain):
        for rate in ("0.05", "0.2"):
            assert gain[f"T-PPO @ {rate}", f"PPO @ {rate}"].low > 0
        assert gain["T-PPO @ 0.05", "wait, decoupled @ 0.05"].low > 0
        undecided = gain["T-PPO @ 0.2", "wait, decoupled @ 0.2"]
        assert undecided.low < 0 < undecided.high
    assert found.mean_gain["T-PPO @ 0.05", "PPO @ 0.05"] == pytest.approx((0.193, 0.185, 0.203), abs=0.0005)
    assert found.mean_gain["T-PPO @ 0.05", "wait, decoupled @ 0.05"] == pytest.approx((0.013, 0.006, 0.022), abs=0.0005)
    assert found.best_wait == dict.fromkeys((0.05, 0.2), "wait, ratio to behaviour")
    assert all(0 < versions <= 64 / 4 for versions in found.oldest.values())


def test_transient() -> None:
    found = kept("transient")
    assert found.solve_rate == pytest.approx(0.514, abs=0.0005)
    assert found.steps == 32
    # What was opened first is known after cap / window steps.
    assert {window: of.lasts for window, of in found.windows.items()} == {4: 16, 8: 8, 16: 4, 64: 0}
    assert {window: of.critic_lasts for window, of in found.windows.items()} == {4: 32, 8: 21, 16: 9, 64: 0}
    short, whole = found.windows[4], found.windows[64]
    assert (short.solve_rate.min(), short.solve_rate.max()) == pytest.approx((-0.218, 0.116), abs=0.0005)
    assert (short.critic.min(), short.critic.max()) == pytest.approx((-0.149, 0.073), abs=0.0005)
    assert not whole.solve_rate.any()
    assert not whole.critic.any()
    assert short.early.high < 0
    for of in found.windows.values():
        assert of.late.low < 0 < of.late.high
    assert found.per_response == pytest.approx((-0.099, -0.105, -0.089), abs=0.0005)
    assert found.per_token.low < 0 < found.per_token.high
    assert found.largest_gap == pytest.approx(3.1, abs=0.05)
