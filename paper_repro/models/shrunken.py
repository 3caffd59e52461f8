"""Random models of a real architecture, small enough for any machine: for dry runs, where only the code path counts.

A shrunken Qwen2.5-32B has the same parts as the real one (grouped-query attention, biases, a separate output layer, a
tokenizer with ChatML), two layers, and knows nothing. Every byte is a token, so every text can be asked and answered.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from paper_repro.models.cache import cached_folder
from paper_repro.models.shapes import qwen2_config
from tppo.errors import ConfigError
from tppo.files import sha256_of_json

PREFIX = "shrunken:"
END_OF_TEXT, TURN_BEGINS, TURN_ENDS = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def shrunken_folder(
    shape: str,
    *,
    layers: int = 2,
    heads: int = 2,
    kv_heads: int = 1,
    seed: int = 0,
    cache_dir: str | Path | None = None,
) -> Path:
    """The folder of a random model with the architecture of ``shape``, made at the first call (a second).

    layers, heads, kv_heads: its size; a head is 32 wide, the narrowest that vLLM has CPU kernels for. seed: of the
    weights. The same arguments and library versions give the same bytes. Raises ConfigError for an unknown shape and
    for sizes that make no model.
    """
    full = qwen2_config(shape)
    for name, value in (("layers", layers), ("heads", heads), ("kv_heads", kv_heads)):
        if value < 1:
            raise ConfigError(name, value, "a number in [1, inf)")
    if heads % kv_heads:
        raise ConfigError("kv_heads", kv_heads, f"a divisor of heads ({heads})")
    record = {
        "shape": shape,
        "layers": layers,
        "heads": heads,
        "kv_heads": kv_heads,
        "seed": seed,
        "versions": {package: version(package) for package in ("tokenizers", "torch", "transformers")},
    }
    digest = sha256_of_json([record, CHATML])[:12]

    def make(folder: Path) -> None:
        tokenizer = _tokenizer()
        tokenizer.save_pretrained(folder)
        _model(full, tokenizer, layers=layers, heads=heads, kv_heads=kv_heads, seed=seed).save_pretrained(folder)

    return cached_folder(f"shrunken-{shape}-{digest}", make, record, cache_dir=cache_dir)


def _model(full: Any, tokenizer: Any, *, layers: int, heads: int, kv_heads: int, seed: int) -> Any:
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # writing takes milliseconds
    end = tokenizer.convert_tokens_to_ids(END_OF_TEXT)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32 * heads,
        intermediate_size=64 * heads,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=full.max_position_embeddings,
        rms_norm_eps=full.rms_norm_eps,
        rope_parameters=full.rope_parameters,
        tie_word_embeddings=full.tie_word_embeddings,
        bos_token_id=end,
        eos_token_id=end,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end, max_new_tokens=2048)
    return model


def _tokenizer() -> Any:
    """256 bytes and three special tokens. The base models of Qwen2.5 end with <|endoftext|>, and so does this one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(t, special=True) for t in (END_OF_TEXT, TURN_BEGINS, TURN_ENDS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)
    tokenizer.chat_template = CHATML
    return tokenizer
