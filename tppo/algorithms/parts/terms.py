"""What the policy descends. Each function makes one term; equations are in ``tppo.maths.objectives``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from tppo.algorithms.parts.weighted import corrected
from tppo.fit.terms import Columns, Loss, Now, Term
from tppo.maths.aggregate import Aggregation
from tppo.maths.objectives import KLKind, kl_estimate, lm_loss, ppo_loss
from tppo.maths.weights import Level, Weight, levelled
from tppo.types import Batch


def clipped(
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    importance_cap: float | None = None,
    centre: Literal["old", "behaviour", "average"] = "old",
    level: Level = "token",
    aggregation: Aggregation = "token-mean",
    constant_length: int | None = None,
) -> Term:
    """The clipped surrogate (PPO, arXiv 1707.06347), around the policy before the update, the one that sampled, or
    an average of the policy (PPO-EWMA, arXiv 2110.00641).

    level: whose ratio is clipped, each token's or one for the response (GSPO, arXiv 2507.18071, takes the mean).
    importance_cap: weigh tokens by min(centre / pi_behaviour, cap) (`corrected`); None is off. With tokens that waited
    for the end of their response this is decoupled PPO (arXiv 2110.00641), else truncated importance sampling for an
    engine that computes other log-probabilities than the trainer.
    """

    def loss(now: Now, data: Columns) -> Loss:
        old = data[centre].to(now.value_X.dtype)
        advantages = data["advantages"].to(now.value_X.dtype)
        log_ratio = now.value_X - old
        if level != "token":  # Never back to a log-probability: its rounding would part the tokens of a response.
            log_ratio = levelled(log_ratio, data["train"], now.offsets, level=level)
        terms = ppo_loss(
            log_ratio, torch.zeros_like(old), advantages, clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip
        )
        ratio, moved, flags = terms.ratio_N, now.value_X.detach() - old, now.value_X.dtype
        means = {
            "clip_fraction_high": (terms.clipped_N & (ratio > 1)).to(flags),
            "clip_fraction_low": (terms.clipped_N & (ratio < 1)).to(flags),
            "dual_clip_fraction": terms.dual_clipped_N.to(flags),
            "ratio_mean": ratio,
            # KL(old || new) from samples of the old policy: k3 with the log-ratio of new to old.
            "policy_kl": moved.exp() - 1 - moved,
        }
        return Loss(terms.loss_N, means, {"ratio_max": ratio})

    reads = frozenset({centre, "advantages", *(["train"] if level != "token" else [])})
    term = Term("policy_loss", loss, reads, aggregation=aggregation, constant_length=constant_length)
    return term if importance_cap is None else corrected(term, Weight(0, importance_cap), of=centre)


def positive_tokens(batch: Batch) -> Tensor:
    """Every token of finished responses with a reward above zero, bool [N]."""
    return batch.spread(batch.positive_S)


def imitate_positives(weight: float, *, tokens: Callable[[Batch], Tensor] = positive_tokens) -> Term:
    """Likelihood of all tokens of responses with a positive reward (VAPO, arXiv 2504.05118)."""
    return Term("lm_loss", lambda now, data: Loss(lm_loss(now.value_X)), tokens=tokens, weight=weight)


def entropy_bonus(weight: float, *, aggregation: Aggregation = "token-mean") -> Term:
    """Entropy of the policy at the tokens that train, to be raised; the metric is the mean entropy."""
    return Term(
        "update_entropy", lambda now, data: Loss(now.entropy_X), weight=-weight, aggregation=aggregation, entropy=True
    )


def kl_to_reference(
    weight: float,
    *,
    kind: KLKind = "k3",
    aggregation: Aggregation = "token-mean",
    constant_length: int | None = None,
) -> Term:
    """KL penalty towards the initial policy, as a loss."""

    def loss(now: Now, data: Columns) -> Loss:
        return Loss(kl_estimate(now.value_X, data["reference"].to(now.value_X.dtype), kind=kind))

    reads = frozenset({"reference"})
    return Term("reference_kl", loss, reads, weight=weight, aggregation=aggregation, constant_length=constant_length)
