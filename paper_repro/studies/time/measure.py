"""Measures generation calls of an engine under forced lengths: what the rollout clock is fitted to and held against.

    python -m paper_repro.studies.time.measure --engine torch --out measurements.csv

A tiny random Qwen2 generates. No token stops a response: every budget is spent, so the engine does exactly the work of
the schedule. Plans take turns within each repeat, in random order, so a machine that drifts favours none. Weights are
loaded before every call, which voids cached prefixes, and are not part of the measured time. Set OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import io
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tqdm import tqdm

from sim.clock.hardware import ModelProfile
from sim.clock.lengths import Lengths
from sim.clock.schedules import PPO, TPPO, Step, Task, rollout
from tppo.errors import ConfigError, DataError
from tppo.files import write_whole

if TYPE_CHECKING:
    from tppo.engines.base import Engine
    from tppo.types import GenerationRequest

ENGINES = ("torch", "vllm")
# Heads are 32 wide: the kernels of vLLM for CPUs want no less.
MODEL = ModelProfile("tiny random Qwen2", 4, 128, 4, 4, 256, 64, tied=True, bytes_per_weight=4)
POSITIONS = 768
COLUMNS = ("engine", "split", "plan", "repeat", "tokens", "seconds", "cpu_seconds", "load_seconds", "machine")


@dataclass(frozen=True)
class Plan:
    """A schedule to run for some calls. split: fit prices to it, or check predictions on it. window None: PPO."""

    split: Literal["fit", "check"]
    slots: int
    window: int | None
    lengths: Lengths
    prompt_tokens: int
    calls: int
    seed: int = 0

    @property
    def name(self) -> str:
        """A name that says everything that differs between plans."""
        schedule = "PPO" if self.window is None else f"T-PPO {self.window}"
        return f"{schedule}, {self.slots} slots, {self.lengths.name}, prompt {self.prompt_tokens}, {self.calls} calls"

    @property
    def task(self) -> Task:
        """The task as the simulator takes it."""
        return Task(self.lengths, self.slots, self.prompt_tokens)

    @property
    def schedule(self) -> PPO | TPPO:
        """The schedule as the simulator takes it."""
        return PPO() if self.window is None else TPPO(self.window)

    def steps(self, seed: int | None = None) -> list[Step]:
        """The steps of the schedule; lengths are the plan's own draws unless another seed is given."""
        return list(islice(rollout(self.schedule, self.task, seed=self.seed if seed is None else seed), self.calls))


def plans() -> list[Plan]:
    """The plans: constant lengths to fit to; long tails, windows and a mixture to check on."""
    fit = [
        (1, 200, 16, 1), (2, 160, 16, 1), (4, 128, 16, 1), (8, 160, 16, 1), (16, 128, 16, 1), (48, 96, 16, 1),
        (96, 48, 16, 1), (16, 224, 16, 1), (48, 12, 256, 1), (96, 6, 128, 2), (8, 32, 320, 2), (96, 112, 16, 1),
        (32, 64, 160, 1), (4, 128, 300, 1), (2, 4, 16, 12), (80, 8, 260, 1), (24, 16, 280, 1), (48, 64, 220, 1),
    ]  # fmt: skip

    def tail(median: float, sigma: float) -> Lengths:
        return Lengths.log_normal(median, sigma, 240)

    mixed = Lengths.sample([8, 24, 24, 24, 40, 200], name="mixture of 8, 24, 40, 200")
    check: list[tuple[int, int | None, Lengths, int, int]] = [
        (12, None, tail(40, 1.0), 12, 2), (12, 32, tail(40, 1.0), 12, 5),
        (40, None, tail(40, 0.6), 12, 1), (40, 64, tail(40, 0.6), 12, 2),
        (40, None, tail(40, 1.4), 12, 1), (40, 64, tail(40, 1.4), 12, 2),
        (80, None, tail(24, 1.0), 48, 1), (80, 16, tail(24, 1.0), 48, 2), (80, 32, tail(24, 1.0), 48, 2),
        (80, 128, tail(24, 1.0), 48, 1),
        (64, None, mixed, 24, 1), (64, 48, mixed, 24, 2),
        (24, 24, tail(60, 1.2), 100, 3), (96, 40, tail(40, 1.4), 24, 1), (56, 80, Lengths.constant(200), 20, 2),
        (20, 100, tail(80, 0.8), 40, 2),
    ]  # fmt: skip
    return [
        *(Plan("fit", s, None, Lengths.constant(n), p, c, seed=i) for i, (s, n, p, c) in enumerate(fit)),
        *(Plan("check", s, w, lengths, p, c, seed=100 + i) for i, (s, w, lengths, p, c) in enumerate(check)),
    ]


def requests_of(plan: Plan, step: Step, call: int, repeat: int) -> list[GenerationRequest]:
    """Random contexts, new ones in every repeat, and budgets that are the lengths to be."""
    from tppo.types import GenerationRequest

    rng = np.random.default_rng([plan.seed, call, repeat])
    return [
        GenerationRequest(uid, tuple(rng.integers(1, MODEL.vocab, plan.prompt_tokens + start).tolist()), start, new)
        for uid, start, new in zip(step.uid_S.tolist(), step.start_S.tolist(), step.new_S.tolist(), strict=True)
    ]


def measure_engine(name: str, chosen: Sequence[Plan], *, repeats: int, show: bool = True) -> list[dict[str, Any]]:
    """Time every plan ``repeats`` times, after one warm-up of two plans. One row per plan and repeat.

    Raises ConfigError for an engine that cannot start, DataError where an engine did not spend a budget.
    """
    from tppo.types import Sampling

    rng = np.random.default_rng(0)
    sampling = Sampling(1.0, frozenset(), seed=0)
    order = [(-1, p) for p in chosen[:2]]
    order += [(repeat, chosen[i]) for repeat in range(repeats) for i in rng.permutation(len(chosen))]
    rows: list[dict[str, Any]] = []
    with _engine(name) as (engine, weights):
        for repeat, plan in tqdm(order, desc=f"measure {name}", unit="plan", disable=not show):
            seconds = cpu = load = 0.0
            tokens = 0
            for call, step in enumerate(plan.steps()):
                requests = requests_of(plan, step, call, repeat + 1)
                at = time.perf_counter()
                engine.load_policy(weights, call)
                load += time.perf_counter() - at
                at, cpu_at = time.perf_counter(), time.process_time()
                answers = engine.generate(requests, sampling)
                seconds += time.perf_counter() - at
                cpu += time.process_time() - cpu_at
                if [len(a.tokens) for a in answers] != step.new_S.tolist():
                    raise DataError(f"{name}, {plan.name}: the engine did not spend every budget")
                tokens += int(step.new_S.sum())
            if repeat >= 0:
                rows.append(
                    {
                        "engine": name, "split": plan.split, "plan": plan.name, "repeat": repeat,
                        "tokens": tokens, "seconds": round(seconds, 6), "cpu_seconds": round(cpu, 6),
                        "load_seconds": round(load / plan.calls, 6), "machine": _machine(),
                    }
                )  # fmt: skip
    return rows


@contextmanager
def _engine(name: str) -> Iterator[tuple[Engine, list[tuple[str, Any]]]]:
    """Start an engine with random weights; yield it and these weights."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    from tppo.models.transformer import TransformerPolicy

    if name not in ENGINES:
        raise ConfigError("engine", name, " or ".join(ENGINES))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=MODEL.vocab, hidden_size=MODEL.hidden, intermediate_size=MODEL.intermediate,
        num_hidden_layers=MODEL.layers, num_attention_heads=MODEL.heads, num_key_value_heads=MODEL.kv_heads,
        max_position_embeddings=POSITIONS, tie_word_embeddings=MODEL.tied,
    )  # fmt: skip
    logging.disable_progress_bar()
    model = Qwen2ForCausalLM(config).eval()
    policy = TransformerPolicy(model)
    weights = list(policy.weights())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if name == "torch":
            from tppo.engines.embedded import EmbeddedEngine

            yield EmbeddedEngine(policy), weights
            return
        from tppo.config.run import VllmOptions
        from tppo.engines.vllm import VllmEngine
        from tppo.ranks.ranks import Ranks

        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            engine = VllmEngine(
                Path(folder), VllmOptions(max_rows=128, memory_fraction=0.1), dtype="float32", seed=0, ranks=Ranks()
            )
            try:
                yield engine, weights
            finally:
                engine.close()
    finally:
        torch.set_num_threads(threads)


def embedded_prefill_tokens() -> int:
    """Positions of one prefill call of the embedded engine, as it comes."""
    from tppo.engines.embedded import EmbeddedEngine

    return int(inspect.signature(EmbeddedEngine).parameters["prefill_tokens"].default)


def _machine() -> str:
    """The processor's name and the number of threads."""
    try:
        names = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
        processor = names[0].partition(":")[2].strip()
    except (OSError, IndexError):
        processor = "unknown processor"
    return f"{processor}, threads: {os.environ.get('OMP_NUM_THREADS', 'default')}"


def read_measurements(path: Path) -> list[dict[str, Any]]:
    """Read the rows of measurements.csv. Raises DataError naming the line that cannot be read."""
    rows: list[dict[str, Any]] = []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, row in enumerate(csv.DictReader(file), 2):
                try:
                    numbers = {k: float(row[k]) for k in ("seconds", "cpu_seconds", "load_seconds")}
                    whole = {k: int(row[k]) for k in ("repeat", "tokens")}
                    rows.append({k: row[k] for k in COLUMNS} | numbers | whole)
                except (KeyError, TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}, line {number}: expected the columns {', '.join(COLUMNS)} ({error})"
                    ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as measurements ({error})") from None
    return rows


def write_measurements(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write measurements.csv whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, out.getvalue())


def main() -> None:
    """Measure one engine and add it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=ENGINES, default="torch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, help="a CSV file; rows of other engines in it are kept")
    parser.add_argument("--force", action="store_true", help="replace rows of this engine that are there already")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats: expected at least 1")
    before = read_measurements(args.out) if args.out.exists() else []
    kept = [row for row in before if row["engine"] != args.engine]
    if len(kept) < len(before) and not args.force:
        parser.error(f"{args.out} holds measurements of {args.engine} already: choose another file or add --force")
    write_measurements(args.out, [*kept, *measure_engine(args.engine, plans(), repeats=args.repeats)])


if __name__ == "__main__":
    main()
