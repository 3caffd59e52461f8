"""Checkpoints that are whole and signed and say something else than they should: never used, never a bare error."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.helpers import small_token_mdp
from tests.support.mutants import mutants
from tppo.cli import main
from tppo.errors import CheckpointError, ConfigError, DataError
from tppo.loop.trainer import Trainer
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import restore
from tppo.runs.checkpoint.files import MANIFEST, MANIFEST_HASH, STATE, WINDOW
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.checkpoint.store import FOLDER, choose, listed, newest
from tppo.runs.checkpoint.stored import read_checkpoint
from tppo.runs.run import run

CONFIG = small_token_mdp(steps=2, checkpoint__every=1, algorithm__kl=0.01)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shapes") / "run"
    run(CONFIG, out, progress=False, dump=out.with_suffix(".tokens"))
    return out


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return build_trainer(CONFIG)


@pytest.fixture
def damaged(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the run whose newest checkpoint may be changed."""
    monkeypatch.setattr("tppo.runs.checkpoint.store.changed_packages", lambda stored: [])  # slow, and not the matter
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


def sign(folder: Path) -> None:
    """Make sizes and hashes fit what the files hold now."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        data = (folder / name).read_bytes()
        entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    sign_text(folder, json.dumps(manifest))


def sign_text(folder: Path, manifest: str) -> None:
    (folder / MANIFEST).write_text(manifest)
    (folder / MANIFEST_HASH).write_text(hashlib.sha256(manifest.encode()).hexdigest() + "\n")


def test_whatever_a_signed_manifest_says_the_one_before_is_taken(damaged: Path) -> None:
    """Or this one, where what it says changes nothing."""
    (_, last), (_, before), *_ = listed(damaged / FOLDER)
    tree = json.loads((last / MANIFEST).read_text())
    skipped = 0
    for what, text in mutants(tree):
        sign_text(last, text)
        chosen = choose(damaged, "auto", CONFIG)
        if chosen.checkpoint == last:
            assert what.startswith("solve_rate: "), what
            continue
        assert chosen.checkpoint == before
        assert str(last) in chosen.skipped[0]
        assert "\n" not in chosen.skipped[0]
        skipped += 1
        with pytest.raises(DataError, match="can be used"):
            choose(damaged, str(last), CONFIG)
        with pytest.raises(DataError, match=str(last)):
            newest(last)
    assert skipped > 150


def test_whatever_a_signed_state_says_it_is_refused_or_it_works(damaged: Path, trainer: Trainer) -> None:
    """One error of ours, or a trainer that can go on; both ways are seen."""
    (_, last), (_, before), *_ = listed(damaged / FOLDER)
    ends = Counter[str]()
    tree = json.loads((last / STATE).read_text())
    for i, (what, text) in enumerate([*mutants(tree, shallow=("config", "environment"))][::2]):
        (last / STATE).write_text(text)
        try:
            read_checkpoint(last)
        except CheckpointError as error:
            ends["refused"] += 1
            ends["refused in one line that names the file"] += STATE in str(error) and "\n" not in str(error)
            if i % 40 == 0:
                sign(last)
                choice = choose(damaged, "auto", CONFIG)
                assert (choice.checkpoint, len(choice.skipped)) == (before, 1)
            continue
        try:
            restore(trainer, last)
            ends["used"] += 1
        except CheckpointError:
            ends["of another run"] += 1
        assert not what.startswith(("counters", "optimizer_updates: r")), what
    assert ends["refused in one line that names the file"] == ends["refused"] > 150
    assert ends["used"] > 15, ends
    assert ends["of another run"] > 5


def pipe(path: Path) -> None:
    """Nobody will ever write to it: to open it is to wait for ever."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listener(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as s:
            s.bind(path.name)
    finally:
        os.chdir(here)


def dangling(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("nowhere")


def loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path.name)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


TENSORS = "tensors/model-00001-of-00001.safetensors"


@pytest.mark.parametrize("file", [MANIFEST, MANIFEST_HASH, STATE, WINDOW, TENSORS, "stray"])
@pytest.mark.parametrize("make", [pipe, listener, dangling, loop, folder, device])
def test_something_else_where_a_file_should_be(file: str, make: Callable[[Path], None], damaged: Path) -> None:
    (_, last), (_, before), *_ = listed(damaged / FOLDER)
    make(last / file)
    choice = choose(damaged, "auto", CONFIG)
    if (file, make) == ("stray", folder):
        assert choice.checkpoint == last  # it holds nothing
        return
    assert choice.checkpoint == before
    [reason] = choice.skipped
    assert "torn" in reason or "corrupted" in reason
    assert "\n" not in reason


@pytest.mark.parametrize("make", [pipe, dangling, loop, device])
def test_a_file_that_is_signed_for_and_cannot_be_read(make: Callable[[Path], None], damaged: Path) -> None:
    """The manifest says that it is empty, as a pipe is before it is read."""
    (_, last), (_, before), *_ = listed(damaged / FOLDER)
    manifest = json.loads((last / MANIFEST).read_text())
    manifest["files"]["stray"] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    sign_text(last, json.dumps(manifest))
    make(last / "stray")
    choice = choose(damaged, "auto", CONFIG)
    assert choice.checkpoint == before
    assert "stray cannot be read" in choice.skipped[0]


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 99, b"version https://git-lfs.github.com/spec/v1\n", "cut"])
@pytest.mark.parametrize("file", [WINDOW, TENSORS, STATE])
def test_content_that_is_signed_and_is_none(file: str, content: bytes | str, damaged: Path) -> None:
    (_, last), (_, before), *_ = listed(damaged / FOLDER)
    data = (last / file).read_bytes()
    (last / file).write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)
    sign(last)
    choice = choose(damaged, "auto", CONFIG)
    assert choice.checkpoint == before
    assert Path(file).parts[0] in choice.skipped[0]


@pytest.mark.parametrize(
    "name",
    ["step-٣", "step-1e3", "step--1", "step-00000009.bak", "step-²", "step-9", "step-000000009", "step-", "step-0x9"],
)
@pytest.mark.parametrize("kind", ["folder", "copy"])
def test_other_names_are_no_checkpoints(name: str, kind: str, damaged: Path) -> None:
    last = listed(damaged / FOLDER)[0][1]
    other = damaged / FOLDER / name
    other.mkdir() if kind == "folder" else shutil.copytree(last, other)
    assert choose(damaged, "auto", CONFIG).checkpoint == last
    with pytest.raises(ConfigError, match="'auto' or a folder in"):
        choose(damaged, str(other), CONFIG)


def test_a_checkpoint_under_the_name_of_another_step_is_skipped(damaged: Path) -> None:
    last = listed(damaged / FOLDER)[0][1]
    last.rename(last.with_name("step-00000009"))
    choice = choose(damaged, "auto", CONFIG)
    assert choice.checkpoint == listed(damaged / FOLDER)[1][1]
    assert "manifest.json is of step 2" in choice.skipped[0]


@pytest.mark.parametrize("make", [pipe, dangling, loop, device, listener])
def test_no_folder_under_a_checkpoint_s_name_is_passed_by(make: Callable[[Path], None], damaged: Path) -> None:
    last = listed(damaged / FOLDER)[0][1]
    make(damaged / FOLDER / "step-00000009")
    assert choose(damaged, "auto", CONFIG).checkpoint == last
    with pytest.raises(ConfigError, match="'auto' or a folder in"):
        choose(damaged, str(damaged / FOLDER / "step-00000009"), CONFIG)


@pytest.mark.parametrize("which", ["nul\0", "\ud800", "a" * 300, "/" + "a/" * 3000, "", "."])
def test_names_that_are_none(which: str, damaged: Path) -> None:
    with pytest.raises(ConfigError):
        choose(damaged, which, CONFIG)
    if which not in ("", "."):
        with pytest.raises(ConfigError, match="the folder of a checkpoint, or of a run"):
            newest(Path(which))


def test_a_window_whose_arrays_do_not_fit(whole: Path, tmp_path: Path) -> None:
    """Each array shorter, longer, negative, of floats or gone: an error of ours, or the same responses."""
    from safetensors.numpy import load, save

    arrays = load((listed(whole / FOLDER)[0][1] / WINDOW).read_bytes())
    sound = read_responses(listed(whole / FOLDER)[0][1] / WINDOW)
    assert sum(len(r.tokens) for r in sound[0])
    refused = 0
    for name, array in arrays.items():
        changes = [array[:-1], np.concatenate([array, array[-1:]]), array[::-1].copy(), array.reshape(1, -1)]
        changes += [array.astype(np.float32), np.zeros(0, array.dtype), None]
        changes += [array.astype(np.int64) - 2**40] if array.dtype.kind == "i" else []
        for changed in changes:
            path = tmp_path / "window.safetensors"
            path.write_bytes(save({**arrays, name: changed} if changed is not None else _without(arrays, name)))
            try:
                read_responses(path)
            except DataError as error:
                refused += 1 if "\n" not in str(error) else 0
    assert refused > 80


def _without(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in arrays.items() if key != name}


def test_the_commands_say_it_in_one_line(damaged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train, export and replay, of a run whose checkpoints are all signed and odd."""
    for _, path in listed(damaged / FOLDER):
        (path / STATE).write_text("[]")
        sign(path)
    args = ["train", "token-mdp", "--quiet", "--out", str(damaged), "--resume", "auto"]
    for argv in (
        args,
        ["export", str(damaged), str(tmp_path / "model")],
        ["replay", str(tmp_path), "--checkpoint", str(damaged)],
    ):
        assert main(argv) == 2, argv
        said = capsys.readouterr().err
        assert said.count("state.json: expected a JSON object, found list") == len(listed(damaged / FOLDER))
    assert not (tmp_path / "model").exists()
