"""Truncated PPO (T-PPO, arXiv 2506.15050): one training loop from a table of logits to 32B.

Names are resolved on first use, so that ``import tppo`` loads neither torch nor transformers; a type checker sees where
each comes from.

>>> import tppo
>>> tppo.Status.EOS.finished
True
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # What one needs to write an algorithm, a task or an engine, and the equations.
    from tppo.algorithms import PPO as PPO
    from tppo.algorithms import TPPO as TPPO
    from tppo.algorithms import ValuePretraining as ValuePretraining
    from tppo.algorithms import Waiting as Waiting
    from tppo.algorithms import WaitingBehaviour as WaitingBehaviour
    from tppo.algorithms.auxiliaries import Critic as Critic
    from tppo.algorithms.auxiliaries import Reference as Reference
    from tppo.algorithms.auxiliaries.critic import CriticOptions as CriticOptions
    from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions as WindowedCriticOptions
    from tppo.algorithms.base import Advantage as Advantage
    from tppo.algorithms.base import Algorithm as Algorithm
    from tppo.algorithms.base import Auxiliary as Auxiliary
    from tppo.algorithms.base import Context as Context
    from tppo.algorithms.base import Parts as Parts
    from tppo.algorithms.base import Reward as Reward
    from tppo.algorithms.base import Rollout as Rollout
    from tppo.algorithms.base import Stop as Stop
    from tppo.algorithms.parts.advantages import generalised as generalised
    from tppo.algorithms.parts.advantages import outcome as outcome
    from tppo.algorithms.parts.advantages import outcomes as outcomes
    from tppo.algorithms.parts.select import every_window as every_window
    from tppo.algorithms.parts.select import mixed_group as mixed_group
    from tppo.algorithms.parts.select import whole_group as whole_group
    from tppo.algorithms.parts.terms import clipped as clipped
    from tppo.algorithms.parts.terms import entropy_bonus as entropy_bonus
    from tppo.algorithms.parts.terms import imitate_positives as imitate_positives
    from tppo.algorithms.parts.terms import kl_to_reference as kl_to_reference
    from tppo.algorithms.parts.tokens import finished_tokens as finished_tokens
    from tppo.algorithms.parts.tokens import new_tokens as new_tokens
    from tppo.algorithms.parts.tokens import uncapped_tokens as uncapped_tokens
    from tppo.config.run import Evaluation as Evaluation
    from tppo.config.run import ModelShape as ModelShape
    from tppo.config.run import RunConfig as RunConfig
    from tppo.config.run import TaskConfig as TaskConfig
    from tppo.data.workload import Workload as Workload
    from tppo.engines.base import Engine as Engine
    from tppo.errors import ConfigError as ConfigError
    from tppo.errors import DataError as DataError
    from tppo.errors import EngineError as EngineError
    from tppo.errors import FormatError as FormatError
    from tppo.errors import NonFiniteError as NonFiniteError
    from tppo.errors import RewardError as RewardError
    from tppo.errors import TPPOError as TPPOError
    from tppo.fit.options import Optimizer as Optimizer
    from tppo.fit.terms import Columns as Columns
    from tppo.fit.terms import Loss as Loss
    from tppo.fit.terms import Now as Now
    from tppo.fit.terms import Term as Term
    from tppo.fit.update import update as update
    from tppo.loop.metrics import Step as Step
    from tppo.loop.slots import Slots as Slots
    from tppo.loop.trainer import Trainer as Trainer
    from tppo.maths.advantages import egae as egae
    from tppo.maths.advantages import gae as gae
    from tppo.maths.advantages import length_adaptive_lambda as length_adaptive_lambda
    from tppo.maths.aggregate import aggregate_count as aggregate_count
    from tppo.maths.aggregate import aggregate_sum as aggregate_sum
    from tppo.maths.groups import group_mean as group_mean
    from tppo.maths.groups import group_std as group_std
    from tppo.maths.groups import grpo_advantage as grpo_advantage
    from tppo.maths.groups import rloo_advantage as rloo_advantage
    from tppo.maths.masks import shape_advantages as shape_advantages
    from tppo.maths.masks import whiten as whiten
    from tppo.maths.masks import window_mask as window_mask
    from tppo.maths.objectives import kl_estimate as kl_estimate
    from tppo.maths.objectives import lm_loss as lm_loss
    from tppo.maths.objectives import ppo_loss as ppo_loss
    from tppo.maths.values import discounted_returns as discounted_returns
    from tppo.maths.values import lambda_returns as lambda_returns
    from tppo.maths.values import value_loss as value_loss
    from tppo.models.base import CriticModel as CriticModel
    from tppo.models.base import Model as Model
    from tppo.models.base import PolicyModel as PolicyModel
    from tppo.models.options import Compute as Compute
    from tppo.ranges import Range as Range
    from tppo.ranks.ranks import Ranks as Ranks
    from tppo.runs.build import build_trainer as build_trainer
    from tppo.runs.run import run as run
    from tppo.types import Batch as Batch
    from tppo.types import Continuation as Continuation
    from tppo.types import GenerationRequest as GenerationRequest
    from tppo.types import Prompt as Prompt
    from tppo.types import Response as Response
    from tppo.types import Sampling as Sampling
    from tppo.types import Status as Status

__version__ = "0.2.0"

_EXPORTS = {
    "tppo.algorithms": ("PPO", "TPPO", "ValuePretraining", "Waiting", "WaitingBehaviour"),
    "tppo.algorithms.auxiliaries": ("Critic", "Reference"),
    "tppo.algorithms.auxiliaries.critic": ("CriticOptions", "WindowedCriticOptions"),
    "tppo.algorithms.base": (
        "Advantage", "Algorithm", "Auxiliary", "Context", "Parts", "Reward", "Rollout", "Stop",
    ),
    "tppo.algorithms.parts.advantages": ("generalised", "outcome", "outcomes"),
    "tppo.algorithms.parts.select": ("every_window", "mixed_group", "whole_group"),
    "tppo.algorithms.parts.terms": ("clipped", "entropy_bonus", "imitate_positives", "kl_to_reference"),
    "tppo.algorithms.parts.tokens": ("finished_tokens", "new_tokens", "uncapped_tokens"),
    "tppo.config.run": ("Evaluation", "ModelShape", "RunConfig", "TaskConfig"),
    "tppo.data.workload": ("Workload",),
    "tppo.engines.base": ("Engine",),
    "tppo.errors": (
        "ConfigError", "DataError", "EngineError", "FormatError", "NonFiniteError", "RewardError", "TPPOError",
    ),
    "tppo.fit.options": ("Optimizer",),
    "tppo.fit.terms": ("Columns", "Loss", "Now", "Term"),
    "tppo.fit.update": ("update",),
    "tppo.loop.metrics": ("Step",),
    "tppo.loop.slots": ("Slots",),
    "tppo.loop.trainer": ("Trainer",),
    "tppo.maths.advantages": ("egae", "gae", "length_adaptive_lambda"),
    "tppo.maths.aggregate": ("aggregate_count", "aggregate_sum"),
    "tppo.maths.groups": ("group_mean", "group_std", "grpo_advantage", "rloo_advantage"),
    "tppo.maths.masks": ("shape_advantages", "whiten", "window_mask"),
    "tppo.maths.objectives": ("kl_estimate", "lm_loss", "ppo_loss"),
    "tppo.maths.values": ("discounted_returns", "lambda_returns", "value_loss"),
    "tppo.models.base": ("CriticModel", "Model", "PolicyModel"),
    "tppo.models.options": ("Compute",),
    "tppo.ranges": ("Range",),
    "tppo.ranks.ranks": ("Ranks",),
    "tppo.runs.build": ("build_trainer",),
    "tppo.runs.run": ("run",),
    "tppo.types": ("Batch", "Continuation", "GenerationRequest", "Prompt", "Response", "Sampling", "Status"),
}  # fmt: skip
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)

if not TYPE_CHECKING:  # a type checker would take it for every name there is

    def __getattr__(name: str) -> Any:
        if name not in _HOME:
            raise AttributeError(f"module 'tppo' has no attribute {name!r}")
        return getattr(import_module(_HOME[name]), name)

    def __dir__() -> list[str]:
        return [*globals(), *__all__]
