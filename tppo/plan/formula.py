"""The memory of a training step by arithmetic: what the tracker is held against, and what the search computes with.

For decoder-only transformers with a gated feed-forward layer (Qwen2, Llama) and attention that keeps no table of
scores. Letters: D hidden width, I width inside the feed-forward layer, V vocabulary, L layers, N ranks, b bytes of a
number that models compute with.
"""

from __future__ import annotations

import math

from tppo.models.sizes import sizes
from tppo.plan.track import PARTS, Figures, Job

FLOAT32 = 4


def estimate(job: Job, name: str) -> Figures:
    """Figures of a network by formula: of the policy, or of the body with a head of one number a position.

    Shards: 16 bytes a parameter over N (weight, gradient, two moments in float32). Gathered: whole weights of the root
    and of two layers at b bytes, and one layer's gradients at b and in float32. Activations: with recompute one hidden
    vector a token and layer, and all of one layer; else all of every layer.
    """
    if name not in job.needed:  # never trained
        numbers = sizes(job.shape).numbers
        shards = dict.fromkeys(PARTS, 0) | {"parameters": FLOAT32 * math.ceil(numbers / job.ranks)}
        return Figures(shards, shards, numbers, sizes(job.shape).largest)
    s = sizes(job.shape, critic=name != "policy")
    b = 2 if job.compute.dtype == "bfloat16" else FLOAT32
    tokens, shard = job.rows * job.width, math.ceil(s.numbers / job.ranks)
    # Norms compute in float32: two copies of a vector and one of b bytes, for each of two. Attention: queries and keys
    # before and after the rotation, values, its output. Feed-forward: gate, its activation, the other half, product.
    norms = 2 * s.hidden * ((2 * FLOAT32 + b) if b != FLOAT32 else 2 * b)
    inner = norms + b * (3 * s.query + 3 * s.keys + 4 * s.inside)
    kept = (s.layers * b * s.hidden + inner) if job.compute.recompute else s.layers * (inner + b * s.hidden)
    chunk = min(job.needed[name], job.compute.logit_chunk_tokens)
    table = chunk * s.vocab if name == "policy" else 0
    at_head = s.layers * tokens * b * s.hidden if job.compute.recompute else kept * tokens
    layer_peak = tokens * (kept + b * (3 * s.inside + 2 * s.hidden))
    # Log-softmax, its scaled input, and their gradients, in float32; one more table of b bytes where b is not 4.
    head_peak = at_head + table * (4 * FLOAT32 + (b if b != FLOAT32 else 0))
    head_wins = head_peak > layer_peak
    unsharded = b * (s.root + 2 * s.block)
    grads = (b + FLOAT32) * s.block
    if head_wins:
        activations, temporary, gathered, reduced = at_head, head_peak - at_head, b * (s.root + s.block), 0
    else:
        activations, gathered, reduced = tokens * kept, unsharded, grads
        temporary = layer_peak - tokens * kept
    resident = dict.fromkeys(PARTS, 0) | {
        "parameters": FLOAT32 * shard,
        "gradients": FLOAT32 * shard,
        "optimizer": 2 * FLOAT32 * shard,
    }
    peak = resident | {"gathered": gathered, "reduced": reduced}
    peak |= {"activations": activations, "temporary": temporary}
    return Figures(peak, resident, s.numbers, s.largest)


def scaled(known: dict[str, Figures], at: Job, to: Job) -> dict[str, Figures]:
    """Figures at another job, from tracked ones: each part grows as its formula does. Shards and buffers exactly so."""
    out = {}
    for name, figures in known.items():
        old, new = estimate(at, name), estimate(to, name)
        out[name] = Figures(
            {part: _grow(figures.peak[part], old.peak[part], new.peak[part]) for part in PARTS},
            {part: _grow(figures.resident[part], old.resident[part], new.resident[part]) for part in PARTS},
            figures.numbers,
            figures.largest,
        )
    return out


def _grow(size: int, old: int, new: int) -> int:
    return size if not old else math.ceil(size * new / old)
