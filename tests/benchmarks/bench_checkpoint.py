"""What a checkpoint costs: how long training waits for it, and how large it is.

    python -m tests.benchmarks.bench_checkpoint [--recipe toy-language] [--steps 20]

Trains the recipe with a checkpoint at every step (the harshest case: each may have to wait for the one before). The
stall is what training waits for: the copy of the state, and the end of the write before. The share at the recipe's own
interval follows from it. The smallest possible size is the bytes of all weights and optimiser moments and of the token
arrays in flight, without a single name or hash.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from tppo.config.recipes import load_recipe
from tppo.config.run import CheckpointOptions
from tppo.runs.build import build_trainer
from tppo.runs.checkpoint.contents import Progress, capture
from tppo.runs.checkpoint.files import WINDOW
from tppo.runs.checkpoint.store import CheckpointStore


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe", default="toy-language")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    config = load_recipe(args.recipe)
    trainer = build_trainer(config)
    steps, stalls, copies, writes = [], [], [], []
    with tempfile.TemporaryDirectory() as folder:
        store = CheckpointStore(
            Path(folder), CheckpointOptions(every=1, keep=2), trainer.ranks, watch=lambda phase: None
        )
        for _ in range(args.steps):
            began = time.perf_counter()
            trainer.step()
            stepped = time.perf_counter()
            store.wait()
            waited = time.perf_counter()
            contents = capture(trainer, Progress())
            store.save(contents)
            saved = time.perf_counter()
            steps.append(stepped - began)
            stalls.append(saved - stepped)
            copies.append(saved - waited)
        store.wait()
        for _ in range(5):  # the write alone, with nothing beside it
            began = time.perf_counter()
            store.write(contents)
            writes.append(time.perf_counter() - began)
        newest = max(path for path in store.root.iterdir() if path.name.startswith("step-"))
        size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
        window = (newest / WINDOW).stat().st_size
    tensors = sum(
        t.numel() * t.element_size() for name, t in contents.tensors.items() if not name.startswith("random.")
    )
    tokens = sum(len(r.tokens) for r in trainer.slots.in_flight)
    smallest = tensors + tokens * 4 * 8  # token, log-prob, value, version: eight bytes each, as in memory
    middle = statistics.median
    every = config.checkpoint.every
    print(
        json.dumps(
            {
                "recipe": args.recipe,
                "threads": torch.get_num_threads(),
                "parameters": sum(p.numel() for p in trainer.policy.parameters()),
                "step_seconds": round(middle(steps), 4),
                "stall_seconds": round(middle(stalls), 4),
                "stall_seconds_largest": round(max(stalls), 4),
                "of_which_copy_seconds": round(middle(copies), 4),
                "write_seconds_alone": round(middle(writes), 4),
                "stall_share_at_every_step": round(sum(stalls) / (sum(steps) + sum(stalls)), 4),
                f"stall_share_at_every_{every}_steps": round(sum(stalls) / every / sum(steps), 5),
                "bytes": size,
                "bytes_of_responses": window,
                "bytes_smallest_possible": smallest,
                "size_ratio": round(size / smallest, 4),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
