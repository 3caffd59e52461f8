"""Twenty architectures at two layers: each is computed right, or refused with the reason, before any step."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tppo.errors import ConfigError
from tppo.models.folder import as_critic, as_policy, critic_of, export, fill, load_causal_lm, policy_of
from tppo.models.head import token_scores
from tppo.ranks.ranks import Ranks

TABLE = Path(__file__).parents[2] / "paper_repro" / "evidence" / "architectures.md"
SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Case:
    """An architecture, what its configuration needs besides, and the word that its refusal must have."""

    config: str
    more: dict[str, Any] = dataclasses.field(default_factory=dict)
    refused: str = ""


CASES = {
    "Llama": Case("LlamaConfig"),
    "Llama with dropout": Case("LlamaConfig", {"attention_dropout": 0.3}),
    "Llama with biases": Case("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "Qwen2": Case("Qwen2Config"),
    "Qwen3": Case("Qwen3Config", {"head_dim": 16}),
    "Qwen3-MoE": Case(
        "Qwen3MoeConfig",
        {
            "head_dim": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "decoder_sparse_step": 1,
        },
    ),
    "Mistral": Case("MistralConfig", {"sliding_window": None}),
    "Mistral with a window": Case("MistralConfig", {"sliding_window": 16}, "sliding_window"),
    "Phi-3": Case("Phi3Config", {"sliding_window": None}),
    "Phi-3 with a window": Case("Phi3Config", {"sliding_window": 16}, "sliding_window"),
    "Gemma 1": Case("GemmaConfig", {"head_dim": 8}),
    "Gemma 2": Case("Gemma2Config", {"head_dim": 8, "layer_types": ["full_attention"] * 2}, "final_logit_softcapping"),
    "Gemma 2 with windows": Case("Gemma2Config", {"head_dim": 8}, "layer_types"),
    "Gemma 3": Case("Gemma3TextConfig", {"head_dim": 8}, "layer_types"),
    "Granite": Case("GraniteConfig", {"logits_scaling": 8.0}, "logits_scaling"),
    "Granite, unscaled": Case("GraniteConfig", {"logits_scaling": 1.0}),
    "Cohere": Case("CohereConfig", {"logit_scale": 0.0625}, "logit_scale"),
    "Olmo2": Case("Olmo2Config"),
    "Starcoder2": Case("Starcoder2Config", {"sliding_window": None, "attention_dropout": 0.1}),
    "Starcoder2 with a window": Case("Starcoder2Config", {"sliding_window": 16}, "sliding_window"),
    "GPT-2": Case("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48}),
    "GPT-NeoX": Case("GPTNeoXConfig"),
    "Falcon": Case("FalconConfig", {"multi_query": True, "new_decoder_architecture": False, "alibi": False}, "engine"),
    "OPT": Case("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "SmolLM3": Case("SmolLM3Config", {"no_rope_layers": [1, 0], "use_sliding_window": False}),
    "StableLM": Case("StableLmConfig"),
}


def build(case: Case) -> Any:
    """A random model of an architecture, with logits that are far apart."""
    kind = getattr(transformers, case.config)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(kind(**(SIZES | case.more)), dtype=torch.float32)


def outcome(case: Case) -> str:
    """ "right", or why it is refused."""
    try:
        policy = as_policy(build(case), recompute=False)
        policy.check(longest=60, decodes=True, packed=False)
    except ConfigError as error:
        return str(error)
    return "right"


@pytest.mark.parametrize("name", CASES)
def test_computed_right_or_refused(name: str) -> None:
    case = CASES[name]
    found = outcome(case)
    if case.refused:
        assert case.refused in found, found
    else:
        assert found == "right"


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.refused])
def test_trained_as_its_own_forward_pass_says(name: str) -> None:
    """In training mode: log-probs of the loss, and their gradients, are those of the plain forward pass."""
    own, model = build(CASES[name]).eval(), build(CASES[name]).train()
    policy = as_policy(model, recompute=True)
    ids = torch.randint(64, (2, 20), generator=torch.Generator().manual_seed(1))
    hidden = policy.hidden(ids)[:, :-1].flatten(0, 1)
    ours, _ = token_scores(policy, hidden, ids[:, 1:].flatten(), temperature=1.0, chunk=7)
    theirs = own(input_ids=ids).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None]).flatten()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    ours.sum().backward()
    theirs.sum().backward()
    for (weight, p), (_, q) in zip(policy.hugging_face.named_parameters(), own.named_parameters(), strict=True):
        if q.grad is not None:
            assert p.grad is not None, weight
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-5 + 1e-3 * float(q.grad.abs().max()))


@pytest.mark.parametrize("name", [n for n, c in CASES.items() if not c.refused])
def test_a_folder_is_read_and_written_back(name: str, tmp_path: Path) -> None:
    """Through the files: policy and critic are filled, the export is read by transformers with the same logits."""
    model = build(CASES[name]).eval()
    model.save_pretrained(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    policy = policy_of(tmp_path / "in", recompute=False).to_empty(device="cpu")
    fill(policy, tmp_path / "in")
    ids = torch.randint(64, (1, 16), generator=torch.Generator().manual_seed(2))
    own = model(input_ids=ids).logits
    torch.testing.assert_close(policy.logits(policy.hidden(ids)[0]), own[0], rtol=1e-4, atol=1e-4)
    critic = critic_of(tmp_path / "in", recompute=False).to_empty(device="cpu")
    fill(critic, tmp_path / "in")
    assert not critic.values(critic.hidden(ids)[0]).any()
    torch.testing.assert_close(critic.hidden(ids), policy.hidden(ids), rtol=1e-4, atol=1e-4)
    export(policy, tmp_path / "out", Ranks())
    (tmp_path / "out" / "tokenizer.json").write_text("{}")
    torch.testing.assert_close(load_causal_lm(tmp_path / "out")(input_ids=ids).logits, own, rtol=1e-4, atol=1e-4)


def test_dropout_is_off_everywhere_also_in_training_mode() -> None:
    for name in ("Llama with dropout", "GPT-2", "OPT", "Starcoder2"):
        model = build(CASES[name])
        for module in (as_policy(model, recompute=True), as_critic(copy.deepcopy(model), recompute=True)):
            ids = torch.randint(64, (1, 12))
            torch.testing.assert_close(module.hidden(ids), module.hidden(ids), rtol=0, atol=0)


def test_the_table_says_what_the_sweep_says() -> None:
    """``python -m tests.models.test_architectures`` makes it again."""
    assert TABLE.read_text() == table()


def table() -> str:
    """One line an architecture."""
    lines = [
        "# Architectures",
        "",
        f"Random models of two layers, transformers {transformers.__version__.rpartition('.')[0]}: log-probabilities,",
        "gradients, decoding with a cache, folders read and written back.",
        "`python -m tests.models.test_architectures` makes this table.",
        "",
        "| architecture | outcome |",
        "|---|---|",
    ]
    for name, case in CASES.items():
        found = outcome(case)
        lines.append(f"| {name} | {found if found == 'right' else 'refused: ' + found.replace('|', '/')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
