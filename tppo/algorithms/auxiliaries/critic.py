"""The critic: V by regression on returns.

    G_t = sum_j gamma^j r_{t+j}      of finished responses; Monte-Carlo at lambda = 1, else TD(lambda)
    loss = max((V - G)^2, (V_clipped - G)^2) / 2

The dual update of T-PPO (arXiv 2506.15050): the policy trains at once, the critic on what really came out. Training it
on unfinished windows too, towards targets that bootstrap at the cut, is an option for comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from tppo.algorithms.base import Auxiliary, Columns, Context
from tppo.fit.options import Optimizer
from tppo.fit.terms import Loss, Now, Term
from tppo.fit.update import critic_now, update
from tppo.maths.advantages import Boundary
from tppo.maths.finite import check_finite
from tppo.maths.values import (
    bootstrapped_returns,
    discounted_returns,
    explained_variance,
    lambda_returns,
    value_loss,
)
from tppo.models.base import CriticModel
from tppo.ranges import BOUND, RATE, Range
from tppo.types import Batch

if TYPE_CHECKING:
    from tppo.data.workload import Workload


@dataclass(frozen=True)
class CriticOptions(Optimizer):
    """AdamW of the critic, and what it is trained on."""

    lr: Annotated[float, Range(0, RATE)] = 2e-6
    """Peak learning rate."""
    lam: Annotated[float, Range(0, 1)] = 1.0
    """Lambda of the value target; 1 is Monte-Carlo."""
    clip_low: Annotated[float, Range(0, BOUND)] | None = 0.5
    """A value may fall this far below its old value before its gradient stops; None is off."""
    clip_high: Annotated[float, Range(0, BOUND)] | None = 0.6
    """The same above."""
    aggregation: Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum"] = "seq-mean-token-mean"
    """How token losses become one number."""
    start: str = ""
    """A run, or one of its checkpoints, whose critic this run begins with; empty is the task's own."""


@dataclass(frozen=True)
class WindowedCriticOptions(CriticOptions):
    """The same where responses are generated in windows."""

    responses: Literal["finished", "all"] = "finished"
    """finished: all tokens of responses that finished in this step. all: also this window's tokens of the unfinished,
    towards lambda-returns that bootstrap at the cut as the advantage does."""
    old_values: Literal["recompute", "stored"] = "recompute"
    """Clip centre of earlier windows: values under the critic at the start of the step, or those stored at sampling."""


@dataclass(frozen=True)
class Critic(Auxiliary):
    """Gives V before the update: "values" and "stored_values" [N], "cut_values" [S].

    values: V(s_t) of every token that an estimate or a target reads, 0 elsewhere. stored_values: those of the step
    that sampled the token, NaN where no critic valued it then. cut_values: V(s_l) after the last token of unfinished
    responses.
    """

    options: CriticOptions
    gamma: float = 1.0
    boundary: Boundary = "repeat"
    """V(s_l) in the targets of unfinished windows."""
    on_windows: bool = False
    """Whether unfinished windows train the critic too."""
    stored: bool = False
    """Whether values of earlier windows are those stored at sampling, else computed again."""
    bounds: tuple[float, float] | None = None
    """Smallest and largest value that can be: V = low + (high - low) (1/2 + atan(z) / pi) of the network's output z."""

    name: ClassVar[str] = "critic"
    gives: ClassVar[frozenset[str]] = frozenset({"values", "stored_values", "cut_values"})

    @property
    def optimizer(self) -> Optimizer:  # type: ignore[override]
        """The critic's own."""
        return self.options

    @property
    def begins_with(self) -> str:  # type: ignore[override]
        """Another run's critic, or nothing."""
        return self.options.start

    def start(self, workload: Workload) -> CriticModel:
        """The task's."""
        return workload.critic()

    def columns(self, at: Context, batch: Batch, train_N: Tensor) -> Columns:
        """One pass over this window's tokens and those of finished responses."""
        assert isinstance(at.model, CriticModel)
        need_N = batch.window_N if self.stored else batch.window_N | batch.finished_N
        values_N, cut_S = (self.value(z) for z in at.call.values(at.model, batch, need_N, ~batch.finished_S))
        check_finite("values", values_N, uids=batch.uids_S, row_N=batch.row_N)
        stored_N = store_values(batch, values_N)
        if self.stored:
            values_N = torch.where(stored_N.isnan(), values_N, stored_N)
        return {"values": values_N, "stored_values": stored_N, "cut_values": cut_S}

    def terms(self) -> tuple[Term, ...]:
        """The clipped squared error, over every token of finished responses (and of windows)."""
        return (
            Term(
                "critic_loss",
                self._loss,
                reads=frozenset({"values", "returns"}),
                tokens=window_and_finished if self.on_windows else finished,
                aggregation=self.options.aggregation,
            ),
        )

    def fit(self, at: Context, batch: Batch, columns: Columns) -> dict[str, float | None]:
        """Regress on the targets. With no token to train on, nothing moves."""
        assert isinstance(at.model, CriticModel)
        assert at.optimizer is not None
        known = columns | {"returns": self.targets(batch, columns)}
        stats = update(
            at.model, at.optimizer, batch, self.terms(), known, call=at.call, now=critic_now, name=self.name, key=at.key
        )
        return critic_metrics(batch, columns, gamma=self.gamma) | stats

    def targets(self, batch: Batch, columns: Columns) -> Tensor:
        """G [N], meaningful for the tokens that train the critic. Lambda 1 is Monte-Carlo for finished responses.

        Targets of unfinished windows are G_t = A_t + V_t with A of `egae`: the lambda-average of n-step returns, of
        which the longest bootstraps with V(s_l).
        """
        values_N, lam = columns["values"], self.options.lam
        rewards_N = columns["rewards"].to(values_N.dtype)
        if lam == 1.0:  # the same equation without the critic's values, hence without their round-off
            targets_N = discounted_returns(rewards_N, batch.offsets, gamma=self.gamma)
        else:
            targets_N = lambda_returns(rewards_N, values_N, batch.offsets, gamma=self.gamma, lam=lam)
        if not self.on_windows:
            return targets_N
        open_N = batch.window_N & ~batch.finished_N
        ahead = bootstrapped_returns(
            rewards_N[open_N],
            values_N[open_N],
            batch.offsets_within(open_N),
            batch.finished_S,
            gamma=self.gamma,
            lam=lam,
            boundary=self.boundary,
            cut_values_S=columns["cut_values"] if self.boundary == "critic" else None,
        )
        return targets_N.masked_scatter(open_N, ahead)

    def value(self, z: Tensor) -> Tensor:
        """V from the network's output.

        >>> Critic(CriticOptions(), bounds=(0.0, 1.0)).value(torch.tensor(0.5))
        tensor(0.6476)
        """
        if self.bounds is None:
            return z
        low, high = self.bounds
        return low + (high - low) * (0.5 + z.atan() / torch.pi)

    def _loss(self, now: Now, data: Columns) -> Loss:
        o = self.options
        terms = value_loss(
            self.value(now.value_X), data["values"], data["returns"], clip_low=o.clip_low, clip_high=o.clip_high
        )
        return Loss(terms.loss_N, {"value_clip_fraction": terms.clipped_N.to(now.value_X.dtype)})


def windowed_critic(options: WindowedCriticOptions, gamma: float, boundary: Boundary = "repeat") -> Critic:
    """The critic that these options describe. boundary: V(s_l) in the targets of unfinished windows."""
    return Critic(
        options, gamma, boundary, on_windows=options.responses == "all", stored=options.old_values == "stored"
    )


def finished(batch: Batch) -> Tensor:
    """Every token of responses that finished in this step."""
    return batch.finished_N


def window_and_finished(batch: Batch) -> Tensor:
    """Those, and this window's tokens of the unfinished."""
    return batch.finished_N | batch.window_N


def store_values(batch: Batch, values_N: Tensor) -> Tensor:
    """Keep this window's values with their responses; return the stored values of all tokens [N].

    Values of earlier windows stand already with a response if it was in every step's batch; else they are NaN.
    """
    ends, values, stored = batch.offsets.tolist(), values_N.double().numpy(), []
    for i, response in enumerate(batch.responses):
        if len(response.values) == response.start:
            response.values.frombytes(values[ends[i] + response.start : ends[i + 1]].tobytes())
            stored.append(np.asarray(response.values))
        else:
            stored.append(np.full(len(response.tokens), np.nan))
    return torch.from_numpy(np.concatenate(stored)).to(values_N.dtype)


def critic_metrics(batch: Batch, columns: Columns, *, gamma: float) -> dict[str, float | None]:
    """How good the critic was when its values were used.

    Explained variance of the Monte-Carlo return, whatever the critic is trained on, over responses that finished in
    this step, by the values stored when each token was sampled:
    ``finished`` for tokens of the last window, ``unfinished`` for tokens sampled while the response was still open
    (their advantages rested on the critic alone). ``cut_gap`` is the mean |V(s_l) - V(s_{l-1})| at window cuts: the
    size of what EGAE assumes to be zero.
    """
    values_N, stored_N, cut_S = columns["values"], columns["stored_values"], columns["cut_values"]
    returns_N = discounted_returns(batch.rewards_N, batch.offsets, gamma=gamma)
    known_N = batch.finished_N & ~stored_N.isnan()
    last, earlier = known_N & batch.window_N, known_N & ~batch.window_N
    cut = ~batch.finished_S & (batch.lengths_S > 0)
    before_cut = values_N[batch.offsets[1:][cut] - 1]
    return {
        "explained_variance_finished": explained_variance(stored_N[last], returns_N[last]),
        "explained_variance_unfinished": explained_variance(stored_N[earlier], returns_N[earlier]),
        "value_mean": float(values_N[batch.window_N].mean()) if batch.window_N.any() else None,
        "cut_gap": float((cut_S[cut] - before_cut).abs().mean()) if cut.any() else None,
    }
