"""Ten training steps of many variants, as hashes and exact metrics: what a refactoring must reproduce bit for bit.

    python -m tests.support.gate --out gate.json                        # record
    python -m tests.support.gate --out new.json --compare gate.json     # record, then compare; exit 1 if they differ
    ... --only toy-language/tppo/padded/1                               # beginnings of keys; several may follow

Keys: TASK/VARIANT/padded|packed|table/RANKS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paper_repro.recipes.small import token_mdp, toy_language
from tppo.algorithms import PPO, TPPO, Algorithm, Waiting, WaitingBehaviour
from tppo.config.registry import with_algorithm
from tppo.config.run import RunConfig
from tppo.ranks.ranks import current, end
from tppo.ranks.shard import full
from tppo.runs.build import build_trainer

STEPS = 10
RECIPES = {"token-mdp": token_mdp, "toy-language": toy_language}
TIMING = ("seconds_", "tokens_per_second_", "generate_idle")  # idle: a share of wall time, with several ranks only


SMALL: dict[str, dict[str, Any]] = {
    "token-mdp": {
        "steps": STEPS, "rollout__slots": 32, "rollout__max_response_tokens": 24, "algorithm__window": 8,
        "algorithm__ignore_last": 2, "algorithm__warmup_steps": 2,
        "policy__mini_batch": 16, "algorithm__critic__mini_batch": 16,
        "evaluation__every": 0, "evaluation__problems": 16,
    },
    "toy-language": {
        "steps": STEPS, "rollout__slots": 16, "rollout__max_response_tokens": 48, "algorithm__window": 12,
        "algorithm__ignore_last": 2, "algorithm__warmup_steps": 2,
        "policy__mini_batch": 8, "algorithm__critic__mini_batch": 8,
        "evaluation__every": 0, "evaluation__problems": 16, "compute__micro_batch_tokens": 512,
        # Problems long enough for four windows, and a base model that solves some.
        "task__base__examples": 6000, "task__base__error_rate": 0.0,
        "task__base__language__difficulty__maximum": 6, "task__base__layers": 2, "task__base__width": 32,
        "task__base__heads": 2, "task__base__mlp_width": 64, "task__base__max_positions": 128,
        "task__base__tokens_per_batch": 512,
    },
}  # fmt: skip
STORED = {"algorithm__critic__old_values": "stored"}
TIGHT = {"algorithm__critic__clip_low": 0.02, "algorithm__critic__clip_high": 0.03}
CRITIC = {"algorithm__boundary": "critic"}
VARIANTS: dict[str, tuple[type[Algorithm], dict[str, Any]]] = {
    "tppo": (TPPO, {}),
    "tppo-critic-boundary": (TPPO, CRITIC),
    "ppo": (PPO, {}),
    "waiting-decoupled": (Waiting, {"algorithm__importance_cap": 2.0}),
    "waiting-behaviour": (WaitingBehaviour, {}),
    "tppo-critic-on-all": (
        TPPO,
        CRITIC | {"algorithm__critic__responses": "all", "algorithm__critic__lam": 0.95},
    ),
    "tppo-stored-values": (TPPO, STORED),
    # Under the recipes' value clip (0.5, 0.6) stored values have the bits of recomputed ones: the clip never bites.
    # Under a tight one they part, and where responses wait, old values enter advantages too.
    "tppo-tight-value-clip": (TPPO, TIGHT),
    "tppo-stored-values-tight": (TPPO, TIGHT | STORED),
    "waiting-stored-values": (Waiting, STORED),
    "tppo-extras": (  # options that the others leave at rest, all at once
        TPPO,
        {
            "seed": 7, "rollout__temperature": 0.8, "policy__epochs": 2, "policy__warmup_updates": 3,
            "policy__weight_decay": 0.1, "algorithm__critic__epochs": 2, "algorithm__critic__grad_clip": 0.5,
            "algorithm__lam_alpha": 0.5, "algorithm__lam": 0.3, "algorithm__gamma": 0.98, "algorithm__bias": 0.05,
            "algorithm__importance_cap": 2.0, "algorithm__aggregation": "seq-mean-token-mean",
            "algorithm__entropy": 0.01, "algorithm__kl": 0.05,
            "algorithm__critic__aggregation": "token-mean", "algorithm__critic__lam": 0.9,
            "compute__logit_chunk_tokens": 64,
        },
    ),
}  # fmt: skip


def cases() -> dict[str, RunConfig]:
    """Key to the configuration of a run."""
    out: dict[str, RunConfig] = {}
    for ranks in (1, 2):
        for task, small in SMALL.items():
            for name, (kind, changes) in VARIANTS.items():
                for form in ("table",) if task == "token-mdp" else ("padded", "packed"):
                    config = with_algorithm(RECIPES[task]().with_values(**small), kind).with_values(**changes)
                    packed = {"compute__packed": True} if form == "packed" else {}
                    out[f"{task}/{name}/{form}/{ranks}"] = config.with_values(**packed)
    return out


def weights_hash(model: torch.nn.Module) -> str:
    """Of name and whole value of every parameter. All ranks must call it."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(full(parameter.detach()).cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokens_hash(responses: list[Any]) -> str:
    """Of all response tokens so far, in the order of the batch: those of Batch.tokens_N, int64."""
    return hashlib.sha256(
        np.concatenate([np.asarray(r.tokens, dtype=np.int64) for r in responses]).tobytes()
    ).hexdigest()


def state_hash(responses: list[Any]) -> str:
    """Of everything else that responses carry from step to step."""
    digest = hashlib.sha256()
    for r in responses:
        head = [r.uid, r.group, r.prompt.id, list(r.prompt.tokens), list(r.window_starts), r.status.value, r.reward]
        digest.update(json.dumps(head).encode())
        for name, kind in (("logprobs", np.float64), ("values", np.float64), ("versions", np.int64)):
            digest.update(np.asarray(getattr(r, name), dtype=kind).tobytes())
    return digest.hexdigest()


def run(config: RunConfig) -> dict[str, Any]:
    """Ten steps of one variant."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(config)
    finally:
        torch.set_num_threads(threads)


def _run(config: RunConfig) -> dict[str, Any]:
    trainer = build_trainer(config)
    models = trainer.networks.models
    result: dict[str, Any] = {
        "initial": {name: weights_hash(models[name]) for name in ("policy", "critic")},
        "steps": [],
    }
    for _ in range(STEPS):
        step = trainer.step()
        result["steps"].append({
            "policy": weights_hash(models["policy"]),
            "critic": weights_hash(models["critic"]),
            "tokens": tokens_hash(step.responses),
            "responses": state_hash(step.responses),
            "metrics": {k: v for k, v in step.metrics.items() if not k.startswith(TIMING)},
        })  # fmt: skip
    result["evaluation"] = trainer.evaluate().summary() | trainer.workload.report(trainer.policy)
    trainer.engine.close()
    return result


def fingerprint() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    import transformers

    return {
        "torch": torch.__version__, "numpy": np.__version__, "transformers": transformers.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(), "processor": platform.processor(),
        "model_name": next((x.split(":", 1)[1].strip() for x in lines if x.startswith("model name")), None),
        "python": platform.python_version(), "platform": platform.platform(),
    }  # fmt: skip


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def worker(keys: list[str], out: Path) -> None:
    """On every rank of torchrun."""
    results = {}
    for key in keys:
        results[key] = run(cases()[key])
        if current().main:
            print(key, file=sys.stderr, flush=True)
    if current().main:
        write(out, results)
    end(0)


def close(new: Any, old: Any) -> bool:
    """Metrics may be rounded otherwise, where sums are divided in another order; weights and tokens may not.

    A metric may be None where an algorithm no longer makes the pass that it was read from.
    """
    if isinstance(old, float) and isinstance(new, int | float):
        return math.isclose(new, old, rel_tol=1e-5, abs_tol=1e-7)
    return new is None or new == old


def compare(new: dict[str, Any], old: dict[str, Any]) -> int:
    """Print, for each variant that differs, the first step and fields; the number of those that differ."""
    bad = 0
    for key, a in new["variants"].items():
        b = old["variants"].get(key)
        if b is None:
            print(f"{key}: not in the baseline")
            continue
        found = ["initial"] if a["initial"] != b["initial"] else []
        for i, (x, y) in enumerate(zip(a["steps"], b["steps"], strict=True)):
            fields = [n for n in ("policy", "critic", "tokens", "responses") if x[n] != y[n]]
            names = sorted(y["metrics"])
            fields += [f"metrics.{n}" for n in names if not close(x["metrics"].get(n), y["metrics"][n])]
            if fields:
                found.append(f"step {i}: {', '.join(fields)}")
                break
        if a["evaluation"] != b["evaluation"]:
            found.append("evaluation")
        bad += bool(found)
        print(f"{key}: {'; '.join(found) or 'same'}")
    for name in ("torch", "numpy", "transformers", "cpu_capability", "model_name"):
        if new["machine"][name] != old["machine"][name]:
            print(f"machine: {name} {new['machine'][name]!r}, baseline {old['machine'][name]!r}")
    print(f"{bad} of {len(new['variants'])} differ")
    return bad


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="*", default=[""], help="prefixes of keys")
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--worker", action="store_true")
    known = parser.parse_args()
    keys = [key for key in cases() if key.startswith(tuple(known.only))]
    if known.worker:
        worker([key for key in keys if key.endswith("/2")], known.out)
    results: dict[str, Any] = {}
    for key in keys:
        if key.endswith("/1"):
            results[key] = run(cases()[key])
            print(key, file=sys.stderr, flush=True)
    if any(key.endswith("/2") for key in keys):
        with tempfile.TemporaryDirectory() as folder:
            part = Path(folder) / "two.json"
            subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__,
                 "--worker", "--out", str(part), "--only", *known.only],
                check=True, timeout=3000,
            )  # fmt: skip
            results |= json.loads(part.read_text())
    content = {"machine": fingerprint(), "steps": STEPS, "variants": json.loads(json.dumps(results))}
    write(known.out, content)
    return 0 if known.compare is None else int(compare(content, json.loads(known.compare.read_text())) > 0)


if __name__ == "__main__":
    sys.exit(main())
