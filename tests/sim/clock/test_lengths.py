"""Length distributions from every source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim.clock.lengths import Lengths


def test_log_normal_has_its_median_tail_and_cap() -> None:
    free = Lengths.log_normal(100, 0.5, 100_000)
    assert free.quantile(0.5) == 100
    # exp(ln 100 + 2.3263 x 0.5) = 320.0, rounded up
    assert free.quantile(0.99) in (320, 321)
    # mean 100 exp(0.5^2 / 2) = 113.31; rounding up adds a half
    assert free.mean == pytest.approx(113.31 + 0.5, abs=0.02)
    capped = Lengths.log_normal(100, 0.5, 150)
    assert capped.cap == 150
    assert capped.prob_L[-1] == pytest.approx(free.prob_L[149:].sum())
    assert (capped.prob_L[:-1] == free.prob_L[:149]).all()


def test_samples_and_draws() -> None:
    lengths = Lengths.sample([2, 2, 5, 7])
    assert lengths.prob_L.tolist() == [0, 0.5, 0, 0, 0.25, 0, 0.25]
    assert lengths.mean == 4
    assert lengths.windows_L(3).tolist() == [1, 1, 1, 2, 2, 2, 3]
    drawn = lengths.draw(np.random.default_rng(0), 4000)
    # 5 standard errors of a share of one half: 0.04
    assert set(drawn.tolist()) == {2, 5, 7}
    assert abs((drawn == 2).mean() - 0.5) < 0.04


def metrics(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_lengths_of_a_run(tmp_path: Path) -> None:
    """Two kinds of steps, three to one; and a step in which nothing finished."""
    short = {"finished": 30, "length_median": 10.0, "length_p99": 40.0, "length_max": 50.0, "other": None}
    long = {"finished": 10, "length_median": 30.0, "length_p99": 90.0, "length_max": 96.0}
    none = {"finished": 0, "length_median": None, "length_p99": None, "length_max": None}
    lengths = Lengths.from_metrics(metrics(tmp_path / "metrics.jsonl", [short, none, long]))
    assert lengths.cap == 96
    assert lengths.prob_L[50:].sum() == pytest.approx(0.25 * (1 - _below(50, 30, 90)), rel=1e-6)
    assert lengths.prob_L[:10].sum() == pytest.approx(0.75 * 0.5 + 0.25 * _below(10, 30, 90), rel=1e-6)


def _below(n: float, median: float, p99: float) -> float:
    from statistics import NormalDist

    sigma = np.log(p99 / median) / NormalDist().inv_cdf(0.99)
    return NormalDist().cdf(np.log(n / median) / sigma)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"finished": 1}\n', "line 1.*length_median"),
        (b'{"finished": 0}\nnot json\n', "line 2"),
        (b"[1]\n", "line 1"),
        (b'{"finished": 0}\n', "no response finished"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_an_unreadable_run_says_so(tmp_path: Path, content: bytes, word: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=word):
        Lengths.from_metrics(path)
    with pytest.raises(ValueError, match="cannot be read"):
        Lengths.from_metrics(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Lengths("x", np.array([0.5, 0.4])), "sum to 1"),
        (lambda: Lengths.sample([]), "whole numbers"),
        (lambda: Lengths.sample([3, 0]), "whole numbers"),
        (lambda: Lengths.sample(np.array([1.5])), "whole numbers"),  # type: ignore[arg-type]
        (lambda: Lengths.log_normal(10, 0.0, 100), "above 0"),
    ],
)
def test_nonsense_is_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
