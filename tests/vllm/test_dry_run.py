"""The whole 32B reproduction with a small random model: two ranks with vLLM on a CPU, problems in DAPO's format, three
steps, stopped in the second, gone on with by one rank, evaluation and figures. And one vLLM that two ranks share."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from paper_repro.reproduction.command import STOPPED
from tests.support.launch import TOY, WORKER, other, succeed, torchrun
from tppo.data.catalogue import DAPO_PROMPT
from tppo.data.sources import SLOT
from tppo.engines.probe import BOUNDS
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.folder import read_metrics

pytestmark = pytest.mark.vllm
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


def problems(folder: Path) -> list[str | Path]:
    """Real ones where they lie beside the checkout: AIME 2024 to be judged by, and others in the columns of
    DAPO-Math-17k to train on. Else the sums that a dry run makes.
    """
    aime, train = SHARED / "dapo_aime_2024.parquet", SHARED / "amc23.jsonl"
    if not (aime.exists() and train.exists()):
        return []
    folder.mkdir()
    shutil.copy(aime, folder / "aime-2024.parquet")
    lines = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    rows = [
        {
            "prompt": [{"role": "user", "content": DAPO_PROMPT.replace(SLOT, row["problem"])}],
            "reward_model": {"ground_truth": str(int(row["answer"]))},
            "extra_info": {"index": f"train-{row['id']}"},
        }
        for row in lines
    ]
    (folder / "dapo-math-17k.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return ["--data", folder]


def stages_done(out: Path) -> dict[str, Any]:
    """What each stage that is done has kept."""
    return {path.parent.name: json.loads(path.read_text())["result"] for path in out.glob("*/done.json")}


def test_the_32b_reproduction_runs_on_two_ranks_and_goes_on_with_one(tmp_path: Path) -> None:
    out = tmp_path / "out"
    argv: list[str | Path] = ["--size", "32b", "--dry-run", "--out", out, "--quiet", "--set", "engine=vllm"]
    argv += problems(tmp_path / "data")
    stopped = torchrun(2, [WORKER, "stopped", "qwen2.5-32b-tppo", "1", *argv, "--stages", "data,value,tppo"])
    assert f"exitcode  : {STOPPED}" in stopped.stderr, stopped.stderr[-4000:]
    assert stages_done(out).keys() == {"data", "value"}
    run = out / "tppo-seed0" / "run"
    assert len(read_metrics(run / "metrics.jsonl")) == 2
    assert len(list((run / "checkpoints" / "step-00000002" / "tensors").iterdir())) == 2  # one file a rank

    succeed(torchrun(1, ["-m", "paper_repro.reproduction", *argv]))
    done = stages_done(out)
    assert done.keys() == {
        *("data", "value", "tppo-seed0", "ppo-seed0", "figures"),
        *(f"evaluate-{name}" for name in ("base", "tppo-seed0", "ppo-seed0")),
    }
    assert json.loads((run / "config.json").read_text())["resumed"] == [{"step": 2, "changed": []}]
    for kind in ("tppo", "ppo"):
        metrics = read_metrics(out / f"{kind}-seed0" / "run" / "metrics.jsonl")
        assert [m["step"] for m in metrics] == [0, 1, 2]
        assert all(m["policy_updates"] for m in metrics)
        assert all(m["engine_gap_max"] < 1e-3 for m in metrics)
    assert (out / "figures" / "figure.png").stat().st_size > 10_000
    assert "Dry run" in (out / "figures" / "report.md").read_text()


def test_two_ranks_say_what_one_process_says(tmp_path: Path) -> None:
    """With an engine each, and with one that is spread over both (tensor parallel 2)."""
    options = ["--task.base.width", "64", "--engine", "vllm", "--vllm.max-rows", "8", "--vllm.memory-fraction", "0.1"]
    train = ["-m", "tppo", "train", *other(TOY, "--steps", "3", "--evaluation.every", "0", *options)]
    tokens = []
    for ranks, parallel in ((1, 1), (2, 1), (2, 2)):
        root = tmp_path / f"{ranks}-{parallel}"
        dump = ["--out", root / "run", "--dump-rollouts", root / "tokens"]
        succeed(torchrun(ranks, [*train, "--vllm.tensor-parallel", str(parallel), *dump]))
        paths = sorted((root / "tokens").iterdir())
        tokens.append([[(r.uid, r.tokens.tolist()) for r in read_responses(path)[0]] for path in paths])
    assert len(tokens[0]) == 3
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_run_in_bfloat16_on_both_sides_passes_every_probe(tmp_path: Path) -> None:
    """The default bound, over eight loads of weights that move."""
    options = ["--task.base.width", "64", "--engine", "vllm", "--vllm.max-rows", "12", "--vllm.memory-fraction", "0.1"]
    options += ["--compute.dtype", "bfloat16", "--algorithm.warmup-steps", "0"]
    argv = ["train", *other(TOY, "--steps", "8", "--evaluation.every", "0", *options), "--out", tmp_path / "run"]
    succeed(torchrun(1, ["-m", "tppo", *argv]))
    metrics = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert len(metrics) == 8
    assert all(m["policy_updates"] > 0 for m in metrics)
    assert all(0 < m["engine_gap_mean"] < BOUNDS[True] / 3 for m in metrics)
