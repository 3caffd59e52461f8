"""Terms other than the clipped surrogate, and what any term can be corrected by; see ``tppo.maths.weights``."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from tppo.errors import ConfigError
from tppo.fit.terms import Columns, Loss, Now, Term
from tppo.maths.aggregate import Aggregation
from tppo.maths.objectives import LOG_RATIO_LIMIT
from tppo.maths.surrogates import gate_loss, square_loss, weighted_loss
from tppo.maths.weights import Trust, Weight, levelled, on_policy_enough, trusted, weigh


def weighted(
    weight: Weight,
    *,
    wrong: Weight | None = None,
    trust: Trust | None = None,
    centre: Literal["old", "behaviour"] = "old",
    aggregation: Aggregation = "token-mean",
    constant_length: int | None = None,
) -> Term:
    """-w A log pi, w from the ratio to the policy before the update or to the one that sampled.

    wrong: another weight where A < 0. trust: tokens beyond it weigh nothing. ``Weight(1, 1)`` is no ratio at all.
    """
    unweighted = weight == Weight(1, 1) and wrong is None and trust is None

    def loss(now: Now, data: Columns) -> Loss:
        advantages = data["advantages"].to(now.value_X.dtype)
        if unweighted:
            return Loss(weighted_loss(now.value_X, advantages))
        log_ratio, keep = now.value_X.detach() - data[centre], data["train"]
        w = weigh(log_ratio, keep, now.offsets, weight)
        if wrong is not None:
            w = torch.where(advantages < 0, weigh(log_ratio, keep, now.offsets, wrong), w)
        if trust is not None:
            w = w * trusted(now.value_X, data["behaviour"], advantages, trust)
        ratio = log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        means = {"ratio_mean": ratio, "weight_mean": w, "bounded_fraction": (w != ratio).to(w.dtype)}
        return Loss(weighted_loss(now.value_X, advantages, w), means, {"ratio_max": ratio})

    reads = {"advantages"} if unweighted else {"advantages", "train", centre, *(["behaviour"] if trust else [])}
    return Term("policy_loss", loss, reads=frozenset(reads), aggregation=aggregation, constant_length=constant_length)


def gated(*, tau_positive: float, tau_negative: float, aggregation: Aggregation = "seq-mean-token-mean") -> Term:
    """The soft gate of SAPO (arXiv 2511.20347) around the policy before the update."""

    def loss(now: Now, data: Columns) -> Loss:
        log_ratio = now.value_X - data["old"].to(now.value_X.dtype)
        advantages = data["advantages"].to(now.value_X.dtype)
        found = gate_loss(log_ratio, advantages, tau_positive=tau_positive, tau_negative=tau_negative)
        ratio = log_ratio.detach().clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()
        return Loss(found, {"ratio_mean": ratio}, {"ratio_max": ratio})

    return Term("policy_loss", loss, reads=frozenset({"old", "advantages"}), aggregation=aggregation)


def squared(*, tau: float) -> Term:
    """Kimi k1.5's square (arXiv 2501.12599) over whole responses, around the policy before the update, over 2 tau.

    Divided so that the first update is that of every other surrogate with "seq-mean-token-sum".
    """

    def loss(now: Now, data: Columns) -> Loss:
        log_ratio = now.value_X - data["old"].to(now.value_X.dtype)
        whole = levelled(log_ratio, data["train"], now.offsets, level="product")
        return Loss(square_loss(whole, data["advantages"].to(now.value_X.dtype), tau=tau) / (2 * tau))

    reads = frozenset({"old", "advantages", "train"})
    return Term("policy_loss", loss, reads=reads, aggregation="seq-mean-token-mean")


def corrected(term: Term, weight: Weight, *, of: str = "old") -> Term:
    """A term whose token losses weigh pi_old / pi_behaviour, or another column over it: for an engine that computes
    other log-probabilities than the trainer, or tokens that are older than the policy before the update.

    A ratio to the behaviour policy is corrected already. Raises ConfigError for a term that reads one.
    """
    if "behaviour" in term.reads:
        raise ConfigError(
            "algorithm.correction", weight, "None with the ratio to the behaviour policy", "it would count twice"
        )

    def loss(now: Now, data: Columns) -> Loss:
        found = term.loss(now, data)
        w = weigh(data[of] - data["behaviour"], data["train"], now.offsets, weight).to(found.loss_X.dtype)
        # A NaN of a dropped token must not reach the gradient.
        loss_X = torch.where(w.isfinite(), found.loss_X * w.nan_to_num(nan=0.0), torch.nan)
        return found._replace(loss_X=loss_X, means={**found.means, "correction_mean": w})

    return replace(term, loss=loss, reads=term.reads | {of, "behaviour", "train"})


def masked_off_policy(term: Term, bound: float) -> Term:
    """A term without the tokens of responses that turned out badly and that the policy has left since
    (DeepSeek-V3.2, arXiv 2512.02556): they keep counting in the denominator.
    """

    def loss(now: Now, data: Columns) -> Loss:
        found = term.loss(now, data)
        log_ratio = now.value_X.detach() - data["behaviour"]
        keep = on_policy_enough(log_ratio, data["train"], now.offsets, data["advantages"], bound=bound)
        return found._replace(
            loss_X=torch.where(keep, found.loss_X, 0.0), means={**found.means, "masked_fraction": (~keep).float()}
        )

    return replace(term, loss=loss, reads=term.reads | {"behaviour", "train", "advantages"})
