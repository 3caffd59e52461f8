"""The command ``tppo study``: one study, all of them with a page, or the list."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tppo.errors import ConfigError
from tppo.studies.folder import check_study_folder, read_study
from tppo.studies.page import check_page, write_page
from tppo.studies.study import load_study, one_thread, resolve, run_study, study_entry_points

ROOT = Path("runs/studies")


def study(known: argparse.Namespace) -> int:
    """Run what was asked for; the exit status. Raises ConfigError before any work."""
    names = [*study_entry_points(), "all", "list"]
    if known.name not in names:
        raise ConfigError("study", known.name, "one of " + ", ".join(names), "see 'tppo study list'")
    if known.reuse is not None and known.name != "all":
        raise ConfigError("reuse", str(known.reuse), "no folder, unless the study is 'all'")
    with one_thread():  # before a study imports numpy or torch
        if known.name == "list":
            return _list()
        if known.reuse is not None:
            return _reuse(known)
        return _all(known) if known.name == "all" else _one(known)


def _list() -> int:
    for name in study_entry_points():
        try:
            print(f"{name:<14} {load_study(name).question}")
        except ConfigError as error:
            print(f"{name:<14} (cannot be loaded: {error.remedy or error})")
    return 0


def _one(known: argparse.Namespace) -> int:
    found = load_study(known.name)
    options = resolve(found, full=known.full, seeds=known.seeds, seed=known.seed, jobs=known.jobs)
    out = known.out or ROOT / known.name
    result = run_study(found, options, out, force=known.force, show=not known.quiet)
    print(f"{found.question}\n\n{result.answer}\n\nwritten to {out}: data.csv, figure.png, findings.md, study.json")
    return 0


def _all(known: argparse.Namespace) -> int:
    root = known.out or ROOT
    check_page(root, force=known.force)
    absent: dict[str, str] = {}
    runs = []
    for name in study_entry_points():
        try:
            found = load_study(name)
        except ConfigError as error:
            absent[name] = f"cannot be loaded: {error.remedy or error}"
            continue
        seeds = known.seeds if found.seeds else None
        runs.append((found, resolve(found, full=known.full, seeds=seeds, seed=known.seed, jobs=known.jobs)))
        check_study_folder(root / name, name, force=known.force)
    for found, options in runs:
        try:
            run_study(found, options, root / found.name, force=known.force, show=not known.quiet)
        except Exception as error:  # one study must not cost the others; the page and the exit status say so
            absent[found.name] = f"failed: {type(error).__name__}: {error}"
            print(f"tppo: study {found.name} {absent[found.name]}", file=sys.stderr)
    return _page(root, [root / found.name for found, _ in runs if found.name not in absent], absent, known)


def _reuse(known: argparse.Namespace) -> int:
    """The page from what there is."""
    if known.full or known.seeds is not None:
        raise ConfigError("reuse", str(known.reuse), "neither --full nor --seeds beside it", "nothing is run")
    if not os.path.isdir(known.reuse):
        raise ConfigError("reuse", str(known.reuse), "a folder with finished studies")
    folders = sorted(path.parent for path in known.reuse.glob("*/study.json"))
    present = {read_study(folder)["name"] for folder in folders}
    absent = dict.fromkeys((name for name in study_entry_points() if name not in present), "not run")
    return _page(known.out or known.reuse, folders, absent, known)


def _page(out: Path, folders: list[Path], absent: dict[str, str], known: argparse.Namespace) -> int:
    page = write_page(folders, out, absent=absent, force=known.force)
    for name, why in absent.items():
        print(f"tppo: study {name} is not on the page: {why}", file=sys.stderr)
    print(f"{len(folders)} studies on {page}")
    return 1 if absent else 0
