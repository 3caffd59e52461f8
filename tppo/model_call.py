"""The one file that calls policy and critic on whole sequences. Padding lives and dies here.

Callers say which tokens they need; rows without any are skipped, rows are cut behind their last needed token, and the
output layer is applied to needed positions only, a chunk at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tppo.head import token_scores as token_scores
from tppo.models.base import CriticModel, PolicyModel
from tppo.types import TokenBatch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """rows: responses, int64 [B]. index_X: flat token indices in the batch, in row order. ids_BT: right-padded input.
    at_X: position of each needed hidden state in ids_BT flattened.
    """

    rows: torch.Tensor
    index_X: torch.Tensor
    ids_BT: torch.Tensor
    at_X: torch.Tensor


def micro_batches(
    batch: TokenBatch,
    need_N: torch.Tensor,
    rows: Sequence[int],
    *,
    max_tokens: int,
    last_state_S: torch.Tensor | None = None,
) -> Iterator[MicroBatch]:
    """Cut responses into padded rectangles of at most ``max_tokens`` positions (one row always fits).

    need_N: bool, the tokens whose state value or log-probability is wanted. The state of a token is the hidden state
    of the token before it. last_state_S: bool, responses whose state after the last token is wanted as well.
    """
    offsets, prompt = batch.offsets.tolist(), batch.prompt_lengths_S.tolist()
    after = torch.zeros(batch.num_responses, dtype=torch.bool) if last_state_S is None else last_state_S
    wanted: list[tuple[int, int, torch.Tensor]] = []  # input length, row, needed response positions
    for row in rows:
        need = torch.cat([need_N[offsets[row] : offsets[row + 1]], after[row : row + 1]])
        positions = need.nonzero().squeeze(-1)
        if len(positions):
            wanted.append((prompt[row] + int(positions[-1]), row, positions))
    wanted.sort(key=lambda w: (w[0], w[1]))  # rows of like length share a rectangle
    start = 0
    for end in range(1, len(wanted) + 1):
        if end < len(wanted) and (end + 1 - start) * wanted[end][0] <= max_tokens:
            continue
        part, start = wanted[start:end], end
        width = part[-1][0]
        ids = torch.zeros(len(part), width, dtype=torch.int64)
        for i, (length, row, _) in enumerate(part):
            ids[i, :length] = batch.sequences[row][:length]
        yield MicroBatch(
            rows=torch.tensor([row for _, row, _ in part]),
            index_X=torch.cat([_flat_index(offsets, row, p) for _, row, p in part]),
            ids_BT=ids,
            at_X=torch.cat([i * width + prompt[row] - 1 + p for i, (_, row, p) in enumerate(part)]),
        )


def _flat_index(offsets: list[int], row: int, positions: torch.Tensor) -> torch.Tensor:
    first, end = offsets[row], offsets[row + 1]
    return torch.where(positions < end - first, first + positions, offsets[-1] + row)


def hidden_at(model: PolicyModel | CriticModel, micro: MicroBatch, device: torch.device) -> torch.Tensor:
    """Hidden states at the needed positions [X, D]."""
    return model.hidden(micro.ids_BT.to(device)).flatten(0, 1)[micro.at_X.to(device)]


@torch.no_grad()
def logprobs_of(
    policy: PolicyModel, batch: TokenBatch, need_N: torch.Tensor, *, temperature: float, max_tokens: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability and entropy of the needed tokens [N] on the CPU, float32 at least; zero elsewhere."""
    device, dtype = placement(policy)
    logprobs, entropy = torch.zeros(len(batch.tokens_N), dtype=dtype), torch.zeros(len(batch.tokens_N), dtype=dtype)
    for micro in micro_batches(batch, need_N, range(batch.num_responses), max_tokens=max_tokens):
        hidden = hidden_at(policy, micro, device)
        tokens = batch.tokens_N[micro.index_X].to(device)
        lp, h = token_scores(policy, hidden, tokens, temperature=temperature, chunk=chunk)
        logprobs[micro.index_X], entropy[micro.index_X] = lp.cpu(), h.cpu()
    return logprobs, entropy


@torch.no_grad()
def values_of(
    critic: CriticModel, batch: TokenBatch, need_N: torch.Tensor, last_state_S: torch.Tensor, *, max_tokens: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """V(s_t) of the needed tokens [N] and V(s_l) after the last token of the chosen responses [S]; zero elsewhere.

    On the CPU, float32 at least. Both come from one forward pass.
    """
    device, dtype = placement(critic)
    total = len(batch.tokens_N)
    values = torch.zeros(total + batch.num_responses, dtype=dtype)
    rows = range(batch.num_responses)
    for micro in micro_batches(batch, need_N, rows, max_tokens=max_tokens, last_state_S=last_state_S):
        values[micro.index_X] = critic.values(hidden_at(critic, micro, device)).cpu()
    return values[:total], values[total:]


def placement(model: PolicyModel | CriticModel) -> tuple[torch.device, torch.dtype]:
    """Where the model's weights are, and the dtype of what is computed from its outputs (float32 at least)."""
    assert isinstance(model, torch.nn.Module)
    weight = next(model.parameters())
    return weight.device, torch.promote_types(weight.dtype, torch.float32)
