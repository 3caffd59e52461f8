"""Schedules: tokens are generated once, trained once, and read as often as the schedule says."""

from __future__ import annotations

from itertools import islice
from typing import Any

import numpy as np
import pytest

from sim.clock.lengths import Lengths
from sim.clock.schedules import PPO, TPPO, Partial, Task, rollout, schedule_of
from sim.clock.serving import Limits

TASK = Task(Lengths.log_normal(300, 1.0, 4000), slots=96, prompt_tokens=50)


@pytest.mark.parametrize("schedule", [PPO(), TPPO(64), TPPO(300, ignore_last=8), Partial(40), Partial(95)])
@pytest.mark.parametrize("limits", [None, Limits(max_rows=5), Limits(kv_tokens=6000)])
def test_every_token_of_a_finished_response_is_generated_once(schedule: Any, limits: Limits | None) -> None:
    made: dict[int, list[int]] = {}
    final: dict[int, int] = {}
    finished: list[int] = []
    for step in islice(rollout(schedule, TASK, limits=limits, replicas=4, equilibrium=False), 40):
        assert len(step.uid_S) == TASK.slots == len(set(step.uid_S.tolist()))
        for uid, length, start, new, done in zip(
            step.uid_S.tolist(), step.length_S.tolist(), step.start_S.tolist(), step.new_S.tolist(),
            step.done_S.tolist(), strict=True,
        ):  # fmt: skip
            assert start == sum(made.get(uid, []))
            made.setdefault(uid, []).append(new)
            final[uid] = length
            if done:
                finished.append(uid)
    assert len(finished) == len(set(finished)) > 100
    assert all(sum(made[uid]) == final[uid] for uid in finished)
    assert all(sum(made[uid]) < final[uid] for uid in set(made) - set(finished))
    # Every response but those still in flight finishes: none is lost.
    assert len(made) - len(finished) < TASK.slots


def test_partial_rollouts_stop_with_enough_responses() -> None:
    for step in islice(rollout(Partial(30), TASK, replicas=4), 10):
        assert step.done_S.sum() >= 30
        # One decode step fewer and there would not be enough.
        earlier = np.maximum(step.new_S - 1, 0)
        assert (step.start_S + earlier == step.length_S).sum() < 30
        assert (step.trained_S == np.where(step.done_S, step.length_S, 0)).all()


def test_windows_train_each_token_once_but_the_ignored_last() -> None:
    for step in islice(rollout(TPPO(64, ignore_last=8), TASK), 10):
        left = step.length_S - step.start_S
        assert (step.new_S == np.minimum(left, 64)).all()
        assert (step.new_S - step.trained_S == np.where(step.done_S, 0, 8)).all()


def test_training_reads_windows_from_the_first_token_and_whole_responses_once() -> None:
    for schedule, whole in ((PPO(), True), (Partial(40), True), (TPPO(64), False)):
        for step in islice(rollout(schedule, TASK, replicas=4), 10):
            sequence_S = TASK.prompt_tokens + step.start_S + step.new_S
            assert schedule.rereads(step, TASK).tolist() == sequence_S[step.done_S | (not whole)].tolist()


def test_the_ideal_trainer_reads_each_token_once() -> None:
    """Over a run from its start: every prompt and every generated token is read once, and nothing else."""
    ideal, read, prompts, new = TPPO(64, reread=False), 0, 0, 0
    for step in islice(rollout(ideal, TASK, equilibrium=False), 30):
        read += int(ideal.rereads(step, TASK).sum())
        prompts += TASK.prompt_tokens * int((step.start_S == 0).sum())
        new += int(step.new_S.sum())
    assert read == prompts + new


def test_the_schedule_of_a_window() -> None:
    assert schedule_of(None) == schedule_of(None, ignore_last=8) == PPO()
    assert schedule_of(64, ignore_last=8) == TPPO(64, 8)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: TPPO(8, ignore_last=8), "ignore_last"),
        (lambda: schedule_of(8, ignore_last=8), "ignore_last"),
        (lambda: Partial(0), "finish"),
        (lambda: Task(TASK.lengths, 0), "slots"),
        (lambda: next(rollout(Partial(97), TASK)), "slots"),
    ],
)
def test_nonsense_is_refused(make: Any, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        make()
