"""The base model of the toy language: a tiny Qwen2, partly able after a supervised warm start.

The warm start imitates worked solutions in which each step is wrong with a fixed probability. The model comes to know
the right step, as its most probable one, and to err as often as its demonstrations did: the state in which
reinforcement learning finds a pretrained model. Only response tokens, end of response included, are trained on.

A base model is a Hugging Face folder in a cache, made once for each config. The same config gives the same bits on the
same machine: the warm start runs on one thread, whatever the caller has; matrices this small gain little from more.

torch and transformers are imported where they are used: who only names a config need not wait for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np

from paper_repro.models.cache import cached_folder
from sim.language import EOS_ID, PAD_ID, VOCAB_SIZE, Language, demonstrate, encode
from tppo.errors import ConfigError
from tppo.files import sha256_of_json
from tppo.ranges import PROBLEMS, RATE, SEED, TOKENS, Range, check_ranges

if TYPE_CHECKING:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

IGNORED = -100  # the label that cross_entropy leaves out
# Streams of random numbers derived from one seed; the problems themselves are addressed by (split, index, seed).
ERRORS, ORDER = 1, 2


@dataclass(frozen=True)
class BaseModelConfig:
    """Everything that determines a base model, but for the versions of the libraries."""

    language: Language = field(default_factory=Language)
    """Problems whose worked solutions are imitated."""
    error_rate: Annotated[float, Range(0, 1)] = 0.25
    """Probability that a step of a demonstration is wrong."""
    examples: Annotated[int, Range(1, PROBLEMS)] = 40_000
    """Demonstrations, each seen once."""
    layers: Annotated[int, Range(1, 1000)] = 3
    """Transformer layers."""
    width: Annotated[int, Range(1, 100_000)] = 128
    """Hidden width. With four heads each is 32 wide, the narrowest that vLLM has CPU kernels for."""
    heads: Annotated[int, Range(1, 10_000)] = 4
    """Attention heads."""
    mlp_width: Annotated[int, Range(1, 100_000)] = 256
    """Width inside the feed-forward layers."""
    max_positions: Annotated[int, Range(1, TOKENS, unit="tokens")] = 512
    """Longest prompt and response together."""
    initial_std: Annotated[float, Range(0, 100, above=True)] = 0.08
    """Standard deviation of the initial weights; at this width the usual 0.02 learns several times more slowly."""
    tokens_per_batch: Annotated[int, Range(1, TOKENS, unit="tokens")] = 1024
    """Padded tokens of one optimiser step, at most, unless one example is longer."""
    learning_rate: Annotated[float, Range(0, RATE, above=True)] = 2.5e-3
    """Peak learning rate of the warm start."""
    weight_decay: Annotated[float, Range(0, RATE)] = 0.01
    """Decoupled weight decay, on matrices only."""
    seed: Annotated[int, Range(0, SEED)] = 0
    """Of initial weights, errors and order."""

    def __post_init__(self) -> None:
        check_ranges(self, "task.base")
        if self.width % (2 * self.heads):
            raise ConfigError(
                "task.base.width",
                self.width,
                f"a multiple of {2 * self.heads}",
                f"rotary position embeddings need heads of even width, and there are {self.heads}",
            )


@dataclass(frozen=True, slots=True)
class Example:
    """One demonstration as token ids."""

    ids: list[int]  # prompt, response, EOS
    prompt_length: int  # tokens


def base_model(config: BaseModelConfig, *, cache_dir: str | Path | None = None, progress: bool = True) -> Path:
    """The folder of the base model, made now unless a sound one is in the cache.

    It is kept by ``paper_repro.models.cache``.
    """
    name = f"base-model-{cache_key(config)}"
    record = {"config": asdict(config)}
    return cached_folder(
        name, lambda folder: train(config, progress=progress).save_pretrained(folder), record, cache_dir=cache_dir
    )


def cache_key(config: BaseModelConfig) -> str:
    """A hash of all that determines the model: the config, the libraries, the architecture and the demonstrations.

    The first demonstrations stand for the code that writes them: change a task's format and the key changes.
    """
    few = [example.ids for example in _examples(config, min(config.examples, 64))]
    versions = {package: version(package) for package in ("numpy", "torch", "transformers")}
    parts = [asdict(config), versions, qwen2_config(config).to_dict(), few]
    return sha256_of_json(parts)[:16]


def qwen2_config(config: BaseModelConfig) -> Qwen2Config:
    """The architecture."""
    from transformers import Qwen2Config

    return Qwen2Config(
        vocab_size=VOCAB_SIZE,
        hidden_size=config.width,
        intermediate_size=config.mlp_width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.heads,
        max_position_embeddings=config.max_positions,
        initializer_range=config.initial_std,
        tie_word_embeddings=True,
        pad_token_id=PAD_ID,
        eos_token_id=EOS_ID,
        bos_token_id=None,
        dtype="float32",
    )


def train(config: BaseModelConfig, *, progress: bool = True) -> Qwen2ForCausalLM:
    """The warm start, without the cache. The caller's random state and number of threads are left as they were."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _train(config, progress=progress)
    finally:
        torch.set_num_threads(threads)


def _train(config: BaseModelConfig, *, progress: bool) -> Qwen2ForCausalLM:
    """Imitation of the demonstrations, token by token."""
    import torch
    from torch.nn.functional import cross_entropy
    from tqdm import tqdm
    from transformers import Qwen2ForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = Qwen2ForCausalLM(qwen2_config(config)).train()
    batches = _batches(config, list(_examples(config, config.examples)))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    bar = tqdm(batches, desc="warm start", unit="step", disable=not progress)
    for step, batch in enumerate(bar):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * _schedule(step, len(batches))
        ids_BT, labels_BT = _padded(batch)
        # Padding stands on the right and attention is causal, so no response token sees it: no mask is needed.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.eval()


def _examples(config: BaseModelConfig, count: int) -> Iterator[Example]:
    """The first ``count`` demonstrations."""
    for index in range(count):
        problem = config.language.problem("train", index, config.seed)
        rng = np.random.default_rng([config.seed, ERRORS, index])
        response = demonstrate(problem, rng, config.error_rate)
        ids = [*encode(problem.prompt), *encode(response), EOS_ID]
        if len(ids) > config.max_positions:
            raise ConfigError(
                "task.base.max_positions",
                config.max_positions,
                f"at least {len(ids)} for training problem {index}",
                "raise it or lower task.base.language.difficulty.maximum",
            )
        yield Example(ids, len(problem.prompt))


def _batches(config: BaseModelConfig, examples: list[Example]) -> list[list[Example]]:
    """Batches of like length, so that little is padding, in random order."""
    batches: list[list[Example]] = []
    for example in sorted(examples, key=lambda example: len(example.ids)):
        # Sorted, so the newest example is the longest of its batch.
        if not batches or (len(batches[-1]) + 1) * len(example.ids) > config.tokens_per_batch:
            batches.append([])
        batches[-1].append(example)
    order = np.random.default_rng([config.seed, ORDER]).permutation(len(batches))
    return [batches[i] for i in order]


def _padded(batch: list[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and next-token labels [B, T]; only response tokens are labels."""
    import torch

    width = max(len(example.ids) for example in batch)
    ids_BT = np.full((len(batch), width), PAD_ID)
    labels_BT = np.full((len(batch), width), IGNORED)
    for row, example in enumerate(batch):
        start, end = example.prompt_length, len(example.ids)
        ids_BT[row, :end] = example.ids
        labels_BT[row, start - 1 : end - 1] = example.ids[start:]
    return torch.from_numpy(ids_BT), torch.from_numpy(labels_BT)


def _schedule(step: int, steps: int) -> float:
    """Share of the peak learning rate: a short linear rise, level to half-time, then a cosine down to 1%.

    >>> [round(_schedule(step, 100), 3) for step in (0, 4, 49, 75, 99)]
    [0.2, 1.0, 1.0, 0.505, 0.011]
    """
    rise = min(1.0, (step + 1) / max(1.0, 0.05 * steps))
    falling = max(0.0, step / steps - 0.5) / 0.5
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * falling)))
