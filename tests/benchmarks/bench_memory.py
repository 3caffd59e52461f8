"""Peak memory of the output head at 24k tokens x 152k words, and packed rows against padded ones.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_memory [head | packed]

Head: log-probabilities, their sum as loss, and backward; float32, entropy off. "measured" is the growth of a fresh
process's resident memory to its highest point; "tracked" counts the bytes of living tensors under FakeTensorMode, where
no number is computed, so it reaches sizes that this machine does not have. "naive" is
``linear(hidden, weight).log_softmax(-1).gather(...)`` under autograd, all tokens at once.

Times are of runs that take turns; the ratio of each pair is printed as median (smallest to largest).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from tests.benchmarks.bench_engine import model, pairs
from tppo.models.head import linear_scores
from tppo.models.transformer import TransformerPolicy

TOKENS, WORDS, WIDTH, CHUNK = 24_576, 151_936, 64, 1024
GB = 1e9


def head_inputs(tokens: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [X, D], weight [V, D] (both train) and chosen tokens [X]."""
    hidden = torch.randn(tokens, width, requires_grad=True)
    weight = torch.randn(WORDS, width, requires_grad=True)
    return hidden, weight, torch.randint(0, WORDS, (tokens,))


def head_step(which: str, hidden: torch.Tensor, weight: torch.Tensor, tokens: torch.Tensor, chunk: int) -> None:
    """Log-probabilities, loss, backward."""
    hidden.grad = weight.grad = None
    if which == "ours":
        scores, _ = linear_scores(hidden, weight, None, tokens, temperature=1.0, chunk=chunk, with_entropy=False)
        scores.sum().backward()
    else:
        torch.nn.functional.linear(hidden, weight).log_softmax(-1).gather(-1, tokens[:, None]).sum().backward()


def resident(name: str) -> int:
    """VmRSS (now) or VmHWM (highest so far) of this process [bytes]."""
    line = next(s for s in Path("/proc/self/status").read_text().splitlines() if s.startswith(name))
    return int(line.split()[1]) * 1024


def child(which: str, tokens: int, chunk: int) -> None:
    """Runs in a fresh process; prints bytes above what weights and inputs hold, and seconds."""
    inputs = head_inputs(tokens)
    before, start = resident("VmRSS"), time.perf_counter()
    head_step(which, *inputs, chunk)
    print(json.dumps([resident("VmHWM") - before, time.perf_counter() - start]))


def measured(which: str, tokens: int, chunk: int) -> tuple[float, float]:
    """Peak [bytes] and time [s] of a real run."""
    command = [sys.executable, __file__, "--child", which, str(tokens), str(chunk)]
    peak, seconds = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return peak, seconds


def tracked(which: str, tokens: int, chunk: int) -> float:
    """Peak of living tensors less the inputs [bytes]; nothing is computed."""
    with FakeTensorMode():
        inputs = head_inputs(tokens)
        tracker = MemTracker()
        tracker.track_external(*inputs)
        with tracker:
            head_step(which, *inputs, chunk)
        peak = sum(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())
        return peak - sum(x.numel() * x.element_size() for x in inputs)


def head() -> None:
    """Memory and time of the output head."""
    print(f"output head, {WORDS:,} words, width {WIDTH}, float32: peak above the inputs [GB]")
    print(f"{'':<7}{'tokens':>7}{'chunk':>7}{'measured':>10}{'tracked':>9}{'seconds':>9}")
    runs = [("naive", n, 0) for n in (512, 1024, 2048)] + [("ours", n, CHUNK) for n in (1024, 2048, TOKENS)]
    peaks: dict[tuple[str, int], float] = {}
    for which, tokens, chunk in runs:
        peaks[which, tokens], seconds = measured(which, tokens, chunk)
        print(
            f"{which:<7}{tokens:>7,}{chunk or 'all':>7}{peaks[which, tokens] / GB:>10.2f}"
            f"{tracked(which, tokens, chunk) / GB:>9.2f}{seconds:>9.1f}",
            flush=True,
        )
    for which, chunk in [("naive", 0), ("ours", 256), ("ours", 4096)]:
        print(f"{which:<7}{TOKENS:>7,}{chunk or 'all':>7}{'not run':>10}{tracked(which, TOKENS, chunk) / GB:>9.2f}")
    theirs, ours = tracked("naive", TOKENS, 0), peaks["ours", TOKENS]
    slope = (peaks["naive", 2048] - peaks["naive", 512]) / (2048 - 512)
    line = peaks["naive", 2048] + slope * (TOKENS - 2048)
    print(f"naive at {TOKENS:,}: tracked {theirs / GB:.1f} GB, line through what was measured {line / GB:.1f} GB")
    print(f"ours (measured, chunk {CHUNK}) / naive (tracked) at {TOKENS:,} tokens: 1/{theirs / ours:.1f}")
    for width in (WIDTH, 896):
        inputs = head_inputs(1024, width)
        for chunk in (256, 1024):  # With one chunk the logits are not computed twice.
            times = pairs(
                lambda i=inputs, c=chunk: head_step("ours", *i, c),  # type: ignore[misc]
                lambda i=inputs: head_step("naive", *i, 0),  # type: ignore[misc]
                repeats=3,
            )
            print(f"time naive / ours, 1,024 tokens, width {width}, chunk {chunk}: {ratio(*times)}", flush=True)


def ratio(ours: list[float], theirs: list[float]) -> str:
    """Median (smallest to largest) of theirs / ours."""
    r = sorted(t / o for o, t in zip(ours, theirs, strict=True))
    return f"{r[len(r) // 2]:.2f} ({r[0]:.2f} to {r[-1]:.2f})"


def cut(lengths: list[int], budget: int, *, padded: bool) -> list[list[int]]:
    """Micro-batches of at most ``budget`` positions, padding included where there is any."""
    parts: list[list[int]] = [[]]
    for n in lengths:
        wide = [*parts[-1], n]
        if parts[-1] and (max(wide) * len(wide) if padded else sum(wide)) > budget:
            parts.append([])
        parts[-1].append(n)
    return parts


def packed() -> None:
    """Forward and backward of a four-layer Qwen2 of width 128, packed against padded."""
    policy = TransformerPolicy(model())
    policy.model.config.max_position_embeddings = 4096
    g = torch.Generator().manual_seed(0)
    tail = (20 * (1 - torch.rand(64, generator=g)) ** -0.75).long().clamp(max=400).tolist()
    cases = [
        ("toy: 20 rows of 40 to 60", torch.randint(40, 61, (20,), generator=g).tolist(), 1024, True),
        ("toy: 20 rows of 50", [50] * 20, 1024, True),
        ("long tail 20 to 400, sorted", tail, 2048, True),
        ("long tail 20 to 400, one batch", tail, 10**9, False),
        ("12 rows of 300 to 1,200, sorted", torch.randint(300, 1201, (12,), generator=g).tolist(), 4096, True),
        ("2 rows of 1,000 and 4,000", [1000, 4000], 8192, False),
        ("1 row of 4,000", [4000], 8192, False),
    ]
    print("\npacked against padded, forward and backward; padding: positions of the rectangles / tokens")
    for name, lengths, budget, in_order in cases:
        lengths = sorted(lengths) if in_order else lengths
        flat = [torch.randint(0, 49, (sum(part),)) for part in cut(lengths, budget, padded=False)]
        rows = [[torch.randint(0, 49, (n,)) for n in part] for part in cut(lengths, budget, padded=True)]
        rectangles = [torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in rows]

        def ours(flat: list[torch.Tensor] = flat, lengths: list[int] = lengths, budget: int = budget) -> None:
            for ids, part in zip(flat, cut(lengths, budget, padded=False), strict=True):
                policy.packed_hidden(ids, part).square().sum().backward()

        def theirs(rectangles: list[torch.Tensor] = rectangles) -> None:
            for ids in rectangles:
                policy.hidden(ids).square().sum().backward()

        padding = sum(x.numel() for x in rectangles) / sum(lengths)
        print(f"{name:<32} padding {padding:.2f}   padded / packed time {ratio(*pairs(ours, theirs, 7))}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["head", "packed"], help="both when not given")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], *map(int, arguments.child[1:]))
    else:
        for part in (head, packed):
            if arguments.what in (None, part.__name__):
                part()
