"""Truncated PPO (T-PPO, arXiv 2506.15050): one training loop from a table of logits to 32B.

Names are resolved on first use, so that ``import tppo`` loads neither torch nor transformers.

>>> import tppo
>>> tppo.Status.EOS.finished
True
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "tppo.types": ("Prompt", "Response", "Status", "TokenBatch"),
    "tppo.errors": ("ConfigError", "DataError", "EngineError", "NonFiniteError", "RewardError", "TPPOError"),
    "tppo.maths.advantages": ("egae", "gae", "length_adaptive_lambda"),
    "tppo.maths.aggregate": ("aggregate_count", "aggregate_sum"),
    "tppo.maths.groups": ("group_mean", "group_std", "grpo_advantage", "rloo_advantage"),
    "tppo.maths.masks": ("shape_advantages", "whiten", "window_mask"),
    "tppo.maths.objectives": ("kl_estimate", "lm_loss", "ppo_loss", "truncated_importance_weights"),
    "tppo.maths.values": ("discounted_returns", "lambda_returns", "value_loss"),
    "tppo.loop.trainer": ("Trainer",),
    "tppo.loop.slots": ("SlotWindow",),
    "tppo.config.run": ("RunConfig",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tppo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
