"""A run on vLLM that is killed and resumed: no response lost or doubled, token accounting exact, equal bits.

Equal bits hold on a CPU in float32 without chunked prefill, where a request's log-probs do not depend on who shares its
batch: a response is resumed as a new request with its tokens as context, which is also how it goes on in the run that
nobody kills. On a GPU, batch shapes choose kernels; after a resume the batches are the same, so tokens are expected to
be, but vLLM promises no bits there and nothing here tests it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.support.crashes import newest_tensors, without_timings
from tppo.runs.checkpoint.responses import read_responses
from tppo.runs.checkpoint.store import FOLDER, listed
from tppo.runs.folder import read_metrics

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]  # vLLM's own warnings
STEPS = 5
ARGS = [
    "toy-language", "--engine", "vllm", "--vllm.memory-fraction", "0.1", "--steps", str(STEPS), "--rollout.slots", "16",
    "--rollout.max-response-tokens", "48", "--algorithm.window", "8", "--algorithm.warmup-steps", "1",
    "--algorithm.entropy", "0.01", "--policy.mini-batch", "8", "--algorithm.critic.mini-batch", "8",
    "--evaluation.problems", "4", "--checkpoint.every", "1",
    "--task.base.examples", "3000", "--task.base.error-rate", "0", "--task.base.language.difficulty.maximum", "2",
    "--task.base.layers", "1", "--task.base.width", "64", "--task.base.heads", "2", "--task.base.mlp-width", "64",
    "--task.base.max-positions", "128", "--task.base.tokens-per-batch", "512",
]  # fmt: skip
# Dies at the n-th call of a function of the run: in a step's generation, before an update, in a checkpoint's write.
KILLER = """
import importlib, os, signal, sys
module, owner, name, n = sys.argv[1:5]
place = importlib.import_module(module)
place = getattr(place, owner) if owner else place
inner, calls = getattr(place, name), [0]
def dies(*args, **kwargs):
    calls[0] += 1
    if calls[0] == int(n):
        os.kill(os.getpid(), signal.SIGKILL)
    return inner(*args, **kwargs)
setattr(place, name, dies)
from tppo.cli import main
raise SystemExit(main(sys.argv[5:]))
"""
MOMENTS = {
    "after vLLM answered": ("tppo.engines.vllm", "", "_continuation", "60"),
    "mid-checkpoint": ("tppo.runs.checkpoint.files", "", "publish", "4"),
    "mid-update": ("tppo.fit.optim", "ModelOptimizer", "step", "5"),
}


def train(out: Path, cache: Path, *killer: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"TPPO_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    program = ["-c", KILLER, *killer] if killer else ["-m", "tppo"]
    dump = ["--dump-rollouts", str(out.with_suffix(".tokens"))]
    argv = ["train", *ARGS, "--out", str(out), "--quiet", "--resume", "auto", *dump]
    return subprocess.run([sys.executable, *program, *argv], capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vllm") / "run"
    done = train(out, out.with_name("cache"))
    assert done.returncode == 0, done.stderr
    assert read_metrics(out / "metrics.jsonl")[-1]["policy_grad_norm"] > 0
    return out


@pytest.mark.parametrize("moment", [*list(MOMENTS)[:2], pytest.param("mid-update", marks=pytest.mark.slow)])
def test_killed_and_resumed(moment: str, undisturbed: Path, tmp_path: Path) -> None:
    out, cache = tmp_path / "run", undisturbed.with_name("cache")
    assert train(out, cache, *MOMENTS[moment]).returncode == -signal.SIGKILL
    stood = listed(out / FOLDER)[0][0]
    done = train(out, cache)
    assert done.returncode == 0, done.stderr
    assert 0 < stood < STEPS

    # Accounting: every response finishes once, grows by what each step says, and is never short of a token.
    finished: Counter[int] = Counter()
    lengths: dict[int, int] = {}
    rows = read_metrics(out / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(STEPS))
    for row in rows:
        responses, about = read_responses(out.with_suffix(".tokens") / f"step-{row['step']:08d}.safetensors")
        assert about["step"] == row["step"]
        assert len(responses) == 16
        assert sum(len(r.tokens) - r.start for r in responses) == row["new_tokens"]
        for r in responses:
            assert r.start == lengths.get(r.uid, 0)
            lengths[r.uid] = len(r.tokens)
            finished[r.uid] += r.status.finished
    assert set(finished.values()) <= {0, 1}
    assert rows[-1]["tokens_generated"] == sum(row["new_tokens"] for row in rows) == sum(lengths.values())
    waiting, _ = read_responses(listed(out / FOLDER)[0][1] / "window.safetensors")
    open_uids = {uid for uid, ended in finished.items() if not ended}
    assert open_uids == {r.uid for r in waiting if r.tokens}
    assert sorted(finished) == list(range(len(finished)))  # none skipped

    # Bits.
    assert [without_timings(r) for r in rows] == [
        without_timings(r) for r in read_metrics(undisturbed / "metrics.jsonl")
    ]
    one, two = newest_tensors(undisturbed), newest_tensors(out)
    trained = sorted(name for name in one.keys() | two.keys() if not name.startswith("random."))
    assert [name for name in trained if not torch.equal(one[name], two[name])] == []


def test_an_exported_checkpoint_is_loaded_by_vllm(undisturbed: Path, tmp_path: Path) -> None:
    """The export's own weights, by vLLM and by transformers, to float32 round-off of one another."""
    from tppo.cli import main
    from tppo.engines.options import VllmOptions
    from tppo.engines.vllm import VllmEngine
    from tppo.ranks.ranks import Ranks

    before = os.environ.get("TPPO_CACHE")
    os.environ["TPPO_CACHE"] = str(undisturbed.with_name("cache"))
    try:
        assert main(["export", str(undisturbed), str(tmp_path / "model")]) == 0
    finally:
        os.environ.pop("TPPO_CACHE") if before is None else os.environ.update(TPPO_CACHE=before)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    state = newest_tensors(undisturbed)
    assert all(torch.equal(weights[name], state[f"policy.model.{name}"]) for name in weights)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["architectures"] == ["Qwen2ForCausalLM"]
    options = VllmOptions(max_rows=4, memory_fraction=0.1)
    engine = VllmEngine(tmp_path / "model", options, dtype="float32", seed=0, ranks=Ranks())
    tokens = [3, 9, 14, 7, 21, 30]
    theirs = torch.tensor(engine.score(tokens, 1))
    engine.close()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        table = model(torch.tensor([tokens])).logits[0].log_softmax(-1)
    ours = table[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]
    assert float((ours - theirs).abs().max()) < 1e-5
