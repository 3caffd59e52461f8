"""What all figures share: the colours, and a canvas that needs no display. matplotlib is imported when one is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, safe for colour blindness, and a grey for what stands in the background.
BLUE, ORANGE, GREEN, RED, PINK, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
YELLOW, BLACK, GREY = "#F0E442", "#000000", "#7F7F7F"
PALETTE = (BLUE, ORANGE, GREEN, RED, PINK, SKY, GREY, BLACK)
"""For curves that need no colour of their own, in this order."""
DPI = 100
"""Dots an inch of every figure."""


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of width x height inches, drawn without a display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure; the suffix of the path says as what. Raises OSError."""
    figure.savefig(path, dpi=DPI)
