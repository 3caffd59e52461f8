"""One update, of any model by any terms.

Losses are sums over tokens divided once by counts that are fixed before the first micro-batch, so cutting a mini-batch
differently, or dealing it out to more ranks, never changes the gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tppo.fit.mini_batches import mini_batches
from tppo.fit.optim import ModelOptimizer
from tppo.fit.stats import Stats
from tppo.fit.terms import Columns, Loss, Now, Term, pick
from tppo.maths.aggregate import aggregate_count, aggregate_sum
from tppo.maths.finite import check_finite
from tppo.maths.ragged import offsets_of
from tppo.models.call import Call, MicroBatch, placement
from tppo.types import Batch

if TYPE_CHECKING:
    from tppo.models.base import CriticModel, Model, PolicyModel


def policy_now(call: Call, policy: PolicyModel, batch: Batch, micro: MicroBatch, *, entropy: bool) -> Now:
    """Log-probabilities of a micro-batch's tokens, and entropies if asked for."""
    scores = call.scores(policy, micro, batch.tokens_N[micro.index_X], with_entropy=entropy)
    return Now(*scores, _offsets(batch, micro).to(scores[0].device))


def critic_now(call: Call, critic: CriticModel, batch: Batch, micro: MicroBatch, *, entropy: bool) -> Now:
    """Values of a micro-batch's states."""
    values = call.state_values(critic, micro)
    return Now(values, torch.zeros_like(values), _offsets(batch, micro).to(values.device))


def update(
    model: Model,
    optimizer: ModelOptimizer,
    batch: Batch,
    terms: Sequence[Term],
    columns: Columns,
    *,
    call: Call,
    now: Callable[..., Now],
    name: str,
    key: tuple[int, int],
    live: Callable[[Tensor], Columns] | None = None,
    after: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """Descend the weighted sum of terms, mini-batch by mini-batch; returns the update's metrics.

    now: ``policy_now`` or ``critic_now``. name: of the model, before its metrics. key: seed of the run and number of
    the step. live: columns made anew for every mini-batch, from the tokens that it needs. after: called after every
    step of the optimiser.

    Raises NonFiniteError, naming the term and the responses, before anything is updated with a NaN or an infinity.
    """
    masks = [columns["train"] if t.tokens is None else t.tokens(batch) for t in terms]
    need_N = torch.stack(masks).any(0)
    reads = frozenset[str]().union(*(t.reads for t in terms))
    device, _ = placement(model)
    stats = Stats(call.ranks.gather)
    for rows in mini_batches(optimizer.options, batch, need_N, key=key, name=name):
        member_N = batch.of_rows(rows)
        known = columns if live is None else columns | live(need_N & member_N)
        kept = [mask & member_N for mask in masks]
        counts = [
            aggregate_count(m, batch.offsets, mode=t.aggregation, constant_length=t.constant_length).clamp(min=1)
            for t, m in zip(terms, kept, strict=True)
        ]
        seen: list[tuple[str, Tensor, Tensor]] = []
        optimizer.zero_grad()
        for micro in call.micro_batches(batch, need_N & member_N, rows):
            of_micro = now(call, model, batch, micro, entropy=any(t.entropy for t in terms))
            data = at_tokens(pick(known, reads), batch, micro.index_X, device)
            total = of_micro.value_X.new_zeros(())
            for term, keep_N, count in zip(terms, kept, counts, strict=True):
                keep_X, found = keep_N[micro.index_X].to(device), term.loss(of_micro, data)
                loss = aggregate_sum(found.loss_X, keep_X, of_micro.offsets, mode=term.aggregation)
                share = loss / count.to(device, loss.dtype)
                total = total + term.weight * share
                seen.append((term.name, torch.where(keep_X, found.loss_X.detach(), 0), micro.index_X))
                _note(stats, term, share, found, keep_X, keep_N.sum().clamp(min=1))
            total.backward()
        _check(seen, batch)
        stats.whole(f"{name}_grad_norm", optimizer.step(name=name))
        optimizer.zero_grad()  # frees the gradients: the engine uses this memory until the next update
        after()
        stats.updates += 1
    return stats.result(name)


def at_tokens(columns: Columns, batch: Batch, index_X: Tensor, device: torch.device) -> Columns:
    """Columns [N] at some tokens of the batch [X]. Raises ValueError for one that has not one entry a token."""
    total = len(batch.row_N)
    for name, column in columns.items():
        if column.shape != (total,):
            found = tuple(column.shape)
            raise ValueError(
                f"column {name!r}: found shape {found}, expected [{total}]; Batch.spread repeats [S] to [N]"
            )
    return {name: column[index_X].to(device) for name, column in columns.items()}


def _note(stats: Stats, term: Term, share: Tensor, found: Loss, keep_X: Tensor, kept: Tensor) -> None:
    stats.add(term.name, share)
    for metric, x in found.means.items():
        stats.add(metric, torch.where(keep_X, x.detach(), 0).sum() / kept.to(keep_X.device))
    for metric, x in found.peaks.items():
        stats.peak(metric, torch.where(keep_X, x.detach(), -torch.inf).amax() if len(x) else x.new_tensor(-torch.inf))


def _check(seen: Sequence[tuple[str, Tensor, Tensor]], batch: Batch) -> None:
    """One look at all losses of a mini-batch; only where one is not finite, who is to blame."""
    if not seen or bool(torch.stack([x.isfinite().all() for _, x, _ in seen]).all()):
        return
    for name, loss_X, index_X in seen:
        check_finite(name, loss_X, uids=batch.uids_S, row_N=batch.row_N[index_X])


def _offsets(batch: Batch, micro: MicroBatch) -> Tensor:
    """Where each response's tokens begin among those of a micro-batch, int64 [rows + 1]; its rows are whole."""
    return offsets_of(torch.bincount(batch.row_N[micro.index_X], minlength=batch.num_responses)[micro.rows])
