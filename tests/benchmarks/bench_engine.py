"""Embedded engine against ``transformers`` generate, and selected logits against all logits, in one process.

    python -m tests.benchmarks.bench_engine

Runs take turns; the ratio of each pair is printed as median (smallest to largest).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from tppo.engines.embedded import EmbeddedEngine
from tppo.models.call import Call
from tppo.models.transformer import TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import Batch, GenerationRequest, Prompt, Response, Sampling

ROWS, PROMPT, NEW = 128, 20, 64


def model(vocab_size: int = 49) -> Qwen2ForCausalLM:
    """About 600,000 parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocab_size, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def pairs(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 5
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turns, after one warm-up."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 1):
        for which, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            if turn:
                times[which].append(time.perf_counter() - start)
    return times


def report(name: str, tokens: int, ours: list[float], theirs: list[float]) -> None:
    """Tokens per second and paired ratios."""
    ratio = sorted(t / o for o, t in zip(ours, theirs, strict=True))
    print(
        f"{name:<34} ours {tokens / statistics.median(ours):>9,.0f} tok/s   other "
        f"{tokens / statistics.median(theirs):>9,.0f} tok/s   faster by {statistics.median(ratio):.2f}x "
        f"({ratio[0]:.2f} to {ratio[-1]:.2f})"
    )


def main() -> None:
    """Print the table."""
    lm = model()
    prompts = torch.randint(2, 49, (ROWS, PROMPT))
    engine = EmbeddedEngine(TransformerPolicy(lm))
    requests = [GenerationRequest(i, tuple(p), 0, NEW) for i, p in enumerate(prompts.tolist())]
    sampling = Sampling(1.0, frozenset(), 0)

    def generate(new: int) -> None:
        lm.generate(
            prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=new,
            min_new_tokens=new, pad_token_id=0,
        )  # fmt: skip

    report(
        "generate, 128 x 64 tokens",
        ROWS * NEW,
        *pairs(lambda: engine.generate(requests, sampling), lambda: generate(NEW)),
    )

    # Lengths as in the toy language: median 15, longest 134. A batch that waits for its longest row pays for all.
    lengths = (9 * (1 - torch.rand(ROWS, generator=torch.Generator().manual_seed(0))) ** -0.75).long().clamp(max=134)
    lengths[0] = 134
    tailed = [
        GenerationRequest(i, tuple(p), 0, int(n))
        for (i, p), n in zip(enumerate(prompts.tolist()), lengths, strict=True)
    ]
    name = f"generate, long tail (mean {lengths.float().mean():.0f})"
    report(name, int(lengths.sum()), *pairs(lambda: engine.generate(tailed, sampling), lambda: generate(134)))

    # A T-PPO step on long carried responses: 512 tokens of context each, 32 new ones that train.
    wide = model(vocab_size=8192)
    policy = TransformerPolicy(wide)
    responses = []
    for uid in range(16):
        r = Response(uid, uid, Prompt("p", tuple(range(2, 2 + PROMPT))))
        tokens = torch.randint(2, 8192, (400,)).tolist()
        r.extend(tokens[:368], [0.0] * 368, 0)
        r.extend(tokens[368:], [0.0] * 32, 1)
        responses.append(r)
    batch = Batch.of(responses)

    call = Call(Ranks(), micro_batch_tokens=8192, logit_chunk_tokens=4096)

    def selected() -> None:
        call.logprobs(policy, batch, batch.window_N)

    @torch.no_grad()
    def everything() -> None:
        ids = torch.stack(batch.sequences)
        wide(ids).logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])

    report("log-probs of a window, 8k words", int(batch.window_N.sum()), *pairs(selected, everything))
    print(f"logits held at once: ours {int(batch.window_N.sum()):,} rows, all positions {16 * (PROMPT + 400):,} rows")


if __name__ == "__main__":
    main()
