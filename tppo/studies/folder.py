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
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict

from tppo.errors import ConfigError, DataError
from tppo.figures import DPI
from tppo.files import check_writable, is_free, read_file, read_object
from tppo.shapes import misfit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("data.csv", "figure.png", "findings.md", "study.json")
Chapter = Literal["exact", "learning", "time"]


class Options(TypedDict):
    """Of the command that made a study."""

    full: NotRequired[bool]
    seeds: NotRequired[int]
    seed: NotRequired[int]


class Environment(TypedDict):
    """Of the process that made a study."""

    packages: NotRequired[dict[str, str | None]]
    python: NotRequired[str]
    git: NotRequired[str | None]


class Record(TypedDict):
    """study.json, as far as it is read."""

    name: str
    chapter: Chapter
    question: str
    answer: str
    details: list[str]
    limits: list[str]
    caption: str
    options: Options
    seconds: NotRequired[float]
    environment: NotRequired[Environment]


def check_study_folder(path: Path, name: str, *, force: bool = False) -> None:
    """Raise ConfigError unless `path` may be written: absent, empty, or with `force` an earlier run of this study."""
    free = is_free(path)
    if not free and not path.is_dir():
        raise ConfigError("out", str(path), "a folder that can be written")
    check_writable(path)
    check_writable(path.parent)  # where it is made before it takes its place
    if free:
        return
    found = sorted(entry.name for entry in path.iterdir())
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
        content = read_object(path / "study.json")
    except DataError as error:
        raise ConfigError("study", str(path), "a folder with the study.json of a finished study", str(error)) from None
    if wrong := misfit(Record, content):
        raise ConfigError("study", str(path), "the study.json of a finished study", wrong)
    return content


def read_rows(path: Path) -> list[list[str]]:
    """data.csv of a folder as text, the header first. Raises ConfigError for one that cannot be read."""
    try:
        rows = list(csv.reader(io.StringIO(read_file(path / "data.csv").decode("utf-8"), newline="")))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError("study", str(path), "a folder with the data.csv of a finished study", str(error)) from None
    if not rows:
        raise ConfigError("study", str(path), "a data.csv with a header")
    return rows


def read_figure(path: Path) -> bytes:
    """figure.png of a folder. Raises ConfigError for one that cannot be read, and for what is no PNG."""
    try:
        data = read_file(path / "figure.png")
    except OSError as error:
        raise ConfigError("study", str(path), "a folder with the figure.png of a study", str(error)) from None
    if not data.startswith(b"\x89PNG\r\n"):
        raise ConfigError("study", str(path), "a figure.png that is one")
    return data


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
