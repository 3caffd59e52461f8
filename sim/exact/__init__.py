"""Exact answers about token MDPs: values and returns (``values``), moments of estimators (``moments``)."""

from sim.exact.values import (
    Backup,
    Evaluation,
    Lengths,
    Optimum,
    check_policy,
    evaluate,
    gather_next,
    iter_evaluate,
    iter_optimum,
    lengths,
    occupancy,
    optimum,
    policy_at,
    softmax,
    softmax_policy_gradient,
    state_blocks,
)

__all__ = [
    "Backup",
    "Evaluation",
    "Lengths",
    "Optimum",
    "check_policy",
    "evaluate",
    "gather_next",
    "iter_evaluate",
    "iter_optimum",
    "lengths",
    "occupancy",
    "optimum",
    "policy_at",
    "softmax",
    "softmax_policy_gradient",
    "state_blocks",
]
