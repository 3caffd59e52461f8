"""Exact answers about token MDPs, by dynamic programming over the table; nothing is sampled.

- `values`: values, advantages, optimum, occupancy, response lengths and policy gradient.
- `policies`: policies of chosen quality.
- `moments`: mean and variance of advantage estimators.
- `filtered`: the same on the tokens that a filter keeps.
- `utility`: what a method with one advantage a response ascends.
"""

from sim.exact.filtered import KeptMoments, kept_moments
from sim.exact.moments import EstimatorMoments, MomentsAt, estimator_moments, iter_estimator_moments
from sim.exact.policies import noisy_policy
from sim.exact.utility import OutcomeLaw, frozen_utility, outcome_law, sums_law, utility_gradient
from sim.exact.values import (
    Backup,
    Evaluation,
    LengthDistribution,
    Optimum,
    at_start,
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
    "EstimatorMoments",
    "Evaluation",
    "KeptMoments",
    "LengthDistribution",
    "MomentsAt",
    "Optimum",
    "OutcomeLaw",
    "at_start",
    "check_policy",
    "estimator_moments",
    "evaluate",
    "frozen_utility",
    "gather_next",
    "iter_estimator_moments",
    "iter_evaluate",
    "iter_optimum",
    "kept_moments",
    "lengths",
    "noisy_policy",
    "occupancy",
    "optimum",
    "outcome_law",
    "policy_at",
    "softmax",
    "softmax_policy_gradient",
    "state_blocks",
    "sums_law",
    "utility_gradient",
]
