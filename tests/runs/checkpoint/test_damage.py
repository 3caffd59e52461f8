"""A damaged checkpoint is never used: the run goes on from an older one and says why, or refuses."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.crashes import assert_same_run
from tests.support.helpers import small_token_mdp
from tppo.errors import CheckpointError, ConfigError, FormatError
from tppo.runs.checkpoint import store
from tppo.runs.checkpoint.files import MANIFEST, MANIFEST_HASH, verify
from tppo.runs.checkpoint.store import FOLDER, choose, listed
from tppo.runs.run import run

CONFIG = small_token_mdp(steps=5, checkpoint__every=1, checkpoint__keep=3)
FILES = [
    "manifest.json", "manifest.sha256", "state.json", "window.safetensors",
    "tensors/model-00001-of-00001.safetensors", "tensors/model.safetensors.index.json",
]  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("damage") / "run"
    run(CONFIG, out, progress=False, dump=out.with_suffix(".tokens"))
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    shutil.copytree(whole.with_suffix(".tokens"), tmp_path / "run.tokens")
    return tmp_path / "run"


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def other_format(folder: Path, step: int) -> None:
    """As another version of the library would write it: sound, with the hash that belongs to it."""
    manifest = json.loads((folder / MANIFEST).read_text())
    text = json.dumps(manifest | {"format": manifest["format"] + step})
    (folder / MANIFEST).write_text(text)
    (folder / MANIFEST_HASH).write_text(hashlib.sha256(text.encode()).hexdigest() + "\n")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"flip {f}": (lambda d, f=f: flip(d / f, (d / f).stat().st_size // 2, 3), "corrupted") for f in FILES},
    **{f"cut {f}": (lambda d, f=f: (d / f).write_bytes((d / f).read_bytes()[:-1]), "torn|corrupted") for f in FILES},
    **{f"lose {f}": (lambda d, f=f: (d / f).unlink(), "torn: .*(missing|cannot be read)") for f in FILES},
    "a file too many": (lambda d: (d / "tensors" / "extra.safetensors").write_bytes(b""), "corrupted: .*is not in"),
    "newer format": (lambda d: other_format(d, 1), "format 3 is newer than 2, which this version reads; update tppo"),
    "older format": (lambda d: other_format(d, -1), "format 1 is older than 2, .*; go on with it by the version that"),
    "nothing in it": (empty, "torn"),
}


def test_a_checkpoint_has_exactly_these_files_and_no_pickle(whole: Path) -> None:
    newest = listed(whole / FOLDER)[0][1]
    assert sorted(p.relative_to(newest).as_posix() for p in newest.rglob("*") if p.is_file()) == sorted(FILES)
    for file in newest.rglob("*.safetensors"):
        size = int.from_bytes(file.read_bytes()[:8], "little")
        json.loads(file.read_bytes()[8 : 8 + size])  # a safetensors header, not a pickle


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_seen_and_the_one_before_is_taken(name: str, copy: Path) -> None:
    damage, reason = DAMAGE[name]
    newest, before = (path for _, path in listed(copy / FOLDER)[:2])
    damage(newest)
    kind = FormatError if "format" in name else CheckpointError
    with pytest.raises(kind, match=reason):
        verify(newest)
    choice = choose(copy, "auto", CONFIG)
    assert choice.checkpoint == before
    assert len(choice.skipped) == 1
    assert choice.aside == (newest,)
    with pytest.raises(kind, match=reason):
        choose(copy, str(newest), CONFIG)


def test_every_single_bit_of_the_manifest_counts(copy: Path) -> None:
    newest = listed(copy / FOLDER)[0][1]
    for name in (MANIFEST, MANIFEST_HASH):
        good = (newest / name).read_bytes()
        for at in range(len(good)):
            flip(newest / name, at, at % 8)
            with pytest.raises(CheckpointError):
                verify(newest)
            (newest / name).write_bytes(good)
    verify(newest)


def test_random_bits_of_all_files(copy: Path) -> None:
    newest, rng = listed(copy / FOLDER)[0][1], random.Random(0)
    for name in FILES:
        good = (newest / name).read_bytes()
        for _ in range(20):
            flip(newest / name, rng.randrange(len(good)), rng.randrange(8))
            with pytest.raises(CheckpointError):
                verify(newest)
            (newest / name).write_bytes(good)


@pytest.mark.parametrize(
    "name", ["flip tensors/model-00001-of-00001.safetensors", "lose state.json", "newer format", "older format"]
)
def test_the_run_that_goes_on_from_the_older_one_is_the_same(
    name: str, whole: Path, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = listed(copy / FOLDER)[0][1]
    DAMAGE[name][0](newest)
    run(CONFIG, copy, progress=False, resume="auto", dump=copy.with_suffix(".tokens"))
    said = capsys.readouterr().err
    assert f"skipped {newest}" in said
    assert_same_run(whole, copy)
    assert [p.name for p in (copy / FOLDER).glob("skipped-*")] == [f"skipped-{newest.name}-1"]  # kept to be looked at
    lines = (copy / "metrics.replaced.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4]


def test_no_sound_checkpoint_is_refused_and_nothing_is_touched(copy: Path) -> None:
    for _, folder in listed(copy / FOLDER):
        flip(folder / "state.json", 5, 1)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used") as caught:
        run(CONFIG, copy, progress=False, resume="auto")
    assert str(caught.value).count("state.json") == 3  # each of them named
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_another_format_is_named_only_where_nothing_else_is_wrong(copy: Path) -> None:
    folders = [folder for _, folder in listed(copy / FOLDER)]
    for folder in folders:
        other_format(folder, -1)
    with pytest.raises(FormatError, match=r"no checkpoint in .* can be used; nothing was changed") as caught:
        choose(copy, "auto", CONFIG)
    assert str(caught.value).count("format 1 is older than 2") == 3
    with pytest.raises(FormatError, match="or train again"):
        store.newest(copy)
    flip(folders[1] / "manifest.json", 5, 1)
    with pytest.raises(CheckpointError, match=r"corrupted: manifest\.json"):
        choose(copy, "auto", CONFIG)


def test_pruning_passes_by_what_it_cannot_read(copy: Path) -> None:
    """An older checkpoint of another format beside the newest is no reason to stop a run."""
    other_format(listed(copy / FOLDER)[-1][1], -1)
    run(CONFIG.with_values(steps=7), copy, progress=False, resume="auto", allow_change=["steps"])
    assert [step for step, _ in listed(copy / FOLDER)][:3] == [7, 6, 5]


def test_metrics_that_were_cut_behind_the_checkpoint_are_refused(copy: Path) -> None:
    (copy / "metrics.jsonl").write_text("")
    with pytest.raises(ValueError, match="the checkpoint says"):
        run(CONFIG, copy, progress=False, resume="auto")


def test_resume_takes_a_checkpoint_of_this_run_only(whole: Path, copy: Path) -> None:
    with pytest.raises(ConfigError, match="'auto' or a folder in"):
        choose(copy, str(listed(whole / FOLDER)[0][1]), CONFIG)
    with pytest.raises(ConfigError, match="'auto' or a folder in"):
        choose(copy, str(copy / FOLDER / "step-99999999"), CONFIG)
