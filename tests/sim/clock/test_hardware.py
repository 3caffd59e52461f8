"""Parameter counts and memory."""

from __future__ import annotations

from typing import Any

import pytest

from sim.clock.hardware import HARDWARE, MODELS, Cluster, Efficiency, Hardware, ModelProfile

PUBLISHED = {  # billions, as printed on the model cards
    "Qwen2.5-0.5B": 0.49, "Qwen2.5-1.5B": 1.54, "Qwen2.5-7B": 7.61, "Qwen2.5-14B": 14.7, "Qwen2.5-32B": 32.5,
    "SmolLM2-135M": 0.135,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name: str) -> None:
    assert MODELS[name].parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_real_architecture(name: str) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    m = MODELS[name]
    sizes: dict[str, Any] = {
        "vocab_size": m.vocab, "hidden_size": m.hidden, "intermediate_size": m.intermediate,
        "num_hidden_layers": m.layers, "num_attention_heads": m.heads, "num_key_value_heads": m.kv_heads,
        "tie_word_embeddings": m.tied,
    }  # fmt: skip
    with torch.device("meta"):
        model = Qwen2ForCausalLM(Qwen2Config(**sizes)) if m.qkv_bias else LlamaForCausalLM(LlamaConfig(**sizes))
    model.tie_weights()
    assert m.parameters == sum(p.numel() for p in model.parameters())


def test_keys_and_values_of_32b() -> None:
    """64 layers x 8 heads x 128 x (key and value) x 2 bytes = 256 KiB a token."""
    cluster = Cluster(MODELS["Qwen2.5-32B"], HARDWARE["H800"], gpus=64, tensor_parallel=8)
    assert cluster.model.kv_bytes_per_token == 256 * 1024
    # (8 x 80 GB x 0.85 - 65.53 GB) / 262,144 B
    assert cluster.kv_tokens == int((544e9 - 2 * 32_763_876_352) // 262_144)
    assert cluster.replicas == 8


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Cluster(MODELS["Qwen2.5-32B"], HARDWARE["H100"], 8, 3), "multiple of tensor_parallel"),
        (lambda: Cluster(MODELS["Qwen2.5-32B"], HARDWARE["H800"], 1, 1).with_efficiency(kv_memory=0.5), "raise it"),
        (lambda: Hardware("x", 1e12, -1.0, 1e9, 1e9), r"Hardware\.bandwidth"),
        (lambda: Efficiency(bandwidth=1.5), r"Efficiency\.bandwidth"),
        (lambda: Efficiency(step_s=float("nan")), r"Efficiency\.step_s"),
        (lambda: ModelProfile("x", 2, 64, 3, 3, 128, 100, tied=True), "divides hidden"),
    ],
)
def test_nonsense_is_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
