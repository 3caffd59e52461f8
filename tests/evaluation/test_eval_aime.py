"""The command end to end with a tiny language model: results, SIGKILL and resume, early refusals."""

from __future__ import annotations

import csv
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from paper_repro.comparisons import aime as eval_aime
from paper_repro.comparisons.aime import EvalCommand, evaluate
from tests.support.eval_models import PROBLEMS
from tppo.errors import ConfigError, DataError
from tppo.evaluation import model as model_part
from tppo.evaluation.run import EvalSettings

pytest.importorskip("math_verify", reason="grading needs the extra 'math'")
ROOT = Path(__file__).parents[2]
AIME = ROOT.parent / "shared" / "data" / "dapo_aime_2024.parquet"
SETTINGS = EvalSettings(k=8, max_new_tokens=6, top_p=0.95)


def command(model: Path, problems: Path, out: Path, **changes: Any) -> EvalCommand:
    base = EvalCommand(
        model=str(model), data=str(problems), out=out, settings=SETTINGS, source="file", batch=10, device="cpu",
        quiet=True,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)


@pytest.fixture(scope="module")
def whole(model: Path, problems: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation nobody disturbed."""
    out = tmp_path_factory.mktemp("evaluations") / "whole"
    evaluate(command(model, problems, out))
    return out


def test_results(whole: Path) -> None:
    lines = [json.loads(line) for line in (whole / "generations.jsonl").read_text().splitlines()]
    assert len(lines) == 48
    assert {line["finish"] for line in lines} == {"stop", "length"}
    assert len({line["text"] for line in lines}) > 6
    truths = {f"colours/line-{i}": truth for i, truth in enumerate(PROBLEMS.values(), 1)}
    for line in lines:
        assert line["correct"] == (line["answer"] == truths[line["problem"]])
    right = sum(line["correct"] for line in lines)
    assert 0 < right < 48
    scores = json.loads((whole / "scores.json").read_text())
    assert scores["scores"]["avg@8"]["value"] == pytest.approx(right / 48)
    rows = list(csv.DictReader((whole / "problems.csv").read_text().splitlines()))
    assert sum(int(row["correct"]) for row in rows) == right
    assert all(float(row["rate_low"]) <= float(row["rate"]) <= float(row["rate_high"]) for row in rows)


KILLED = """
import os, signal, sys
from pathlib import Path
from paper_repro.comparisons import aime as eval_aime
from tppo.evaluation.store import EvalFolder
append, calls = EvalFolder.append, []

def append_and_die(self, generations):
    calls.append(1)
    if len(calls) < 3:
        return append(self, generations)
    self._file.write(b'{"problem": "colours/line-3", "sam')  # the third batch gets as far as half a line
    self._file.flush()
    os.kill(os.getpid(), signal.SIGKILL)

EvalFolder.append = append_and_die
eval_aime.main(sys.argv[1:])
"""


def test_killed_and_resumed_gives_the_same_bytes(model: Path, problems: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = f"--model {model} --data {problems} --out {out} --source file --batch 10 --device cpu --quiet"
    words += " --k 8 --max-new-tokens 6 --top-p 0.95"
    done = subprocess.run([sys.executable, "-c", KILLED, *words.split()], cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    torn = (out / "generations.jsonl").read_bytes()
    assert torn.count(b"\n") == 20
    assert not torn.endswith(b"\n")
    assert not (out / "scores.json").exists()
    evaluate(command(model, problems, out))
    for name in ("generations.jsonl", "scores.json", "problems.csv"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name


def test_changed_settings_are_refused_before_weights_are_loaded(
    model: Path, problems: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_part, "open_engine", lambda *a, **k: pytest.fail("weights were loaded"))
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    for changes, message in (
        ({"settings": dataclasses.replace(SETTINGS, seed=1)}, "settings.seed was 0, now 1"),
        ({"settings": dataclasses.replace(SETTINGS, k=4)}, "settings.k was 8, now 4"),
        ({"dtype": "bfloat16"}, "engine.dtype was 'float32', now 'bfloat16'"),
        ({"limit": 3}, "data.problems was 6, now 3"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(command(model, problems, whole, **changes))
    assert {path.name: path.read_bytes() for path in whole.iterdir()} == before


def test_changed_weights_are_refused(model: Path, problems: Path, whole: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for path in model.iterdir():
        data = bytearray(path.read_bytes())
        if path.suffix == ".safetensors":
            data[-1] ^= 1
        (other / path.name).write_bytes(data)
    with pytest.raises(ConfigError, match=r"model\.weights_sample_sha256 was"):
        evaluate(command(other, problems, whole))


def test_comparison(
    model: Path, problems: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "other"
    evaluate(command(model, problems, out, compare=whole, settings=dataclasses.replace(SETTINGS, seed=5, k=2)))
    printed = capsys.readouterr().out
    assert "A - B, paired over 6 problems" in printed
    found = json.loads((out / "comparison.json").read_text())
    means = [json.loads((f / "scores.json").read_text())["scores"] for f in (out, whole)]
    assert found["difference"] == pytest.approx(means[0]["avg@2"]["value"] - means[1]["avg@8"]["value"])
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ConfigError, match="an evaluation of the problems in"):
        evaluate(command(model, problems, tmp_path / "third", compare=whole, limit=2))
    assert not (tmp_path / "third").exists()


def refused(capsys: pytest.CaptureFixture[str], words: str) -> str:
    assert eval_aime.main(words.split()) == 2
    return capsys.readouterr().err


def test_bad_input_is_refused_before_weights_are_loaded(
    model: Path, problems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_part, "open_engine", lambda *a, **k: pytest.fail("weights were loaded"))
    out = tmp_path / "out"
    good = f"--model {model} --data {problems} --out {out} --source file --k 1 --quiet"
    assert "settings.k = 0: expected a number in [1, 1000]" in refused(capsys, good.replace("--k 1", "--k 0"))
    said = refused(capsys, f"{good} --max-new-tokens 1000")
    assert "max_new_tokens = 1000: expected at most" in said
    assert "context of 128 tokens less the longest prompt" in said
    assert "data.columns.answer = 'truth': expected one of" in refused(capsys, f"{good} --answer truth")
    assert "an existing file" in refused(capsys, good.replace(str(problems), "nowhere.jsonl"))
    assert "dtype" in refused(capsys, f"{good} --vllm.dtype float16")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    said = refused(capsys, good.replace(str(model), str(broken)))
    assert "missing: model.safetensors, tokenizer.json" in said
    assert not out.exists()
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("mine")
    said = refused(capsys, f"{good} --max-new-tokens 6".replace(str(out), str(taken)))
    assert "an empty folder or one with an evaluation" in said
    assert [path.name for path in taken.iterdir()] == ["thesis.txt"]


def test_a_truth_that_cannot_be_graded_is_refused(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text(json.dumps({"question": "red?", "answer": "\\frac{1}{"}) + "\n")
    with pytest.raises(DataError, match="cannot be graded against"):
        evaluate(command(model, data, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_aime_2024(tmp_path: Path, model: Path) -> None:
    """The published file: 30 problems, asked in the words DAPO uses, which are longer than the tiny model's context."""
    pytest.importorskip("pyarrow", reason="parquet needs the extra 'data'")
    if not AIME.is_file():
        pytest.skip("dapo_aime_2024.parquet is not in the folder shared/data beside the checkout")
    with pytest.raises(ConfigError, match="max_new_tokens = 6: expected at most"):
        evaluate(command(model, AIME, tmp_path / "long", source="aime_2024"))
    wide = tmp_path / "wide"
    wide.mkdir()
    for path in model.iterdir():
        (wide / path.name).write_bytes(path.read_bytes())
    config = json.loads((wide / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
    settings = dataclasses.replace(SETTINGS, k=1)
    found = evaluate(command(wide, AIME, tmp_path / "run", source="aime_2024", settings=settings, batch=64))
    assert (found["data"], found["problems"]) == ("aime-2024", 30)
    lines = [json.loads(line) for line in (tmp_path / "run/generations.jsonl").read_text().splitlines()]
    assert len({line["problem"] for line in lines}) == 30
