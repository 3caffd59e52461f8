"""Recipes have one name each; those of Qwen2.5 are valid, offline, true to their sources and of the right size."""

from __future__ import annotations

import importlib
import subprocess
import sys
import tomllib
import typing
from pathlib import Path

import pytest
import torch
from transformers import Qwen2ForCausalLM

from paper_repro.models.known import model_folder
from paper_repro.models.shapes import POSITIONS, qwen2_config
from paper_repro.models.shrunken import shrunken_folder
from paper_repro.recipes import qwen
from paper_repro.recipes.recipe import recipes_of
from paper_repro.recipes.registry import RECIPES
from paper_repro.tasks.pretrained import MathDataTask
from sim.clock.hardware import MODELS
from tppo.algorithms import TPPO
from tppo.cli import main
from tppo.config.recipes import load_recipe
from tppo.config.run import validate
from tppo.config.stored import as_dict
from tppo.data.chat import chat_text, end_tokens, load_tokenizer
from tppo.errors import ConfigError
from tppo.models.contents import context_length
from tppo.models.folder import load_causal_lm
from tppo.ranges import Range, fields_of


def test_a_recipe_has_one_name() -> None:
    """Its own, its configuration's, its function's but for the punctuation, and that of its entry point."""
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        entries = tomllib.load(file)["project"]["entry-points"]["tppo.recipes"]
    assert set(entries) == set(RECIPES)
    for name, where in entries.items():
        module, _, function = where.partition(":")
        assert getattr(importlib.import_module(module), function) is RECIPES[name]
        assert function == name.replace(".", "").replace("-", "_")
        assert RECIPES[name].name == RECIPES[name]().recipe == name
        assert (RECIPES[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", sorted(recipes_of(qwen)))
def test_every_size_is_valid_and_installed(name: str) -> None:
    config = load_recipe(name)
    validate(config)
    assert config.recipe == name
    task = config.task
    assert isinstance(task, MathDataTask)
    shape = task.model.removeprefix("Qwen/")
    assert task.max_prompt_tokens + config.rollout.max_response_tokens <= POSITIONS[shape]
    assert config.vllm.max_model_tokens == task.max_prompt_tokens + config.rollout.max_response_tokens
    assert MODELS[shape].kv_heads % config.vllm.tensor_parallel == 0
    assert config.rollout.slots == 16 * config.policy.mini_batch  # 16 updates a step, at every size
    # A whole prompt and response fit into one micro-batch.
    assert config.compute.micro_batch_tokens >= config.vllm.max_model_tokens


@pytest.mark.parametrize("size", ["32b", "7b", "0.5b"])
def test_the_rival_differs_in_the_algorithm_alone(size: str) -> None:
    one, two = as_dict(RECIPES[f"qwen2.5-{size}-tppo"]()), as_dict(RECIPES[f"qwen2.5-{size}-ppo"]())
    assert {k for k in one if one[k] != two[k]} == {"recipe", "algorithm"}
    a, b = one["algorithm"], two["algorithm"]
    kept = set(a) & set(b) - {"class", "critic"}
    assert len(kept) > 10
    assert all(a[name] == b[name] for name in kept)  # what PPO has too, it has with T-PPO's number
    assert set(b) <= set(a)
    assert set(a) - set(b) == {"window", "ignore_last", "boundary"}
    assert b["critic"].items() <= a["critic"].items()
    assert set(a["critic"]) - set(b["critic"]) == {"responses", "old_values"}


def test_the_paper_s_size_has_the_paper_s_numbers() -> None:
    """Those that its abstract, VAPO or the authors' port confirm; see the table in paper_repro/recipes/qwen.py."""
    c = RECIPES["qwen2.5-32b-tppo"]()
    a, r, p = c.algorithm, c.rollout, c.policy
    assert isinstance(a, TPPO)
    assert (a.window, r.max_response_tokens, r.slots, r.group_size) == (8192, 24576, 8192, 16)
    assert (p.lr, a.critic.lr, p.mini_batch, p.weight_decay) == (8e-7, 2e-6, 512, 0.1)
    e = c.evaluation
    assert (e.problems, e.samples, e.temperature, e.top_p) == (30, 32, 1.0, 0.7)
    assert isinstance(c.task, MathDataTask)
    assert c.task.train.hub == "BytedTsinghua-SIA/DAPO-Math-17k"
    assert (c.vllm.tensor_parallel, c.vllm.sleep, c.vllm.eager) == (8, True, False)


def test_show_downloads_nothing() -> None:
    """Without any network a recipe is shown, and the numbers of every size have ranges."""
    code = (
        "import socket, sys\n"
        "def refuse(*a, **k): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "from tppo.cli import main\n"
        "sys.exit(main(['show', 'qwen2.5-32b-tppo']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert '"model": "Qwen/Qwen2.5-32B"' in done.stdout
    for name, hint, value in fields_of(RECIPES["qwen2.5-0.5b-tppo"]().task):
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert any(isinstance(a, Range) for a in typing.get_args(hint)), name


def test_too_little_room_in_the_engine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "qwen2.5-7b-tppo", "--vllm.max-model-tokens", "9000"]) == 2
    said = capsys.readouterr().err
    assert "vllm.max_model_tokens = 9000: expected at least 14336: task.max_prompt_tokens and rollout" in said


@pytest.mark.parametrize("name", sorted(POSITIONS))
def test_shapes_have_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = Qwen2ForCausalLM(qwen2_config(name))
    assert sum(p.numel() for p in model.parameters()) == MODELS[name].parameters
    assert model.config.rope_parameters["rope_theta"] == 1e6


def test_an_unknown_shape_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"shape = 'Qwen2\.5-3B': expected one of Qwen2\.5-0\.5B"):
        qwen2_config("Qwen2.5-3B")


def test_a_shrunken_model_is_a_whole_model(tmp_path: Path) -> None:
    """Any text goes through its tokenizer unchanged, and the named architecture stays what it is but for the size."""
    folder = model_folder("shrunken:Qwen2.5-32B", cache_dir=tmp_path)
    model, tokenizer, real = load_causal_lm(folder), load_tokenizer(folder), qwen2_config("Qwen2.5-32B")
    text = chat_text(tokenizer, [("user", "Zürich: \u221a2\n<b> 日本")])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert text.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(ids, skip_special_tokens=True).count("<|") == 0
    assert end_tokens(folder, tokenizer) == {tokenizer.convert_tokens_to_ids("<|endoftext|>")}
    assert context_length(folder) == real.max_position_embeddings
    assert model.config.tie_word_embeddings == real.tie_word_embeddings
    assert model.config.rope_parameters == real.rope_parameters
    assert model.config.hidden_size // model.config.num_attention_heads == 32
    assert all(torch.isfinite(p).all() for p in model.parameters())
    logits = model(torch.tensor([ids])).logits
    assert logits.shape == (1, len(ids), len(tokenizer))
    tied = load_causal_lm(shrunken_folder("Qwen2.5-0.5B", cache_dir=tmp_path))
    assert tied.config.tie_word_embeddings


def test_shrunken_models_are_repeatable(tmp_path: Path) -> None:
    one = shrunken_folder("Qwen2.5-7B", cache_dir=tmp_path / "a")
    two = shrunken_folder("Qwen2.5-7B", cache_dir=tmp_path / "b")
    assert one != two
    assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    other = shrunken_folder("Qwen2.5-7B", seed=1, cache_dir=tmp_path / "a")
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_shrunken_sizes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"kv_heads = 2: expected a divisor of heads \(3\)"):
        shrunken_folder("Qwen2.5-7B", heads=3, kv_heads=2, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match="layers = 0"):
        shrunken_folder("Qwen2.5-7B", layers=0, cache_dir=tmp_path)
    with pytest.raises(ConfigError, match=r"model = 'Qwen9': expected one of"):
        model_folder("shrunken:Qwen9", cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())
