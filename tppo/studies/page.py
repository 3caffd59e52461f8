"""One HTML page of all studies: inline style, embedded figures and data, no script, nothing from the network.

The page is built from the folders that `tppo.studies.study.run_study` wrote; it can be made again without a run.
Figures fill the width; on a phone a tap shows one at its own size, to be swiped over. Tables scroll inside their box.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, get_args

from tppo.errors import ConfigError
from tppo.files import check_writable, read_file, write_whole, writing_to
from tppo.studies.folder import Chapter, read_figure, read_rows, read_study

PAGE = "index.html"
_MARK = '<meta name="generator" content="tppo study">'
_TITLES = {"exact": "Exact answers", "learning": "Learning runs", "time": "Time"}
_ABOUT = {
    "exact": "Computed on small tables whose values, gradients and estimator moments are known exactly.",
    "learning": "Training runs, repeated with independent seeds; intervals are over seeds.",
    "time": "A model of the rollout's time on given hardware, held against what was measured.",
}
_TABLE_ROWS = 100  # more make the page slow on a phone; the whole table is one tap away
_STYLE = """
:root{color-scheme:light dark;--ink:#1b1b1b;--soft:#5a5a5a;--line:#d5d5d5;--paper:#fff;--tint:#f4f6f8;--link:#0060a0}
@media (prefers-color-scheme:dark){:root{
--ink:#e8e8e8;--soft:#a9a9a9;--line:#444;--paper:#161616;--tint:#222;--link:#7cc0ee}}
*{box-sizing:border-box}
body{margin:0;color:var(--ink);background:var(--paper);font:1rem/1.55 system-ui,sans-serif;overflow-wrap:anywhere}
main{max-width:58rem;margin:0 auto;padding:1rem}
h1{font-size:1.6rem;line-height:1.25}
h2{font-size:1.3rem;margin:3rem 0 .5rem;border-bottom:1px solid var(--line)}
h3{font-size:1.1rem;margin:2.5rem 0 .5rem}
a{color:var(--link)}
code{font-size:.9em;background:var(--tint);padding:0 .2em}
.answer{font-size:1.05rem;background:var(--tint);border-left:.3rem solid var(--link);padding:.6rem .8rem}
figure{margin:1rem 0}
.frame{overflow-x:auto;background:#fff}
.frame img{display:block;max-width:100%;height:auto}
figure input{position:absolute;opacity:0}
figure input:focus-visible~label{outline:2px solid var(--link)}
figure input:checked~.frame img{max-width:none}
label,summary{cursor:pointer;color:var(--link);font-size:.9rem;padding:.4rem 0}
label{display:none}
@media (max-width:60rem){label{display:inline-block}}
figcaption,.facts{color:var(--soft);font-size:.9rem}
details{margin:.4rem 0}
.scroll{overflow:auto;max-height:24rem;border:1px solid var(--line)}
table{border-collapse:collapse;font:.8rem/1.4 ui-monospace,monospace;overflow-wrap:normal;white-space:nowrap}
th,td{padding:.15rem .5rem;border-bottom:1px solid var(--line);text-align:left}
th{position:sticky;top:0;background:var(--tint)}
"""


def write_page(
    folders: Sequence[Path], out: Path, *, absent: Mapping[str, str] | None = None, force: bool = False
) -> Path:
    """Write out/index.html from the folders of finished studies.

    Raises ConfigError where a folder is not that of a finished study, or the page may not be written.

    absent: studies that are not on the page, and why; the page says so.
    force: replace a page that was made by this function. Any other file is never replaced.
    """
    check_page(out, force=force)
    studies = [(folder, read_study(folder)) for folder in folders]
    if not studies:
        raise ConfigError("reuse", str(out), "at least one finished study", "run 'tppo study all' first")
    names = [study["name"] for _, study in studies]
    if len(set(names)) < len(names):
        raise ConfigError("reuse", ", ".join(map(str, folders)), "every study once", f"found {', '.join(names)}")
    page, text = out / PAGE, render(studies, absent or {})
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(page, text)
    return page


def check_page(out: Path, *, force: bool = False) -> None:
    """Raise ConfigError unless out/index.html may be written."""
    check_writable(out)
    page = out / PAGE
    if not os.path.lexists(page):
        return
    ours = page.is_file() and _MARK in page.read_text(encoding="utf-8", errors="replace")[:500]
    if not ours:
        raise ConfigError("out", str(page), "a folder without a page of something else", "choose another")
    if not force:
        raise ConfigError("out", str(page), "a folder without a page", "--force replaces it by a new one")


def render(studies: Sequence[tuple[Path, Mapping[str, Any]]], absent: Mapping[str, str]) -> str:
    """The page as text."""
    body = [_head(len(studies)), _contents(studies)]
    for chapter in get_args(Chapter):
        within = [(folder, study) for folder, study in studies if study["chapter"] == chapter]
        if within:
            body.append(f"<h2>{_TITLES[chapter]}</h2>\n<p>{_ABOUT[chapter]}</p>")
            body += [_section(folder, study) for folder, study in within]
    if absent:
        items = "".join(f"<li><b>{escape(name)}</b>: {escape(why)}</li>" for name, why in sorted(absent.items()))
        body.append(f"<h2>Not on this page</h2>\n<ul>{items}</ul>")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_MARK}\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Studies of Truncated PPO</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(body) + "\n</main>\n</body>\n</html>\n"
    )


def inline(text: str) -> str:
    """Text with `code` and **bold** as HTML, everything else escaped.

    >>> inline("**0.2** < `lam`")
    '<b>0.2</b> &lt; <code>lam</code>'
    """
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return re.sub(r"\*\*([^*]+)\*\*", r"<b>\1</b>", text)


def _head(count: int) -> str:
    return (
        "<h1>Studies of Truncated PPO</h1>\n"
        f"<p>{count} questions about the method of arXiv 2506.15050, each answered by a run whose data, options and "
        "limits are given. Every number on this page was written by the run that found it.</p>"
    )


def _contents(studies: Sequence[tuple[Path, Mapping[str, Any]]]) -> str:
    order = get_args(Chapter)
    listed = sorted(studies, key=lambda s: order.index(s[1]["chapter"]))
    items = (f'<li><a href="#{escape(s["name"])}">{inline(s["question"])}</a></li>' for _, s in listed)
    return f"<nav>\n<ol>\n{chr(10).join(items)}\n</ol>\n</nav>"


def _section(folder: Path, study: Mapping[str, Any]) -> str:
    name, caption = escape(study["name"]), inline(study["caption"])
    image = base64.b64encode(read_figure(folder)).decode()
    alt = escape(re.sub(r"[`*]", "", study["caption"]), quote=True)
    return "\n".join(
        [
            f'<section id="{name}">',
            f"<h3>{inline(study['question'])}</h3>",
            f'<p class="answer">{inline(study["answer"])}</p>',
            f'<figure><input type="checkbox" id="zoom-{name}"><label for="zoom-{name}">Figure at its own size</label>',
            f'<div class="frame"><img alt="{alt}" src="data:image/png;base64,{image}"></div>',
            f"<figcaption>{caption}</figcaption></figure>",
            _list(study["details"]),
            "<h4>Limits</h4>" + _list(study["limits"]),
            _table(folder, name),
            _facts(study),
            "</section>",
        ]
    )


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{inline(item)}</li>" for item in items) + "</ul>" if items else ""


def _table(folder: Path, name: str) -> str:
    header, *rows = read_rows(folder)
    data = base64.b64encode(read_file(folder / "data.csv")).decode()
    shown = rows if len(rows) <= _TABLE_ROWS else rows[:_TABLE_ROWS]
    how_many = f"{len(rows)} rows" if shown is rows else f"the first {len(shown)} of {len(rows)} rows"
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown)
    return (
        f'<details><summary>Data: {how_many}</summary>\n<div class="scroll" tabindex="0"><table>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>\n"
        f'<p><a download="{name}.csv" href="data:text/csv;base64,{data}">all rows as {name}.csv</a></p></details>'
    )


def _facts(study: Mapping[str, Any]) -> str:
    options, where = study["options"], study.get("environment", {})
    seeds = ["--seeds", str(options["seeds"])] if options.get("seeds") else []
    command = ["tppo", "study", study["name"], *seeds, "--seed", str(options.get("seed", 0))]
    command += ["--full"] if options.get("full") else []
    packages = ", ".join(f"{name} {found}" for name, found in where.get("packages", {}).items() if found)
    return (
        f'<p class="facts">Made by <code>{escape(" ".join(command))}</code> in {float(study.get("seconds", 0)):.0f} s; '
        f"revision {escape(str(where.get('git')))}; Python {escape(str(where.get('python')))}; {escape(packages)}.</p>"
    )
