"""The names of all metrics of a step, each declared once, with its unit and meaning.

Metrics of an algorithm outside this library need not be here. ``seconds_PHASE`` and ``tokens_per_second_PHASE`` are
times of the phases of a step; a phase of an auxiliary is called by its name, and ``update_NAME`` where it trains.
"""

METRICS = {
    # Progress.
    "step": "steps before this one",
    "policy_version": "changes of the policy's weights before this step",
    "train_seconds": "training so far, without evaluation [s]",
    "tokens_generated": "tokens generated in training so far",
    # Generation.
    "new_tokens": "tokens generated in this step",
    "finished": "responses in this step's batch that have ended",
    "unfinished": "responses that go on in the next step",
    "waiting": "responses that have ended and wait for their group",
    "reward": "mean reward of the finished",
    "solve_rate": "share of the finished with a positive reward",
    "length_mean": "of the finished [tokens]",
    "length_median": "of the finished [tokens]",
    "length_p99": "of the finished [tokens]",
    "length_max": "of the finished [tokens]",
    "in_flight_length_max": "longest response of the batch so far [tokens]",
    "windows_max": "most windows of a response of the batch",
    "ended_by_eos": "finished by a stop token",
    "ended_by_length": "finished by the total cap",
    "ended_by_empty": "finished without a token",
    "generate_idle": "share of generation that the average replica waited for the slowest",
    # The batch that the policy trains on.
    "trained_tokens": "tokens that trained the policy",
    "dropped_tokens": "tokens of this window that did not",
    "advantage_mean": "before whitening, over tokens that train",
    "advantage_std": "before whitening, over tokens that train",
    "advantage_unfinished_mean": "before whitening, over tokens of unfinished responses",
    "lambda_mean": "lambda of the advantage, over responses",
    "entropy": "of the policy before the update, over tokens that train [nats]",
    "target_version_span": "age of the oldest token of a finished response [policy versions]",
    "engine_gap_mean": "mean |log-prob of trainer - of engine| over tokens that train [nats]",
    "engine_gap_max": "the largest of them [nats]",
    "engine_kl": "KL from engine to trainer by k3 [nats]",
    # Updates.
    "policy_updates": "steps of the policy's optimiser",
    "policy_grad_norm": "before clipping, mean over updates",
    "policy_loss": "the objective",
    "lm_loss": "negative log-likelihood of responses with a positive reward [nats a token]",
    "update_entropy": "of the policy during the update [nats]",
    "reference_kl": "KL to the initial policy during the update [nats]",
    "policy_kl": "KL from the policy before the update to that during it, by k3 [nats]",
    "ratio_mean": "probability ratio during the update",
    "ratio_max": "the largest of them",
    "clip_fraction_high": "share of tokens that the upper clip bound",
    "clip_fraction_low": "share of tokens that the lower clip bound",
    "dual_clip_fraction": "share of tokens that the dual clip bound",
    "weight_mean": "weight of the policy's tokens during the update",
    "bounded_fraction": "share of tokens whose weight is not their ratio",
    "correction_mean": "weight that corrects for the policy that sampled",
    "masked_fraction": "share of tokens that left the loss during the update",
    "critic_updates": "steps of the critic's optimiser",
    "critic_grad_norm": "before clipping, mean over updates",
    "critic_loss": "half the squared error",
    "value_clip_fraction": "share of tokens that the value clip bound",
    # The critic, when its values were used.
    "value_mean": "over this window's tokens",
    "explained_variance_finished": "of the return, by values of the last window of finished responses",
    "explained_variance_unfinished": "of the return, by values from while the response was open",
    "cut_gap": "mean |V(s_l) - V(s_{l-1})| where the window cut",
    # Held-out evaluation.
    "held_out_solve_rate": "share of held-out problems solved",
    "held_out_standard_error": "of that share, over problems",
    "held_out_reward": "mean reward",
    "held_out_length_mean": "[tokens]",
    "held_out_truncated": "share that hit the cap",
}
PHASES = ("seconds_", "tokens_per_second_")
"""Beginnings of the names of times."""


def is_declared(name: str) -> bool:
    """Whether a metric has its name from here.

    >>> is_declared("solve_rate"), is_declared("seconds_generate"), is_declared("solverate")
    (True, True, False)
    """
    return name in METRICS or name.startswith(PHASES)
