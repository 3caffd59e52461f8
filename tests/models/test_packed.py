"""Packed rows against padded ones: the same hidden states and gradients, without padding and without a mask."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.support.helpers import Largest, tiny_lm
from tppo.errors import ConfigError
from tppo.models.packed import NAME
from tppo.models.transformer import TransformerCritic, TransformerPolicy

KINDS = [("qwen2", True), ("qwen3", False), ("llama", False)]
LENGTHS = [[5, 5, 5, 3, 1, 7, 7, 1], [9], [1], [1, 1], [2, 30]]


def sequences(lengths: list[int]) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(sum(lengths))
    return [torch.randint(0, 23, (n,), generator=g) for n in lengths]


def padded(model: TransformerPolicy | TransformerCritic, ids: list[torch.Tensor]) -> torch.Tensor:
    """Hidden states of the real tokens of a padded rectangle [T, D]."""
    hidden = model.hidden(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True))
    return torch.cat([h[: len(i)] for h, i in zip(hidden, ids, strict=True)])


def gradients(model: torch.nn.Module, hidden_TD: torch.Tensor) -> list[torch.Tensor]:
    weight = torch.randn(hidden_TD.shape, generator=torch.Generator().manual_seed(7), dtype=hidden_TD.dtype)
    loss = (weight * hidden_TD).sum()
    named = [p for n, p in model.named_parameters() if "head" not in n]
    return list(torch.autograd.grad(loss, named))


def assert_same(model: Any, packed_TD: torch.Tensor, padded_TD: torch.Tensor) -> None:
    assert torch.allclose(packed_TD, padded_TD, rtol=0, atol=1e-10)
    for one, two in zip(gradients(model, packed_TD), gradients(model, padded_TD), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_equals_the_padded_rectangle(kind: str, tied: bool, lengths: list[int]) -> None:
    ids = sequences(lengths)
    policy = TransformerPolicy(tiny_lm(kind, tied=tied, dtype=torch.float64))
    assert_same(policy, policy.packed_hidden(torch.cat(ids), lengths), padded(policy, ids))
    critic = TransformerCritic(tiny_lm(kind, seed=1, dtype=torch.float64).base_model)
    assert_same(critic, critic.packed_hidden(torch.cat(ids), torch.tensor(lengths)), padded(critic, ids))


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("how", ["layers", "whole"])
def test_under_activation_checkpoints(kind: str, tied: bool, how: str) -> None:
    """Layers are run again in the backward pass, after ordinary calls of the same model have come in between."""
    lengths = [4, 6, 6, 11]
    ids = sequences(lengths)
    plain = TransformerPolicy(tiny_lm(kind, tied=tied, dtype=torch.float64))
    policy = copy.deepcopy(plain).train()
    calls: list[int] = []
    policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    if how == "layers":
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        hidden = policy.packed_hidden(torch.cat(ids), lengths)
    else:
        hidden = checkpoint(policy.packed_hidden, torch.cat(ids), lengths, use_reentrant=False)
    with torch.no_grad():
        policy.hidden(torch.tensor([[1, 2, 3]]))
    before = len(calls)
    got = gradients(policy, hidden)
    assert len(calls) == before + 1  # it was run again
    wanted = padded(plain, ids)
    assert torch.allclose(hidden, wanted, rtol=0, atol=1e-10)
    for one, two in zip(got, gradients(plain, wanted), strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-10)


@torch.no_grad()
def test_sequences_do_not_see_each_other() -> None:
    policy, ids = TransformerPolicy(tiny_lm()), torch.cat(sequences([4, 4, 6]))
    before = policy.packed_hidden(ids, [4, 4, 6])
    ids[4:8] = (ids[4:8] + 1) % 23
    after = policy.packed_hidden(ids, [4, 4, 6])
    same = (before == after).all(-1)
    assert same.tolist() == [True] * 4 + [False] * 4 + [True] * 6


@torch.no_grad()
def test_ordinary_calls_are_what_they_were() -> None:
    """Bit for bit, masks included; and the stored configuration does not know of packing."""
    model = tiny_lm("qwen2")
    assert model.config._attn_implementation == "sdpa"
    ids, mask = torch.randint(0, 23, (3, 9)), torch.ones(3, 9, dtype=torch.int64)
    mask[0, :4] = mask[1, :2] = 0  # left padding, as in generation
    before = model(ids).logits, model(ids, attention_mask=mask).logits, model.config.to_dict()
    policy = TransformerPolicy(model)
    policy.packed_hidden(ids.flatten(), [9, 9, 9])
    assert torch.equal(model(ids).logits, before[0])
    assert torch.equal(model(ids, attention_mask=mask).logits, before[1])
    assert not torch.equal(before[0], before[1])  # the mask does something
    assert model.config.to_dict() == before[2]
    assert NAME not in str(model.config.to_json_string())


@pytest.mark.parametrize("what", ["packed", "padded"])
def test_no_mask_of_all_positions(what: str) -> None:
    """T x T numbers at 24k tokens are 576 MB as booleans, for every call."""
    lengths = [300, 301]
    policy = TransformerPolicy(tiny_lm(vocab=23))
    ids = sequences(lengths)
    with Largest() as largest:
        if what == "packed":
            policy.packed_hidden(torch.cat(ids), lengths).sum().backward()
        else:
            policy.hidden(torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)).sum().backward()
    assert largest.numel <= 2 * 301 * 48 < 300 * 300  # the inside of the feed-forward layer


@pytest.mark.parametrize("lengths", [[], [3, 4], [8, 0], [9, -1], [4, 5]])
def test_lengths_that_do_not_fit(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="do not cut 8 tokens"):
        TransformerPolicy(tiny_lm()).packed_hidden(torch.arange(8), lengths)


def test_other_attention_is_left_alone_and_cannot_pack() -> None:
    model = tiny_lm()
    model.set_attn_implementation("eager")
    policy = TransformerPolicy(model)
    assert model.config._attn_implementation == "eager"
    assert policy.hidden(torch.tensor([[1, 2]])).shape == (1, 2, 32)
    with pytest.raises(ConfigError, match="sdpa"):
        policy.packed_hidden(torch.tensor([1, 2]), [2])
