"""The canvas of all figures: no display, one resolution, the same bytes for the same drawing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tppo.figures import DPI, PALETTE, new_figure, save_figure

ROOT = Path(__file__).parents[1]


def test_a_figure_has_its_size_and_the_same_bytes_again(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        figure = new_figure(3, 2)
        figure.subplots().plot([0, 1], color=PALETTE[0])
        save_figure(figure, tmp_path / name)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (3 * DPI, 2 * DPI)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert len(set(PALETTE)) == len(PALETTE)


@pytest.mark.parametrize("package", ["tppo", "paper_repro"])
def test_colours_and_canvas_have_one_door(package: str) -> None:
    for path in set((ROOT / package).rglob("*.py")) - {ROOT / "tppo" / "figures.py"}:
        text = path.read_text()
        assert not any(colour in text for colour in (*PALETTE, "FigureCanvas", "pyplot")), path
