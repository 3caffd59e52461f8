"""Value pretraining, VC-PPO (arXiv 2503.01491): the policy is fixed, the critic learns Monte-Carlo returns until it
explains them; a later run starts with this critic.

    explained variance = 1 - Var(G - V) / Var(G)

A run whose warm-up is as long as the run trains the critic alone; there is no second loop. The paper stops "when value
loss and explained variance are satisfactory" (as VAPO, arXiv 2504.05118, puts it, after 50 steps); the two criteria of
``ValueStop`` make that a rule. The explained variance is that of ``explained_variance_finished`` in the metrics: by
values from before the step's update, so of data that the critic has not seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tppo.config.run import RunConfig, ValueStop
from tppo.errors import CheckpointError, ConfigError
from tppo.models.base import CriticModel
from tppo.runs.checkpoint.contents import Progress, load_critic
from tppo.runs.checkpoint.store import newest


def why_stop(series: Sequence[float], stop: ValueStop) -> str:
    """What ends value pretraining after these explained variances, one a step; empty when nothing does.

    >>> why_stop([0.1, 0.4, 0.6], ValueStop(explained_variance=0.5, over=2))
    'explained variance 0.500 reached 0.5'
    >>> why_stop([0.3, 0.3, 0.3], ValueStop(patience=2, over=1))
    'explained variance has not risen above 0.300 for 2 steps'
    >>> why_stop([0.3, 0.3], ValueStop(patience=2, over=1))
    ''
    """
    means = [sum(series[i - stop.over : i]) / stop.over for i in range(stop.over, len(series) + 1)]
    if not means:
        return ""
    if stop.explained_variance is not None and means[-1] >= stop.explained_variance:
        return f"explained variance {means[-1]:.3f} reached {stop.explained_variance:g}"
    best, since = means[0], 0
    for mean in means[1:]:
        best, since = (mean, 0) if mean > best + stop.least_gain else (best, since + 1)
    if stop.patience is not None and since >= stop.patience:
        return f"explained variance has not risen above {best:.3f} for {since} steps"
    return ""


def note(config: RunConfig, totals: Progress, metrics: dict[str, Any]) -> None:
    """Take in a step's metrics; sets ``totals.value_stop`` when it was the last. Other runs are left alone."""
    explained = metrics.get("explained_variance_finished")
    if _critic_alone(config) and explained is not None:
        totals.explained.append(explained)
        totals.value_stop = why_stop(totals.explained, config.value_pretraining)


def report(config: RunConfig, totals: Progress) -> dict[str, Any]:
    """For the summary of a run of value pretraining: why it ended, and how good the critic was."""
    if not _critic_alone(config):
        return {}
    last = totals.explained[-config.value_pretraining.over :]
    mean = sum(last) / len(last) if last else None
    return {"value_pretraining": {"ended": totals.value_stop or "all steps were done", "explained_variance": mean}}


def find_critic(config: RunConfig) -> Path | None:
    """The checkpoint that ``critic_start`` names, sound; None when it names none. Raises ConfigError."""
    if not config.critic_start:
        return None
    path = Path(config.critic_start).expanduser()
    if not path.is_dir():
        raise ConfigError("critic_start", config.critic_start, "the folder of a run or of one of its checkpoints")
    try:
        return newest(path)
    except CheckpointError as error:
        remedy = f"checkpoint.every = 0 saves none; {error}"
        raise ConfigError("critic_start", config.critic_start, "a folder with a sound checkpoint", remedy) from None


def start_critic(critic: CriticModel, checkpoint: Path) -> None:
    """Weights of another run's critic. Raises ConfigError when it has other weights; then nothing was changed."""
    try:
        load_critic(critic, checkpoint)
    except CheckpointError as error:
        raise ConfigError("critic_start", str(checkpoint), "a critic of this run's model", str(error)) from None


def _critic_alone(config: RunConfig) -> bool:
    return config.algorithm.value_target.warmup_steps >= config.steps
