"""What an update descends: a sum of terms, each with its tokens, its weight and its own denominator.

Shapes: _N tokens of the batch, _S responses, _X tokens of one micro-batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from tppo.maths.aggregate import Aggregation
from tppo.types import Batch

Columns = dict[str, Tensor]
"""What is known of the batch's tokens [N] or responses [S], by name: "old", "behaviour", "values", "advantages"."""


def pick(columns: Columns, reads: frozenset[str]) -> Columns:
    """The columns that a part has declared, and no others. Raises KeyError for one that is not there."""
    return {name: columns[name] for name in reads}


class Now(NamedTuple):
    """What the model under update says of one micro-batch's tokens."""

    value_X: Tensor
    """log pi(y_t) [nats] of a policy, V(s_t) of a critic; carries the gradient."""
    entropy_X: Tensor
    """Entropy of the policy's distribution [nats], where a term asks for it, else 0; carries the gradient."""
    offsets: Tensor
    """int64 [rows + 1]; a micro-batch holds whole responses, so a sequence-level ratio needs nothing else."""


class Loss(NamedTuple):
    """One loss a token."""

    loss_X: Tensor
    """To be minimised; carries the gradient."""
    means: Mapping[str, Tensor] = {}
    """[X] by the name of a metric: averaged over the term's own tokens."""
    peaks: Mapping[str, Tensor] = {}
    """[X] by the name of a metric: the largest of the term's own tokens."""


@dataclass(frozen=True)
class Term:
    """One summand of what is descended: weight * (sum over its tokens) / (count of the whole mini-batch)."""

    name: str
    """Of the metric that holds its value."""
    loss: Callable[[Now, Columns], Loss]
    """From the model's output and the columns it reads, all at the micro-batch's tokens [X]."""
    reads: frozenset[str] = frozenset()
    """Columns that the loss reads; it gets no others."""
    tokens: Callable[[Batch], Tensor] | None = None
    """Its tokens, bool [N]; None is the tokens that train."""
    weight: float = 1.0
    aggregation: Aggregation = "token-mean"
    """See ``tppo.maths.aggregate``."""
    constant_length: int | None = None
    """Normaliser a response [tokens], for the aggregation "constant"."""
    entropy: bool = field(default=False, kw_only=True)
    """Whether the loss reads ``Now.entropy_X``, which costs a second pass over the logits."""
