"""One algorithm a file: the paper, the formula, its numbers, its edge cases."""

from tppo.algorithms.base import Algorithm, Parts, Rollout
from tppo.algorithms.ppo import PPO
from tppo.algorithms.tppo import TPPO
from tppo.algorithms.value_pretraining import ValuePretraining
from tppo.algorithms.waiting import Waiting, WaitingBehaviour

__all__ = ["PPO", "TPPO", "Algorithm", "Parts", "Rollout", "ValuePretraining", "Waiting", "WaitingBehaviour"]
