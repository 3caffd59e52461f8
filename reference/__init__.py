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
from reference.baselines import (
    batch_scaled,
    energy_advantage,
    length_baseline_advantage,
    posterior_weights,
    prompt_mean_scale,
    reference_margin,
    signed_weights,
    success_scaled_advantage,
)
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
from reference.shaping import concise_outcomes, kimi_length_reward, linear_length_outcomes, overlong_penalty
from reference.surrogates import gate_loss, square_loss, weighted_loss
from reference.values import (
    bootstrapped_returns,
    discounted_returns,
    explained_variance,
    lambda_returns,
    n_step_return,
    value_loss,
)
from reference.weights import bernoulli_kl, levelled, on_policy_enough, trusted, weight

__all__ = [
    "Window",
    "advance",
    "batch_scaled",
    "bernoulli_kl",
    "bootstrapped_returns",
    "clamp",
    "clip",
    "concise_outcomes",
    "constant_normaliser",
    "cut_value",
    "cut_window_closed_form",
    "decoupled_ppo",
    "discounted_returns",
    "discounted_sums",
    "dual_clip",
    "egae",
    "energy_advantage",
    "expected_length",
    "explained_variance",
    "fill",
    "gae",
    "gate_loss",
    "group_mean",
    "group_std",
    "grpo_advantage",
    "kept",
    "kimi_length_reward",
    "kl_abs",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "lambda_returns",
    "length_adaptive_lambda",
    "length_baseline_advantage",
    "levelled",
    "linear_length_outcomes",
    "lm_loss",
    "moments",
    "n_step_return",
    "on_policy_enough",
    "overlong_penalty",
    "posterior_weights",
    "ppo_clip",
    "prompt_mean_scale",
    "ratio",
    "reference_margin",
    "rloo_advantage",
    "row_sum",
    "seq_mean_token_mean",
    "seq_mean_token_sum",
    "shape_advantages",
    "signed_weights",
    "square_loss",
    "status_after",
    "success_scaled_advantage",
    "successive_batches",
    "td_errors",
    "token_mean",
    "truncated_importance_weight",
    "trusted",
    "value_loss",
    "weight",
    "weighted_loss",
    "whiten",
    "window_mask",
]
