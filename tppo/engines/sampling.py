"""Seeded sampling: the random number of a token depends on (seed, response, position) and on nothing else.

So what a response says does not depend on who shares its batch, on how it is cut into windows, or on the number of
processes. (Its logits may still differ in the last bit between batch shapes; that is the kernels' doing.)
"""

from __future__ import annotations

import numpy as np
import torch


def uniforms(seed: int, uid: int, position: int, count: int) -> np.ndarray:
    """Uniform numbers in [0, 1) of positions ``position .. position + count - 1`` of response ``uid``, float64.

    Counter-based (Philox-4x64): the key is (seed, uid), the counter is the position; four numbers a counter step.

    >>> whole = uniforms(7, 42, 0, 9)
    >>> bool((uniforms(7, 42, 5, 4) == whole[5:]).all())
    True
    """
    bits = np.random.Philox(key=np.array([seed, uid], dtype=np.uint64))
    bits.advance(position // 4)
    skip = position % 4
    return np.random.Generator(bits).random(skip + count)[skip:]


def pick(
    logits_BV: torch.Tensor, u_B: torch.Tensor, *, temperature: float, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample a token a row by inverting the distribution function at ``u_B`` (float64 in [0, 1)).

    Returns token ids [B] and their log-probabilities [B] under softmax(logits / temperature), the full distribution
    even when ``top_p`` narrows the choice. temperature 0 takes the largest logit and reports its log-probability at
    temperature 1.
    """
    logits = logits_BV.float()
    if temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
    logprobs = (logits / temperature).log_softmax(-1)
    # Float64: in float32 the running sum of 150k probabilities loses the tail and u may round to one.
    probs = logprobs.double().exp()
    if top_p < 1:
        ordered, order = torch.sort(probs, dim=-1, descending=True, stable=True)
        outside = ordered.cumsum(-1) - ordered >= top_p  # the token that crosses top_p stays
        probs = probs.scatter(-1, order, ordered.masked_fill(outside, 0))
    cdf = probs.cumsum(-1)
    target = u_B[:, None] * cdf[:, -1:]
    tokens = (cdf <= target).sum(-1).clamp(max=probs.shape[-1] - 1)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)
