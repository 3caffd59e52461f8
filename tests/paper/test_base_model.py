"""The base model: deterministic, cached soundly, trained on response tokens only."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from paper_repro.models import toy_base as module
from paper_repro.models.cache import MANIFEST
from paper_repro.models.toy_base import BaseModelConfig, base_model, cache_key
from sim.language import EOS_ID, PAD_ID, VOCAB_SIZE, Difficulty, Language, encode

SMALL = BaseModelConfig(
    language=Language(difficulty=Difficulty(maximum=4)), examples=60, layers=1, width=16, heads=2, mlp_width=16
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that holds SMALL."""
    root = tmp_path_factory.mktemp("cache")
    base_model(SMALL, cache_dir=root, progress=False)
    return root


def bits(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("trained although the cache holds the model")


def test_same_config_same_bits(cache: Path, tmp_path: Path) -> None:
    torch.manual_seed(123)  # the caller's random state must not matter
    assert bits(base_model(SMALL, cache_dir=tmp_path, progress=False)) == bits(base_model(SMALL, cache_dir=cache))


def test_threads_do_not_change_the_bits_and_callers_state_is_left_alone(cache: Path, tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(2)
    try:
        folder = base_model(SMALL, cache_dir=tmp_path, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert bits(folder) == bits(base_model(SMALL, cache_dir=cache))
    assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_gives_another_model(cache: Path) -> None:
    other = dataclasses.replace(SMALL, seed=1)
    a, b = (base_model(config, cache_dir=cache, progress=False) for config in (SMALL, other))
    assert (a / "model.safetensors").read_bytes() != (b / "model.safetensors").read_bytes()


def test_a_sound_entry_is_not_made_again(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "train", refuse)
    assert base_model(SMALL, cache_dir=cache).is_dir()
    monkeypatch.setenv("TPPO_CACHE", str(cache))
    assert base_model(SMALL).parent == cache


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "extra", "manifest", "no manifest", "odd manifest"])
def test_a_damaged_entry_is_made_again(cache: Path, tmp_path: Path, damage: str) -> None:
    good = bits(base_model(SMALL, cache_dir=cache))
    folder = tmp_path / f"base-model-{cache_key(SMALL)}"
    folder.mkdir()
    for name, content in good.items():
        (folder / name).write_bytes(content)
    weights, manifest = folder / "model.safetensors", folder / MANIFEST
    if damage == "flip":
        weights.write_bytes(good[weights.name][:-1] + bytes([good[weights.name][-1] ^ 1]))
    elif damage == "truncate":
        weights.write_bytes(good[weights.name][:100])
    elif damage == "missing":
        weights.unlink()
    elif damage == "extra":
        (folder / "pytorch_model.bin").write_bytes(b"not ours")
    elif damage == "manifest":
        manifest.write_text("{")
    elif damage == "no manifest":
        manifest.unlink()
    else:
        manifest.write_text(json.dumps(["sha256"]))
    assert base_model(SMALL, cache_dir=tmp_path, progress=False) == folder
    assert bits(folder) == good
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]  # nothing left behind


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "train", interrupt)
    with pytest.raises(KeyboardInterrupt):
        base_model(SMALL, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_first_of_two_builders_wins(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finishes while this one trains: its model stays."""
    train = module.train

    def slowly(config: BaseModelConfig, *, progress: bool) -> object:
        monkeypatch.setattr(module, "train", train)
        base_model(config, cache_dir=tmp_path, progress=False)
        return train(config, progress=progress)

    monkeypatch.setattr(module, "train", slowly)
    folder = base_model(SMALL, cache_dir=tmp_path, progress=False)
    assert bits(folder) == bits(base_model(SMALL, cache_dir=cache))
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_every_field_is_in_the_key() -> None:
    changed = {
        "language": Language(),
        "error_rate": 0.3,
        "examples": 61,
        "layers": 2,
        "width": 32,
        "heads": 4,
        "mlp_width": 32,
        "max_positions": 256,
        "initial_std": 0.02,
        "tokens_per_batch": 512,
        "learning_rate": 1e-3,
        "weight_decay": 0.0,
        "seed": 1,
    }
    assert set(changed) == {field.name for field in dataclasses.fields(BaseModelConfig)}
    keys = {cache_key(SMALL), *(cache_key(dataclasses.replace(SMALL, **{k: v})) for k, v in changed.items())}  # type: ignore[arg-type]
    assert len(keys) == len(changed) + 1


def test_the_folder_is_a_hugging_face_model(cache: Path) -> None:
    folder = base_model(SMALL, cache_dir=cache)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    assert type(model).__name__ == "Qwen2ForCausalLM"
    assert model.dtype == torch.float32
    assert model.config.vocab_size == VOCAB_SIZE
    assert (model.config.pad_token_id, model.config.eos_token_id) == (PAD_ID, EOS_ID)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_labels_are_the_response_and_its_end() -> None:
    prompt, response = encode("Rab?b=0"), [*encode("a=1b=2#2"), EOS_ID]
    short = module.Example([*encode("Ra?a=0"), *encode("a=1#1"), EOS_ID], 6)
    ids_BT, labels_BT = module._padded([module.Example(prompt + response, len(prompt)), short])
    assert ids_BT[0].tolist() == prompt + response
    # Label t is the token after t: the prompt's last position already predicts the response.
    assert labels_BT[0].tolist() == [module.IGNORED] * (len(prompt) - 1) + response + [module.IGNORED]
    assert ids_BT[1, len(short.ids) :].unique().tolist() == [PAD_ID]
    assert labels_BT[1, 5:11].tolist() == [*encode("a=1#1"), EOS_ID]
    assert labels_BT[1, 11:].unique().tolist() == [module.IGNORED]


def test_batches_hold_every_example_within_the_budget() -> None:
    examples = list(module._examples(SMALL, 60))
    config = dataclasses.replace(SMALL, tokens_per_batch=128)
    batches = module._batches(config, examples)
    key = [tuple(example.ids) for example in examples]
    assert sorted(tuple(example.ids) for batch in batches for example in batch) == sorted(key)
    assert all(len(batch) * max(len(example.ids) for example in batch) <= 128 for batch in batches)


def test_the_warm_start_learns() -> None:
    """A few hundred examples teach the format: the mean log-likelihood per token is far above a uniform guess."""
    config = dataclasses.replace(SMALL, examples=600, width=32, tokens_per_batch=512)
    model = module.train(config, progress=False)
    held_back = list(module._examples(dataclasses.replace(config, seed=7), 50))
    ids_BT, labels_BT = module._padded(held_back)
    with torch.no_grad():
        logits_BTV = model(input_ids=ids_BT).logits
    loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), labels_BT.flatten(), ignore_index=module.IGNORED)
    assert loss < 0.8 * torch.log(torch.tensor(float(VOCAB_SIZE)))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("examples", 0),
        ("layers", 0),
        ("width", 97),
        ("error_rate", 1.5),
        ("learning_rate", 0.0),
        ("initial_std", float("nan")),
        ("weight_decay", -1.0),
        ("seed", -1),
    ],
)
def test_a_bad_config_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"task\.base\.{field} = "):
        BaseModelConfig(**{field: value})  # type: ignore[arg-type]


def test_too_few_positions_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_positions = 10: expected at least \d+"):
        module.train(dataclasses.replace(SMALL, max_positions=10), progress=False)
