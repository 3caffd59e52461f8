"""What is computed for whole sequences: right numbers, nothing for tokens that train nothing, no trace of padding."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.helpers import mixed_responses, tiny_lm
from tppo.models.call import Call
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.types import Batch

KINDS = [("qwen2", True), ("qwen3", False), ("llama", False)]


def batch_and_need(seed: int = 0) -> tuple[Batch, torch.Tensor]:
    batch = Batch.of(mixed_responses(seed))
    g = torch.Generator().manual_seed(seed)
    return batch, torch.rand(len(batch.tokens_N), generator=g) < 0.6


@pytest.mark.parametrize(("kind", "tied"), KINDS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_equal_one_row_at_a_time(kind: str, tied: bool, temperature: float) -> None:
    model = tiny_lm(kind, tied=tied, dtype=torch.float64)
    batch, need = batch_and_need()
    call = Call(Ranks(), temperature, micro_batch_tokens=40, logit_chunk_tokens=5)
    got, entropy = call.logprobs(TransformerPolicy(model), batch, need)
    for i, ids in enumerate(batch.sequences):
        first, end, prompt = int(batch.offsets[i]), int(batch.offsets[i + 1]), int(batch.prompt_lengths_S[i])
        with torch.no_grad():
            table = (model(ids[None]).logits[0] / temperature).log_softmax(-1)
        for n in range(first, end):
            row = table[prompt - 1 + n - first]
            wanted = (row[batch.tokens_N[n]], -(row.exp() * row).sum()) if need[n] else (0.0, 0.0)
            assert got[n] == pytest.approx(float(wanted[0]), abs=1e-10)
            assert entropy[n] == pytest.approx(float(wanted[1]), abs=1e-10)


def test_values_and_the_value_behind_the_last_token() -> None:
    torch.manual_seed(0)
    critic = TransformerCritic(tiny_lm(dtype=torch.float64).base_model)
    torch.nn.init.normal_(critic.head.weight)
    batch, need = batch_and_need(1)
    wants = ~batch.finished_S
    values, cut = Call(Ranks(), micro_batch_tokens=33).values(critic, batch, need, wants)
    for i, ids in enumerate(batch.sequences):
        first, prompt, length = int(batch.offsets[i]), int(batch.prompt_lengths_S[i]), int(batch.lengths_S[i])
        with torch.no_grad():
            all_values = critic.values(critic.hidden(ids[None]))[0]
        for t in range(length):
            wanted = float(all_values[prompt - 1 + t]) if need[first + t] else 0.0
            assert values[first + t] == pytest.approx(wanted, abs=1e-10)
        assert cut[i] == pytest.approx(float(all_values[-1]) if wants[i] else 0.0, abs=1e-10)


def test_a_new_critic_is_zero_everywhere() -> None:
    batch, need = batch_and_need()
    critic = TransformerCritic(tiny_lm().base_model)
    values, cut = Call(Ranks(), micro_batch_tokens=64).values(critic, batch, need, ~batch.finished_S)
    assert not values.any()
    assert not cut.any()


class RowsOfLogits(TorchDispatchMode):
    """How many rows of logits each call normalises."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._log_softmax.default:
            self.seen.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def test_the_output_layer_sees_needed_tokens_only() -> None:
    """The promise 'no logits for tokens that train nothing', counted."""
    batch, need = batch_and_need()
    with RowsOfLogits() as rows:
        Call(Ranks(), micro_batch_tokens=64, logit_chunk_tokens=4).logprobs(TransformerPolicy(tiny_lm()), batch, need)
    assert sum(rows.seen) == int(need.sum())
    assert max(rows.seen) == 4


def test_rows_without_need_are_skipped_and_tails_are_cut() -> None:
    batch, _ = batch_and_need()
    need = torch.zeros(len(batch.tokens_N), dtype=torch.bool)
    need[batch.offsets[2] + 1] = True
    [micro] = Call(Ranks(), micro_batch_tokens=1000).micro_batches(batch, need, range(batch.num_responses))
    assert micro.rows.tolist() == [2]
    assert micro.ids_BT.shape == (1, int(batch.prompt_lengths_S[2]) + 1)


@pytest.mark.parametrize("max_tokens", [1, 30, 77, 10_000])
def test_every_needed_token_once_within_the_budget(max_tokens: int) -> None:
    batch, need = batch_and_need(3)
    found = []
    call = Call(Ranks(), micro_batch_tokens=max_tokens)
    for micro in call.micro_batches(batch, need, range(batch.num_responses)):
        assert micro.ids_BT.numel() <= max_tokens or len(micro.rows) == 1
        assert batch.row_N[micro.index_X].unique(sorted=True).tolist() == sorted(micro.rows.tolist())
        found += micro.index_X.tolist()
    assert sorted(found) == need.nonzero().squeeze(-1).tolist()


def test_chunks_and_micro_batches_do_not_change_the_gradient() -> None:
    batch, need = batch_and_need()
    gradients = []
    for max_tokens, chunk in [(10_000, 10_000), (25, 3)]:
        policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
        call = Call(Ranks(), 0.9, micro_batch_tokens=max_tokens, logit_chunk_tokens=chunk)
        for micro in call.micro_batches(batch, need, range(batch.num_responses)):
            logprobs, entropy = call.scores(policy, micro, batch.tokens_N[micro.index_X])
            (logprobs.square().sum() + entropy.sum()).backward()
        gradients.append([p.grad for p in policy.parameters()])
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-10, atol=1e-12)
