"""The equations as plain NumPy loops, one equation a function, float64, one response or a list of responses at a time.

Read these to know what is computed; `equations.md` says where each comes from. The tensor versions in `tppo` are held
against them. Nothing of ours is imported here.
"""

from reference.advantages import (
    cut_value,
    cut_window_closed_form,
    discounted_sums,
    egae,
    expected_length,
    gae,
    length_adaptive_lambda,
    td_errors,
)
from reference.aggregate import constant_normaliser, row_sum, seq_mean_token_mean, seq_mean_token_sum, token_mean
from reference.batching import Window, advance, fill, status_after, successive_batches
from reference.groups import group_mean, group_std, grpo_advantage, rloo_advantage
from reference.masks import clamp, kept, moments, shape_advantages, whiten, window_mask
from reference.objectives import (
    clip,
    decoupled_ppo,
    dual_clip,
    kl_abs,
    kl_k1,
    kl_k2,
    kl_k3,
    lm_loss,
    ppo_clip,
    ratio,
    truncated_importance_weight,
)
from reference.values import (
    bootstrapped_returns,
    discounted_returns,
    explained_variance,
    lambda_returns,
    n_step_return,
    value_loss,
)

__all__ = [
    "Window",
    "advance",
    "bootstrapped_returns",
    "clamp",
    "clip",
    "constant_normaliser",
    "cut_value",
    "cut_window_closed_form",
    "decoupled_ppo",
    "discounted_returns",
    "discounted_sums",
    "dual_clip",
    "egae",
    "expected_length",
    "explained_variance",
    "fill",
    "gae",
    "group_mean",
    "group_std",
    "grpo_advantage",
    "kept",
    "kl_abs",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "lambda_returns",
    "length_adaptive_lambda",
    "lm_loss",
    "moments",
    "n_step_return",
    "ppo_clip",
    "ratio",
    "rloo_advantage",
    "row_sum",
    "seq_mean_token_mean",
    "seq_mean_token_sum",
    "shape_advantages",
    "status_after",
    "successive_batches",
    "td_errors",
    "token_mean",
    "truncated_importance_weight",
    "value_loss",
    "whiten",
    "window_mask",
]
