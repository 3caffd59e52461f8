"""A tiny random language model whose every other word is an answer, and problems to ask it."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.helpers import SIZES, tiny_lm

ANSWERS = [f"Answer: {digit}\n" for digit in range(10)]
COLOURS = ["red", "green", "blue"]
NUMBERS = ["one", "two", "three", "four", "five", "six", "seven", "eight"]
WORDS = ["<unk>", "<end>", *ANSWERS, *COLOURS, *NUMBERS]
PROBLEMS = {
    "red green one": "6", "blue two red": "6", "six six five": "6", "eight one blue": "8",
    "seven three four": "9", "green green eight": "7",
}  # fmt: skip


def save_model(folder: Path, *, head_dim: int = 8) -> Path:
    """Model and tokenizer as a Hugging Face folder; words of the prompt beyond its 23 are unknown to it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    assert len(WORDS) == SIZES["vocab_size"]
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(folder)
    model = tiny_lm("llama", head_dim=head_dim)  # a Qwen2 folder would get Qwen2's own pre-tokenizer
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


def save_problems(path: Path) -> Path:
    """A .jsonl file of ``PROBLEMS``, with columns question and answer."""
    rows = [{"question": question, "answer": answer} for question, answer in PROBLEMS.items()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
