"""What the figure of a run shows of algorithms that report different things."""

from __future__ import annotations

from typing import Any

import pytest

from tppo.figures import new_figure
from tppo.runs.curves import _time, _trust

PHASES = ("load_policy", "generate", "grade", "reference", "critic", "logprobs", "update_critic", "update_policy")


def rows(**values: float) -> list[dict[str, Any]]:
    return [{"step": step, **values} for step in range(3)]


def test_phases_of_a_step_differ_in_colour_and_idle_ones_are_left_out() -> None:
    ax = new_figure(4, 4).subplots()
    _time(ax, rows(**{f"seconds_{p}": 1.0 for p in PHASES}, seconds_update_reference=1e-6, seconds_step=9.0), {})
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [p.replace("_", " ") for p in PHASES]
    colours = [tuple(band.get_facecolor()[0]) for band in ax.collections]
    assert len(set(colours)) == len(PHASES)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, None),
        ({"bounded_fraction": 0.25}, ["weight bounded"]),
        ({"entropy": 1.0, "policy_kl": 0.1}, ["entropy [nats]", "KL of the update [nats]"]),
    ],
)
def test_the_policy_s_panel_shows_what_there_is_or_says_that_there_is_nothing(
    values: dict[str, float], says: list[str] | None
) -> None:
    ax = new_figure(4, 4).subplots()
    _trust(ax, rows(**values), {})
    if says is None:
        assert [text.get_text() for text in ax.texts] == ["this algorithm reports none"]
        assert ax.get_legend() is None
    else:
        assert [text.get_text() for text in ax.get_legend().get_texts()] == says
        assert not ax.texts
