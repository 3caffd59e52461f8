"""The evaluation with vLLM: the contract of the engine holds, and cutting it in two changes no response."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from paper_repro.comparisons.aime import EvalCommand, evaluate
from tests.support.eval_models import save_model, save_problems
from tppo.engines.options import VllmOptions
from tppo.evaluation.run import EvalSettings

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own
]
pytest.importorskip("math_verify", reason="grading needs the extra 'math'")


def test_resuming_changes_no_response(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = EvalCommand(
        model=str(save_model(tmp_path / "model", head_dim=32)),
        data=str(save_problems(tmp_path / "colours.jsonl")),
        out=tmp_path / "whole",
        settings=EvalSettings(k=4, max_new_tokens=6, top_p=0.95),
        source="file",
        engine="vllm",
        batch=7,
        vllm=VllmOptions(max_rows=32, memory_fraction=0.1),
        quiet=True,
    )
    found: dict[str, Any] = evaluate(base)
    lines = (tmp_path / "whole/generations.jsonl").read_bytes().splitlines(keepends=True)
    assert len(lines) == 24
    for line in map(json.loads, lines):
        assert (line["finish"] == "length") <= (line["tokens"] == 6)
    assert len({json.loads(line)["text"] for line in lines}) > 6
    assert set(found["scores"]) == {"avg@4", "pass@2", "pass@4", "maj@2", "maj@4"}
    cut = dataclasses.replace(base, out=tmp_path / "cut", batch=24)
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/eval.json").write_bytes((tmp_path / "whole/eval.json").read_bytes())
    (tmp_path / "cut/generations.jsonl").write_bytes(b"".join(lines[:11]) + lines[11][:40])
    evaluate(cut)
    for name in ("generations.jsonl", "scores.json", "problems.csv"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    assert json.loads((tmp_path / "cut/eval.json").read_text())["engine"]["name"] == "vllm"
