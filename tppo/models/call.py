"""The one file that calls policy and critic on whole sequences. Padding lives and dies here.

Callers say which tokens they need; rows without any are skipped, rows are cut behind their last needed token, and the
output layer is applied to needed positions only, a chunk at a time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tppo.models.base import CriticModel, Model, PackedModel, PolicyModel
from tppo.models.head import token_scores as token_scores
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import device_of
from tppo.types import Batch


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """rows: responses, int64 [B]. index_X: flat token indices in the batch, in row order. ids_BT: right-padded input,
    or with ``lengths`` [B] all rows end to end in the first one. at_X: position of each needed hidden state in ids_BT
    flattened.
    """

    rows: torch.Tensor
    index_X: torch.Tensor
    ids_BT: torch.Tensor
    at_X: torch.Tensor
    lengths: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Call:
    """How models are called on whole sequences: cut into micro-batches, of which this rank takes its share."""

    ranks: Ranks
    temperature: float = 1.0
    """Of every log-probability."""
    micro_batch_tokens: int = 32768
    """Most tokens, padding included, in one micro-batch; a row always fits."""
    packed: bool = False
    """Rows end to end instead of padded."""
    logit_chunk_tokens: int = 1024
    """Most tokens whose logits exist at one time."""

    def micro_batches(
        self, batch: Batch, need_N: torch.Tensor, rows: Sequence[int], last_state_S: torch.Tensor | None = None
    ) -> Iterator[MicroBatch]:
        """This rank's share of the responses, in padded rectangles, or packed.

        With sharded weights every rank must call the model equally often: all ranks get as many rectangles, of like
        size in like rounds, and a rank for which none is left gets one with no row in it.

        need_N: bool, the tokens whose state value or log-probability is wanted. The state of a token is the hidden
        state of the token before it. last_state_S: bool, responses whose state after the last token is wanted too.
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
        lengths = [length for length, _, _ in wanted]
        runs = deal(lengths, self.micro_batch_tokens, self.ranks.size, packed=self.packed)
        for first, end in share(runs, self.ranks):
            part = wanted[first:end]
            if not part:
                yield _nothing(batch)
                continue
            lengths = [length for length, _, _ in part]
            rows_of_ids = [batch.sequences[row][:length] for length, row, _ in part]
            if self.packed:
                ids = torch.cat(rows_of_ids)[None]
                starts = [0, *itertools.accumulate(lengths)]
            else:
                ids = torch.nn.utils.rnn.pad_sequence(rows_of_ids, batch_first=True)
                starts = [i * lengths[-1] for i in range(len(part))]
            yield MicroBatch(
                rows=torch.tensor([row for _, row, _ in part]),
                index_X=torch.cat([_flat_index(offsets, row, p) for _, row, p in part]),
                ids_BT=ids,
                at_X=torch.cat([start + prompt[row] - 1 + p for start, (_, row, p) in zip(starts, part, strict=False)]),
                lengths=tuple(lengths) if self.packed else None,
            )

    def scores(
        self, policy: PolicyModel, micro: MicroBatch, tokens_X: torch.Tensor, *, with_entropy: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`token_scores` at a micro-batch's needed positions [X], on the policy's device."""
        device, _ = placement(policy)
        tokens = tokens_X.to(device)

        def work(model: PolicyModel) -> tuple[torch.Tensor, torch.Tensor]:
            hidden = hidden_at(model, micro, device)
            found = token_scores(
                model, hidden, tokens, temperature=self.temperature, chunk=self.logit_chunk_tokens,
                with_entropy=with_entropy,
            )  # fmt: skip
            return found[0].clone(), found[1].clone()

        return policy(work)

    def state_values(self, critic: CriticModel, micro: MicroBatch) -> torch.Tensor:
        """V at a micro-batch's needed positions [X], on the critic's device."""
        device, _ = placement(critic)
        # A copy: views must not leave a model with sharded weights, whose backward pass begins at its outputs.
        return critic(lambda model: model.values(hidden_at(model, micro, device)).clone())

    @torch.no_grad()
    def logprobs(self, policy: PolicyModel, batch: Batch, need_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the needed tokens [N] on the CPU, float32 at least; zero elsewhere."""
        _, dtype = placement(policy)
        logprobs, entropy = torch.zeros(len(batch.tokens_N), dtype=dtype), torch.zeros(len(batch.tokens_N), dtype=dtype)
        for micro in self.micro_batches(batch, need_N, range(batch.num_responses)):
            lp, h = self.scores(policy, micro, batch.tokens_N[micro.index_X])
            logprobs[micro.index_X], entropy[micro.index_X] = lp.cpu(), h.cpu()
        return self.ranks.sum(logprobs), self.ranks.sum(entropy)

    @torch.no_grad()
    def values(
        self, critic: CriticModel, batch: Batch, need_N: torch.Tensor, last_state_S: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """V(s_t) of the needed tokens [N] and V(s_l) after the last token of the chosen responses [S]; zero elsewhere.

        On the CPU, float32 at least. Both come from one forward pass.
        """
        _, dtype = placement(critic)
        total = len(batch.tokens_N)
        values = torch.zeros(total + batch.num_responses, dtype=dtype)
        for micro in self.micro_batches(batch, need_N, range(batch.num_responses), last_state_S):
            values[micro.index_X] = self.state_values(critic, micro).cpu()
        self.ranks.sum(values)
        return values[:total], values[total:]


def deal(lengths: Sequence[int], max_tokens: int, ranks: int, *, packed: bool = False) -> list[tuple[int, int]]:
    """Cut rows, sorted by length, into runs (first, end) of at most ``max_tokens`` positions, padding included.

    With several ranks the number of runs is a multiple of theirs where there are rows enough, and the budget is
    lowered until the runs are as even as that allows.

    >>> deal([2, 2, 3, 8], max_tokens=9, ranks=1)
    [(0, 3), (3, 4)]
    >>> deal([2, 2, 3, 8], max_tokens=9, ranks=3)
    [(0, 2), (2, 3), (3, 4)]
    """
    runs = _runs(lengths, max_tokens, packed)
    wanted = -(-len(runs) // ranks) * ranks
    if ranks > 1 and runs:
        low, high = max(lengths) - 1, max_tokens  # the smallest budget that still makes no more runs than wanted
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if len(_runs(lengths, middle, packed)) <= wanted else (middle, high)
        runs = _runs(lengths, high, packed)
        while len(runs) < wanted:
            at = max(range(len(runs)), key=lambda i: (runs[i][1] - runs[i][0] > 1, _size(lengths, runs[i], packed)))
            first, end = runs[at]
            if end - first < 2:
                break
            runs[at : at + 1] = [(first, (first + end) // 2), ((first + end) // 2, end)]
    return runs


def share(runs: Sequence[tuple[int, int]], ranks: Ranks) -> list[tuple[int, int]]:
    """This rank's runs: one of every round, empty in the last round if it has too few for all."""
    rounds = -(-len(runs) // ranks.size)
    padded = [*runs, *[(0, 0)] * (rounds * ranks.size - len(runs))]
    return padded[ranks.rank :: ranks.size]


def _runs(lengths: Sequence[int], budget: int, packed: bool) -> list[tuple[int, int]]:
    runs, first, total = [], 0, 0
    for end in range(1, len(lengths) + 1):
        total += lengths[end - 1]
        after = (total if packed else (end - first) * lengths[end]) + lengths[end] if end < len(lengths) else 0
        if end == len(lengths) or after > budget:
            runs.append((first, end))
            first, total = end, 0
    return runs


def _size(lengths: Sequence[int], run: tuple[int, int], packed: bool) -> int:
    first, end = run
    return sum(lengths[first:end]) if packed else (end - first) * lengths[end - 1]


def _nothing(batch: Batch) -> MicroBatch:
    """One token that nobody asks for: the model is called, and every gradient of it is zero."""
    none = torch.empty(0, dtype=torch.int64)
    return MicroBatch(rows=none, index_X=none, ids_BT=batch.sequences[0][None, :1], at_X=none)


def _flat_index(offsets: list[int], row: int, positions: torch.Tensor) -> torch.Tensor:
    first, end = offsets[row], offsets[row + 1]
    return torch.where(positions < end - first, first + positions, offsets[-1] + row)


def hidden_at(model: PolicyModel | CriticModel, micro: MicroBatch, device: torch.device) -> torch.Tensor:
    """Hidden states at the needed positions [X, D]."""
    ids, at = micro.ids_BT.to(device), micro.at_X.to(device)
    if micro.lengths is None:
        return model.hidden(ids).flatten(0, 1)[at]
    assert isinstance(model, PackedModel)
    return model.packed_hidden(ids[0], micro.lengths)[at]


@torch.no_grad()
def score_tokens(policy: PolicyModel, tokens: Sequence[int], first: int) -> torch.Tensor:
    """Log-probability [nats] of each of ``tokens[first:]`` given what stands before it, at temperature 1, float32."""
    device, _ = placement(policy)
    ids = torch.tensor([tokens], device=device)
    table = policy(lambda p: p.logits(p.hidden(ids)[0, first - 1 : -1]).float().log_softmax(-1))
    return table.gather(-1, ids[0, first:, None]).squeeze(-1)


def placement(model: Model) -> tuple[torch.device, torch.dtype]:
    """Where the model's weights are, and the dtype of what is computed from its outputs (float32 at least)."""
    weight = next(model.parameters())
    return device_of(weight), torch.promote_types(weight.dtype, torch.float32)
