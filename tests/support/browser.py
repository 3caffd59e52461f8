"""Headless Chromium as a ruler: a page is laid out at a given width and measured from outside, without any package."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

# The page stands in a frame of the wanted width: a headless window cannot be narrower than 500 px. The frame comes
# last, so that everything is there when it has loaded, however large it is.
_RULER = """<!doctype html><meta charset="utf-8"><body style="margin:0">
<pre id="measured"></pre>
<script>
const name = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + (e.className ? "." + e.className : "");
function overflowing(doc, width) {
  const found = [];
  const walker = doc.createTreeWalker(doc.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const parent = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || parent.closest(".scroll")) continue;
    const range = doc.createRange();
    range.selectNodeContents(walker.currentNode);
    for (const box of range.getClientRects())
      if (box.right > width + 0.5 || box.left < -0.5) {
        found.push(name(parent) + ": " + walker.currentNode.data.slice(0, 40));
        break;
      }
  }
  return found;
}
function rule(event) {
  const doc = event.target.contentDocument, width = WIDTH, measured = {};
  const images = [...doc.images];
  doc.querySelectorAll("details").forEach(d => { d.open = true; });
  measured.images = images.map(i => ({natural: i.naturalWidth, shown: i.getBoundingClientRect().width}));
  measured.overflowing = overflowing(doc, doc.documentElement.clientWidth);
  measured.scroll_width = doc.documentElement.scrollWidth;
  measured.client_width = doc.documentElement.clientWidth;
  const texts = [...doc.querySelectorAll("p,li,figcaption,td,label,summary")];
  measured.smallest_font = Math.min(...texts.map(e => parseFloat(doc.defaultView.getComputedStyle(e).fontSize)));
  measured.tables = [...doc.querySelectorAll(".scroll")].map(e => [e.clientWidth, e.scrollWidth]);
  doc.querySelectorAll("figure input").forEach(box => box.click());
  measured.zoomed = images.map(i => i.getBoundingClientRect().width);
  measured.zoomed_scroll_width = doc.documentElement.scrollWidth;
  document.getElementById("measured").textContent = JSON.stringify(measured);
}
</script>
<iframe id="page" onload="rule(event)" style="border:0;width:WIDTHpx;height:900px" srcdoc="PAGE"></iframe>"""


def chromium() -> str:
    """The executable; skips the test where there is none."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if found := shutil.which(name):
            return found
    pytest.skip("needs Chromium or Chrome to lay the page out; none is on the path")


def _run(page: str, width: int, folder: Path, *options: str) -> str:
    executable = chromium()
    ruler = folder / f"ruler-{width}.html"
    ruler.write_text(_RULER.replace("WIDTH", str(width)).replace("PAGE", escape(page, quote=True)), encoding="utf-8")
    command = [
        executable, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
        f"--user-data-dir={folder / 'profile'}", f"--window-size={max(width, 500)},900", "--virtual-time-budget=20000",
        *options, ruler.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def measure(page: str, width: int, folder: Path) -> dict[str, Any]:
    """Lays `page` (its text) out `width` CSS pixels wide and returns what the script above measured."""
    dom = _run(page, width, folder, "--dump-dom")
    match = re.search(r'<pre id="measured">(.+?)</pre>', dom, flags=re.DOTALL)
    assert match, "the page was not measured"
    return dict(json.loads(unescape(match[1])))
