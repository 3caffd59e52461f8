"""The folder of a study: who may write it, and what is in it."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tppo.errors import ConfigError
from tppo.figures import DPI
from tppo.files import check_writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("data.csv", "figure.png", "findings.md", "study.json")


def check_study_folder(path: Path, name: str, *, force: bool = False) -> None:
    """Raise ConfigError unless `path` may be written: absent, empty, or with `force` an earlier run of this study."""
    if not path.exists():
        check_writable(path)
        return
    if not path.is_dir() or not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise ConfigError("out", str(path), "a folder that can be written")
    found = sorted(entry.name for entry in path.iterdir())
    if not found:
        return
    foreign = [entry for entry in found if entry not in FILES]
    owner = None if foreign or "study.json" not in found else read_study(path)["name"]
    if owner != name:
        what = f"files that no study wrote ({', '.join(foreign[:3])})" if foreign else f"the study {owner!r}"
        raise ConfigError("out", str(path), f"a folder without {what}", "choose another; nothing was touched")
    if not force:
        raise ConfigError("out", str(path), "a folder without a finished study", "--force replaces it by a new run")


def read_study(path: Path) -> dict[str, Any]:
    """study.json of a folder. Raises ConfigError where there is none that can be read."""
    try:
        content = json.loads((path / "study.json").read_text(encoding="utf-8"))
        missing = {"name", "chapter", "question", "answer", "details", "limits", "caption", "options"} - set(content)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError("study", str(path), "a folder with the study.json of a finished study", str(error)) from None
    if missing:
        raise ConfigError("study", str(path), f"a study.json with {', '.join(sorted(missing))}")
    return dict(content)


def read_rows(path: Path) -> list[list[str]]:
    """data.csv of a folder as text, the header first."""
    with (path / "data.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def write_files(
    path: Path, rows: Sequence[Mapping[str, Any]], figure: Figure, findings: str, record: Mapping[str, Any]
) -> None:
    """The four files of a study in an existing folder."""
    with (path / "data.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({key: _cell(value) for key, value in row.items()} for row in rows)
    _save_figure(figure, path / "figure.png")
    (path / "findings.md").write_text(findings, encoding="utf-8")
    (path / "study.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def swap(new: Path, place: Path) -> None:
    """Move `new` to `place`; what was there goes only once the new folder stands."""
    old = new.with_name(new.name + ".old")
    if place.exists():
        os.replace(place, old)
    try:
        os.replace(new, place)
    except OSError:
        if old.exists():
            os.replace(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _save_figure(figure: Figure, path: Path) -> None:
    """As a PNG of 256 colours, a third of the size; no version stamp, so the same run gives the same bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, metadata={"Software": None})
    picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(path, format="PNG", optimize=True)


def _cell(value: Any) -> Any:
    """Nine digits tell a result from another; NaN and infinity are left empty."""
    if isinstance(value, bool) or not hasattr(value, "__float__") or hasattr(value, "__index__"):
        return value
    return format(float(value), ".9g") if math.isfinite(float(value)) else ""
