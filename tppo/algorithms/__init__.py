"""One algorithm a file: the paper, the formula, its choices, its edge cases."""

from tppo.algorithms.base import Advantage, Algorithm, PolicyLoss, Schedule, TokenFilter, ValueTarget
from tppo.algorithms.ppo import ppo
from tppo.algorithms.tppo import tppo

__all__ = ["Advantage", "Algorithm", "PolicyLoss", "Schedule", "TokenFilter", "ValueTarget", "ppo", "tppo"]
