"""Broken, foreign and hostile model folders: one line that names the file or the field, in training and evaluation."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from paper_repro.models.known import model_folder, model_shape
from tests.models.test_architectures import CASES as ARCHITECTURES
from tests.models.test_architectures import build
from tests.models.test_folder import WORDS, copy, save_tokenizer
from tests.support.helpers import tiny_lm
from tppo.data.chat import ChatTokenizer
from tppo.errors import ConfigError
from tppo.evaluation.model import fingerprint
from tppo.models.contents import stored_weights
from tppo.models.folder import critic_of, export, fill, load_causal_lm, load_policy, policy_of
from tppo.models.place import place
from tppo.ranks.ranks import Ranks

CPU = torch.device("cpu")
WEIGHTS, DOWN = "model.safetensors", "model.layers.1.mlp.down_proj.weight"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of 63 words."""
    folder = tmp_path_factory.mktemp("model")
    tiny_lm("llama", vocab=len(WORDS)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def for_training(folder: Path) -> None:
    """What training reads of a folder, up to its export."""
    folder = model_folder(str(folder))
    ChatTokenizer(folder)
    for model in (policy_of(folder, recompute=False), critic_of(folder, recompute=False)):
        place(model, lambda m: fill(m, folder), CPU, Ranks())
        model.check(longest=60, decodes=False, packed=False)


def for_evaluation(folder: Path) -> None:
    """What an evaluation reads of it."""
    folder = model_folder(str(folder))
    fingerprint(folder)
    ChatTokenizer(folder)
    load_policy(folder, dtype=torch.float32, device=CPU, longest=60)


def data(name: str, content: bytes | str) -> Change:
    return lambda d: (d / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def fields(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


def weights(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda d: save_file(change(load_file(d / WEIGHTS)), d / WEIGHTS, metadata={"format": "pt"})


def one_number(value: float, name: str = DOWN) -> Change:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name].view(-1)[3] = value
        return tensors

    return weights(change)


def as_type(dtype: torch.dtype) -> Change:
    return weights(lambda t: t | {DOWN: t[DOWN].to(dtype)})


def sharded(index: Callable[[dict[str, str]], Any]) -> Change:
    """Two files and an index of them."""

    def change(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        names = {name: f"{'ab'[i % 2]}.safetensors" for i, name in enumerate(sorted(tensors))}
        for file in set(names.values()):
            save_file({n: t for n, t in tensors.items() if names[n] == file}, folder / file, metadata={"format": "pt"})
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index(names)}))

    return change


def instead(name: str, make: Callable[[Path], Any]) -> Change:
    """Something else by the name of a file."""

    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def header(content: bytes) -> Change:
    return data(WEIGHTS, struct.pack("<Q", len(content)) + content)


def vocabulary(words: dict[str, int]) -> Change:
    return fields("tokenizer.json", model={"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}, added_tokens=[])


CONFIG, GENERATION, TOKENIZER = "config.json", "generation_config.json", "tokenizer_config.json"
CASES: dict[str, tuple[Change, str]] = {
    "cut off": (lambda d: os.truncate(d / WEIGHTS, 5000), r"safetensors'.* weights that safetensors reads.*download"),
    "empty": (data(WEIGHTS, b""), "header too small"),
    "garbage": (data(WEIGHTS, bytes(range(256)) * 9), "header too large"),
    "a pointer": (data(WEIGHTS, POINTER), "not a git-LFS pointer; git lfs pull"),
    "no JSON in the header": (header(b"x" * 10), "weights that safetensors reads"),
    "offsets backwards": (header(b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}'), "safetensors reads"),
    "weights are a folder": (instead(WEIGHTS, Path.mkdir), "a regular file"),
    "weights are a pipe": (instead(WEIGHTS, os.mkfifo), "a regular file"),
    "weights are a dangling link": (instead(WEIGHTS, lambda p: p.symlink_to("/nowhere")), "a regular file"),
    "a weight is missing": (weights(lambda t: {k: v for k, v in t.items() if k != DOWN}), "the weights of its config"),
    "another shape": (weights(lambda t: t | {DOWN: t[DOWN].T.contiguous()}), "the weights of its config.json"),
    "bytes": (as_type(torch.int8), f"floating point numbers of 16 bits or more; {DOWN} has I8"),
    "eight bits": (as_type(torch.float8_e4m3fn), "has F8_E4M3; quantised"),
    "complex": (as_type(torch.complex64), "has C64"),
    "not a number": (one_number(float("nan")), f"finite weights; {DOWN} has nan"),
    "infinite": (one_number(float("-inf")), "finite weights"),
    "infinite embedding": (one_number(float("inf"), "model.embed_tokens.weight"), "finite weights"),
    "overflows": (weights(lambda t: t | {DOWN: torch.full_like(t[DOWN], 3e38)}), "finite logits"),
    "beyond single precision": (weights(lambda t: t | {DOWN: t[DOWN].double() * 1e300}), "finite weights"),
    "twice": (lambda d: (d / "x.safetensors").write_bytes((d / WEIGHTS).read_bytes()), "each weight in one file"),
    "another file is garbage": (data("z.safetensors", b"z"), "z.safetensors'.* weights that safetensors reads"),
    "tied, with another head": (
        weights(lambda t: t | {"lm_head.weight": 2 * t["model.embed_tokens.weight"]}), "tie_word_embeddings"
    ),
    "index: names that no file has": (sharded(lambda m: {k + "x": f for k, f in m.items()}), "lacks"),
    "index: files exchanged": (sharded(lambda m: dict(zip(m, list(m.values())[::-1], strict=True))), "lacks"),
    "index: a list": (sharded(list), "an index of weights"),
    "index: numbers": (sharded(lambda m: dict.fromkeys(m, 3)), "the name of a .safetensors file"),
    "index: out of the folder": (sharded(lambda m: dict.fromkeys(m, "../model.safetensors")), "the name of a"),
    "index: NUL": (sharded(lambda m: dict.fromkeys(m, "a\0.safetensors")), "the name of a"),
    "index: a long name": (sharded(lambda m: dict.fromkeys(m, "a" * 5000 + ".safetensors")), "missing: aaa"),
    "index: binary": (data(f"{WEIGHTS}.index.json", bytes(range(128, 255))), "it is not UTF-8"),
    "config: a list": (data(CONFIG, "[]"), "a JSON object; it holds a list"),
    "config: deep": (data(CONFIG, "[" * 100_000), "a JSON object"),
    "config: a pointer": (data(CONFIG, POINTER), "git lfs pull"),
    "config: a pipe": (instead(CONFIG, os.mkfifo), "a regular file"),
    "config: a device": (instead(CONFIG, lambda p: p.symlink_to("/dev/zero")), "a regular file"),
    "no heads": (fields(CONFIG, num_attention_heads=0), r"model\.num_attention_heads = 0: expected a whole number in"),
    "negative heads": (fields(CONFIG, num_attention_heads=-4), r"model\.num_attention_heads"),
    "heads that do not divide": (fields(CONFIG, num_key_value_heads=3), r"num_key_value_heads = 3: .*a divisor of"),
    "width in words": (fields(CONFIG, hidden_size="32"), r"model\.hidden_size = '32'"),
    "width with a point": (fields(CONFIG, hidden_size=32.0), r"model\.hidden_size"),
    "width true": (fields(CONFIG, hidden_size=True), r"model\.hidden_size"),
    "width null": (fields(CONFIG, hidden_size=None), "hidden_size"),
    "width that no machine has": (fields(CONFIG, hidden_size=2**20), "the weights of its config.json"),
    "layers that never end": (fields(CONFIG, num_hidden_layers=10**9), "no more layers than the 20 weights"),
    "one layer more": (fields(CONFIG, num_hidden_layers=3), "the weights of its config.json"),
    "words without end": (fields(CONFIG, vocab_size=10**9), "the weights of its config.json"),
    "a small vocabulary": (fields(CONFIG, vocab_size=9), r"model\.vocab_size = 9: expected more than 62"),
    "an unknown kind": (fields(CONFIG, model_type="nosuch"), "transformers knows"),
    "a kind in numbers": (fields(CONFIG, model_type=5), r"model\.model_type = 5"),
    "no language model": (fields(CONFIG, model_type="clip"), "transformers knows"),
    "an activation of its own": (fields(CONFIG, hidden_act="nosuch"), "transformers knows"),
    "an attention of its own": (fields(CONFIG, attn_implementation="evil/kernel"), "attn_implementation"),
    "epsilon in words": (fields(CONFIG, rms_norm_eps="x"), "rms_norm_eps"),
    "rotation of a list": (fields(CONFIG, rope_parameters=[1]), "rope_parameters"),
    "a method's name": (fields(CONFIG, to_dict=5), "transformers knows"),
    "what cannot be written": (fields(CONFIG, output_attentions=True), "transformers writes again"),
    "quantised": (fields(CONFIG, quantization_config={"quant_method": "gptq"}), "quantization_config = 'gptq'"),
    "quantised, in words": (fields(CONFIG, quantization_config="x"), "quantization_config"),
    "code of its own": (fields(CONFIG, model_type="m", auto_map={"AutoConfig": "m.C"}), "transformers knows"),
    "generation: a list": (data(GENERATION, "[1]"), "generation_config.json'.* a JSON object"),
    "generation: binary": (data(GENERATION, bytes(range(128, 255))), "it is not UTF-8"),
    "generation: tokens in words": (fields(GENERATION, max_new_tokens="many"), "a generation config that"),
    "generation: an end in words": (fields(GENERATION, eos_token_id="x"), r"model\.eos_token_id = 'x'"),
    "generation: an end far away": (fields(GENERATION, eos_token_id=10**30), r"model\.eos_token_id"),
    "tokenizer config: a list": (data(TOKENIZER, "[]"), "tokenizer_config.json'.* a JSON object"),
    "tokenizer config: an end in numbers": (fields(TOKENIZER, eos_token=5), "a tokenizer that transformers loads"),
    "tokenizer config: a new end": (fields(TOKENIZER, eos_token="<new>"), "more than 63, the largest token id"),
    "tokenizer config: a length in words": (fields(TOKENIZER, model_max_length="x"), "transformers loads"),
    "tokenizer config: code": (
        fields(TOKENIZER, tokenizer_class="M", auto_map={"AutoTokenizer": ["m.T", None]}), "transformers loads"
    ),
    "tokenizer: a list": (data("tokenizer.json", "[]"), "tokenizer.json'.* a tokenizer that its library reads"),
    "tokenizer: binary": (data("tokenizer.json", bytes(range(128, 255))), "UTF-8"),
    "tokenizer: a pipe": (instead("tokenizer.json", os.mkfifo), "a regular file"),
    "tokenizer: ids far away": (vocabulary({"<end>": 4 * 10**9, "<unk>": 0}), "more than 4000000000"),
    "tokenizer: negative ids": (vocabulary({"<end>": -1, "<unk>": 0}), "a tokenizer that its library reads"),
    "tokenizer: a panic": (
        fields("tokenizer.json", pre_tokenizer={
            "type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False,
        }), "a tokenizer that its library reads",
    ),
    "tokenizer: a flood": (
        fields("tokenizer.json", normalizer={
            "type": "Sequence",
            "normalizers": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "x" * 1000}] * 4,
        }), "it ends its process|more than",
    ),
    "template: no text": (data("chat_template.jinja", bytes(range(128, 255))), "it is not UTF-8"),
    "template: a pipe": (instead("chat_template.jinja", os.mkfifo), "a regular file"),
    "template: none": (lambda d: (d / "chat_template.jinja").unlink(), "a chat template in .*--task.no-chat"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_line_that_names_the_file_or_the_field(name: str, sound: Path, tmp_path: Path) -> None:
    change, expected = CASES[name]
    folder = copy(sound, tmp_path / "m")
    change(folder)
    said = []
    for read in (for_training, for_evaluation):
        with pytest.raises(ConfigError, match=expected) as caught:
            read(folder)
        said.append(str(caught.value))
        assert "\n" not in said[-1]
        assert len(said[-1]) < 900
    assert said[0] == said[1]


@pytest.mark.parametrize("name", [n for n, (c, _) in CASES.items() if n.startswith(("config", "no heads", "quant"))])
def test_the_plan_reads_the_same_config(name: str, sound: Path, tmp_path: Path) -> None:
    change, expected = CASES[name]
    folder = copy(sound, tmp_path / "m")
    change(folder)
    with pytest.raises(ConfigError, match=expected):
        model_shape(str(folder))


def test_what_is_odd_and_sound_is_taken(sound: Path, tmp_path: Path) -> None:
    """Shards, another precision, a temperature without sampling, code that is not run, dropout in whole numbers."""
    folder = copy(sound, tmp_path / "m")
    sharded(lambda m: m)(folder)
    fields(CONFIG, attention_dropout=1, auto_map={"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.C"})(folder)
    fields(GENERATION, temperature=0.6, top_p=0.9)(folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for_training(folder)
    for_evaluation(folder)
    export(load_policy(folder, dtype=torch.float32, device=CPU, longest=60), tmp_path / "out", Ranks())
    assert json.loads((tmp_path / "out" / GENERATION).read_text())["temperature"] == 0.6
    assert not (tmp_path / "ran").exists()
    half = copy(sound, tmp_path / "half")
    weights(lambda t: {name: tensor.bfloat16() for name, tensor in t.items()})(half)
    for_training(half)
    assert {stored.dtype for stored in stored_weights(half).values()} == {"BF16"}


def test_an_evaluation_computes_in_the_precision_it_is_asked_for(sound: Path) -> None:
    """The same numbers as by transformers' own loader."""
    ids = torch.arange(12)[None]
    for dtype in (torch.float32, torch.bfloat16):
        policy, own = load_policy(sound, dtype=dtype, device=CPU, longest=60), load_causal_lm(sound, dtype).eval()
        assert {p.dtype for p in policy.parameters()} == {dtype}
        assert torch.equal(policy.logits(policy.hidden(ids)[0]), own(input_ids=ids).logits[0])


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("file", "a file, a pipe or a device"), ("pipe", "a file, a pipe"), ("link", "it is a link to nothing"),
        ("long", "File name too long"), ("user", "the name of a folder"), ("nul", "an existing folder"),
    ],
)  # fmt: skip
def test_a_model_that_is_no_folder(kind: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "m"
    {"file": path.touch, "pipe": lambda: os.mkfifo(path), "link": lambda: path.symlink_to("/nowhere")}.get(kind, str)()
    name = {"long": str(tmp_path / ("m" * 300)), "user": "~nobody-of-this-name/x", "nul": "a\0/b/c"}.get(
        kind, str(path)
    )
    with pytest.raises(ConfigError, match=expected):
        model_folder(name)
    with pytest.raises(ConfigError):
        model_shape(name)


def test_an_evaluation_refuses_what_it_would_compute_wrongly(tmp_path: Path) -> None:
    """A scale of the logits that the embedded engine would leave out, and a window that its cache does not have."""
    for name, expected in (("Granite", "logits_scaling = 8.0"), ("Mistral with a window", "sliding_window = 16")):
        build(ARCHITECTURES[name]).save_pretrained(tmp_path / name)
        with pytest.raises(ConfigError, match=expected):
            load_policy(tmp_path / name, dtype=torch.float32, device=CPU, longest=60)
