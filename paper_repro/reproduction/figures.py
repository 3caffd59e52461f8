"""The paper's figures from any set of runs: T-PPO against PPO, one scale against another, seeds of one recipe.

    python -m paper_repro.reproduction.figures runs/toy-language runs/toy-language-ppo --out figures --target 0.9

Writes figure.png (all panels), panels/NAME.png (one each), table.md and table.csv.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paper_repro.reproduction.panels import PANELS, look
from paper_repro.reproduction.records import RunRecord, csv_text, markdown, ratios, read_runs, table_of
from tppo.errors import ConfigError, DataError
from tppo.figures import new_figure, save_figure
from tppo.files import write_whole, writing_to


def draw(runs: Sequence[RunRecord], path: Path, *, target: float | None = None) -> None:
    """All panels in one figure. Raises OSError."""
    figure = new_figure(19, 9.4)
    for ax, name in zip(figure.subplots(2, 4).flat, PANELS, strict=True):
        _panel(ax, name, runs, target)
    _legend(figure, runs, columns=4)
    save_figure(figure, path)


def draw_panel(name: str, runs: Sequence[RunRecord], path: Path, *, target: float | None = None) -> None:
    """One panel in a figure of its own. Raises OSError."""
    figure = new_figure(7, 5)
    _panel(figure.subplots(), name, runs, target)
    if name != "time-by-phase":  # its bars carry the names of the runs
        _legend(figure, runs, columns=2)
    save_figure(figure, path)


def write_all(runs: Sequence[RunRecord], out: Path, *, target: float | None = None) -> str:
    """Figures and tables into ``out``; returns the table as markdown.

    Raises ConfigError for a target outside (0, 1] and for a folder that cannot be written.
    """
    if target is not None and not 0 < target <= 1:
        raise ConfigError("target", target, "a number in (0, 1]", "it is a share of problems solved")
    table = table_of(runs, target)
    text = markdown(table, target)
    if target is not None and (said := ratios(runs, target)):
        text += f"\n{said}\n"
    with writing_to(out):
        (out / "panels").mkdir(parents=True, exist_ok=True)
        write_whole(out / "table.md", text)
        write_whole(out / "table.csv", csv_text(table))
        draw(runs, out / "figure.png", target=target)
        for name in PANELS:
            draw_panel(name, runs, out / "panels" / f"{name}.png", target=target)
    return text


def _panel(ax: Any, name: str, runs: Sequence[RunRecord], target: float | None) -> None:
    PANELS[name](ax, runs)
    if target is not None and name.startswith("score"):
        ax.axhline(target, color="k", lw=0.8, ls=(0, (1, 2)))
        ax.annotate(f"target {target:g}", (0.99, target), xycoords=("axes fraction", "data"), ha="right", va="top",
                    fontsize=8)  # fmt: skip
    ax.title.set_fontsize(10.5)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.25)
    ax.set_axisbelow(True)


def _legend(figure: Any, runs: Sequence[RunRecord], *, columns: int) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], lw=2, label=label, **style) for label, style in look(runs).items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(columns, len(handles)), frameon=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status: 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m paper_repro.reproduction.figures",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folders that 'tppo train' wrote")
    parser.add_argument("--out", type=Path, required=True, help="folder of the figures; what is there is replaced")
    parser.add_argument("--target", type=float, help="solve rate in (0, 1]; adds what it took to reach it")
    args = parser.parse_args(argv)
    try:
        print(write_all(read_runs(args.runs), args.out, target=args.target), end="")
    except (ConfigError, DataError) as error:
        print(f"figures: {error}", file=sys.stderr)
        return 2
    print(f"written to {args.out}: figure.png, panels/, table.md, table.csv")
    return 0


if __name__ == "__main__":
    sys.exit(main())
