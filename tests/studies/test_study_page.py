"""The one page of all studies: complete, self-contained, readable on a phone and on a desk."""

from __future__ import annotations

import base64
import dataclasses
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from paper_repro.studies.intervals import mean_interval
from tests.support import toy_studies
from tests.support.browser import measure
from tppo.cli import main
from tppo.errors import ConfigError
from tppo.studies.page import inline, write_page
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks, resolve, run_study

EVIDENCE = Path(__file__).parents[2] / "paper_repro" / "evidence" / "studies"
NINE = ("bias", "gradient", "last-m", "window", "zero-critic", "ablation", "staleness", "transient", "clock")


class Outline(HTMLParser):
    """Tags with attributes, ids, and whether every tag that opens is closed."""

    void = ("meta", "img", "input", "br", "link")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def nine(folder: Path) -> list[Path]:
    """Nine studies with long words, wide figures and wide tables."""
    long = "unbreakable" * 30

    def run(options: StudyOptions, progress: Ticks) -> StudyResult:
        result = toy_studies.run(options, progress)
        result.figure.set_size_inches(11, 6)
        rows = [dict(row) | {f"column_{i}": i / 7 for i in range(30)} for row in result.rows] * 60
        return dataclasses.replace(result, rows=rows, answer=f"`{long}` {result.answer}", details=[long, "short"])

    folders = []
    for i, name in enumerate(NINE):
        study = Study(name, ("exact", "learning", "time")[i // 3], f"Is {name} a {long}?", run, seeds=2)
        run_study(study, resolve(study), folder / name)
        folders.append(folder / name)
    return folders


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("nine")
    return write_page(nine(folder), folder, absent={"ghost": "failed: <b>"}).read_text()


def check_outline(page: str, names: list[str]) -> None:
    outline = Outline(page)
    images = outline.all("img")
    assert len(images) == len(names)
    for image in images:
        assert len(image["alt"] or "") > 20
        kind, _, data = (image["src"] or "").partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True)[:8] == b"\x89PNG\r\n\x1a\n"
    assert [s["id"] for s in outline.all("section")] == names
    links = [a["href"] or "" for a in outline.all("a")]
    assert {f"#{name}" for name in names} <= set(links)
    # Nothing comes from elsewhere, and nothing runs.
    assert outline.all("script") == outline.all("link") == outline.all("iframe") == []
    for _, attributes in outline.tags:
        assert not any(key.startswith("on") for key in attributes)
        for key in ("src", "href", "srcset", "action", "poster"):
            value = attributes.get(key)
            assert value is None or value.startswith(("data:", "#")), value
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert re.search(r"img\{[^}]*max-width:100%", style)
    assert re.search(r"\.scroll\{[^}]*overflow:auto", style)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in outline.all("meta")
    assert outline.all("html") == [{"lang": "en"}]
    ids = [a["id"] for _, a in outline.tags if a.get("id")]
    assert len(ids) == len(set(ids))


def test_the_page_holds_every_study_and_needs_nothing_else(page: str) -> None:
    check_outline(page, list(NINE))
    assert "&lt;near&gt;" in page  # texts are escaped
    assert mean_interval([toy_studies.draw(0), toy_studies.draw(1)]).text() in page
    assert "the first 100 of 120 rows" in page
    assert "<b>ghost</b>: failed: &lt;b&gt;" in page


def test_the_whole_table_can_be_taken_from_the_page(page: str, tmp_path: Path) -> None:
    link = next(a for a in Outline(page).all("a") if a.get("download") == "bias.csv")
    text = base64.b64decode((link["href"] or "").partition(",")[2]).decode()
    assert text.count("\n") == 121


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_overflows_and_every_figure_is_there(page: str, width: int, tmp_path: Path) -> None:
    check_layout(measure(page, width, tmp_path), 9, width)


def check_layout(measured: dict, figures: int, width: int) -> None:  # type: ignore[type-arg]
    assert len(measured["images"]) == figures
    assert all(image["natural"] > 0 for image in measured["images"])
    assert all(image["shown"] <= width for image in measured["images"])
    assert measured["overflowing"] == []
    assert measured["client_width"] == width
    assert measured["scroll_width"] <= width
    assert measured["smallest_font"] >= 12
    assert all(inner <= width for inner, _ in measured["tables"])
    # A tap shows a figure at its own size, inside its box.
    assert measured["zoomed"] == [image["natural"] for image in measured["images"]]
    assert measured["zoomed_scroll_width"] <= width


def test_the_ruler_sees_an_overflow(page: str, tmp_path: Path) -> None:
    spoilt = page.replace("overflow-wrap:anywhere}", "white-space:nowrap}").replace("base64,iVBOR", "base64,AAAAA")
    measured = measure(spoilt, 360, tmp_path)
    assert measured["overflowing"]
    assert measured["scroll_width"] > 360
    assert all(image["natural"] == 0 for image in measured["images"])


@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_of_the_runs_that_are_kept(width: int, tmp_path: Path) -> None:
    folders = sorted(path.parent for path in EVIDENCE.glob("*/study.json"))
    assert {folder.name for folder in folders} <= set(NINE)
    page = write_page(folders, tmp_path).read_text()
    names = re.findall(r'<section id="([^"]+)"', page)
    assert sorted(names) == [folder.name for folder in folders]
    check_outline(page, names)
    check_layout(measure(page, width, tmp_path), len(folders), width)


def test_all_runs_everything_and_one_failure_costs_only_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, toy="TOY", broken="BROKEN", gone="no_such_module:STUDY", exact_toy="EXACT")
    call = ["study", "all", "--quiet", "--seeds", "3", "--out", str(tmp_path)]
    assert main(call) == 1
    said = capsys.readouterr()
    assert "study broken failed: ArithmeticError: the table has no end" in said.err
    assert "study gone is not on the page: cannot be loaded" in said.err
    assert "2 studies on" in said.out
    assert {p.name for p in tmp_path.iterdir()} == {"toy", "exact-toy", "index.html"}
    page = (tmp_path / "index.html").read_text()
    assert page.index('id="exact-toy"') < page.index('id="toy"')  # exact answers first
    assert "over 3 seeds" in page
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main(call) == 2
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_the_page_is_built_again_without_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    toy_studies.install(monkeypatch, toy="TOY")
    assert main(["study", "all", "--quiet", "--out", str(tmp_path / "a")]) == 0
    first = (tmp_path / "a/index.html").read_bytes()
    toy_studies.install(monkeypatch, toy="BROKEN", exact_toy="EXACT")
    reuse = ["study", "all", "--reuse", str(tmp_path / "a")]
    assert main([*reuse, "--out", str(tmp_path / "b")]) == 1  # one study is not there
    second = (tmp_path / "b/index.html").read_text()
    assert "<b>exact-toy</b>: not run" in second
    toy_studies.install(monkeypatch, toy="BROKEN")
    assert main(reuse) == 2
    assert "--force replaces it" in capsys.readouterr().err
    assert main([*reuse, "--force"]) == 0
    assert (tmp_path / "a/index.html").read_bytes() == first


def test_the_page_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    run_study(toy_studies.TOY, resolve(toy_studies.TOY), tmp_path / "toy")
    (tmp_path / "index.html").write_text("<p>mine</p>")
    with pytest.raises(ConfigError, match="page of something else"):
        write_page([tmp_path / "toy"], tmp_path, force=True)
    assert (tmp_path / "index.html").read_text() == "<p>mine</p>"
    with pytest.raises(ConfigError, match="at least one finished study"):
        write_page([], tmp_path / "toy")


def test_a_study_stands_on_the_page_once(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_study(toy_studies.TOY, resolve(toy_studies.TOY), tmp_path / name)
    with pytest.raises(ConfigError, match="every study once"):
        write_page([tmp_path / "a", tmp_path / "b"], tmp_path)
    assert not (tmp_path / "index.html").exists()


def test_inline_marks() -> None:
    assert inline('a `b_1<` **c** & "d"') == "a <code>b_1&lt;</code> <b>c</b> &amp; &quot;d&quot;"
