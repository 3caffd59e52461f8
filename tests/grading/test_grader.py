"""Grading beside generation: when texts are handed in, what comes back, and what stops a run."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

import pytest

from tests.support.helpers import response, small_token_mdp
from tppo.errors import RewardError
from tppo.grading.grader import Grader
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.types import Continuation, Prompt, Status


def decode(tokens: Any) -> str:
    return " ".join(map(str, tokens))


def test_a_response_is_handed_in_when_its_last_token_is_there() -> None:
    """Stopped, or at the cap: at once, with the tokens of earlier windows. Cut by the window: never."""
    seen: dict[str, str] = {}

    def reward(prompt: Prompt, text: str) -> float:
        seen[prompt.id] = text
        return float(len(text.split()))

    grader = Grader(reward, decode, seconds=5, ranks=Ranks())
    rows = [response(uid, [7, 8], status=Status.UNFINISHED) for uid in range(3)]
    done = grader.ahead(rows, cap=4)
    done(Continuation(0, (1,), (-1.0,), stopped=True))
    done(Continuation(1, (1, 2), (-1.0, -1.0), stopped=False))
    done(Continuation(2, (1,), (-1.0,), stopped=False))
    deadline = time.monotonic() + 5
    while len(seen) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert seen == {"p0": "7 8 1", "p1": "7 8 1 2"}
    for row, tokens, status in ((rows[0], [1], Status.EOS), (rows[1], [1, 2], Status.LENGTH)):
        row.extend(tokens, [-1.0] * len(tokens), 1)
        row.status = status
    grader.grade(rows)
    assert [row.reward for row in rows] == [3.0, 4.0, None]
    grader.grade(rows)  # nothing is graded twice
    assert len(seen) == 2


def test_grading_overlaps_generation() -> None:
    """The engine's first continuation is judged before its last one is made."""
    config = small_token_mdp(rollout__slots=16)
    trainer = build_trainer(config)
    judged = threading.Event()
    inner = trainer.grader.reward

    def reward(prompt: Prompt, text: str) -> float:
        score = inner(prompt, text)
        judged.set()
        return score

    trainer.grader = Grader(reward, trainer.workload.decode, seconds=5, ranks=Ranks())
    generate = trainer.engine.generate
    waited: list[bool] = []

    def slow(requests: Any, sampling: Any, done: Any) -> Any:
        """Engine that pauses after the first finished response until it is judged."""

        def then(continuation: Continuation) -> None:
            done(continuation)
            if not waited and continuation.stopped:
                waited.append(judged.wait(5))

        return generate(requests, sampling, then)

    trainer.engine.generate = slow  # type: ignore[method-assign]
    for _ in range(3):
        trainer.step()
    assert waited == [True]


def test_an_engine_that_never_reports_early_changes_nothing() -> None:
    one, two = build_trainer(small_token_mdp()), build_trainer(small_token_mdp())
    generate = two.engine.generate
    two.engine.generate = lambda requests, sampling, done: generate(requests, sampling)  # type: ignore[method-assign]
    for _ in range(4):
        a, b = one.step().metrics, two.step().metrics
        assert {k: v for k, v in a.items() if "second" not in k} == {k: v for k, v in b.items() if "second" not in k}


def test_a_reward_with_workers_of_its_own() -> None:
    class Workers:
        def __call__(self, prompt: Prompt, text: str) -> float:
            raise AssertionError("submit is there to be used")

        def submit(self, prompt: Prompt, text: str) -> Future[float]:
            future: Future[float] = Future()
            threading.Timer(0.01, lambda: future.set_result(0.25)).start()
            return future

    rows = [response(0, [1], reward=None), response(1, [2], reward=None)]
    Grader(Workers(), decode, seconds=5, ranks=Ranks()).grade(rows)
    assert [row.reward for row in rows] == [0.25, 0.25]


def test_what_stops_a_run_names_the_response() -> None:
    def broken(prompt: Prompt, text: str) -> float:
        raise KeyError("no such column")

    for reward, match in [(broken, "prompt 'p3', response 3: KeyError"), (lambda p, t: float("nan"), "'p3'.*is nan")]:
        with pytest.raises(RewardError, match=match):
            Grader(reward, decode, seconds=5, ranks=Ranks()).grade([response(3, [1], reward=None)])


def test_a_reward_that_never_returns_stops_the_run() -> None:
    forever = threading.Event()
    grader = Grader(lambda p, t: float(forever.wait(60)), decode, seconds=0.05, ranks=Ranks())
    with pytest.raises(RewardError, match=r"no verdict in 0\.05 s.*'p4', response 4"):
        grader.grade([response(4, [1], reward=None)])
    forever.set()


def test_slow_rewards_may_take_their_time_together() -> None:
    """The limit is on silence, not on the sum."""
    grader = Grader(lambda p, t: time.sleep(0.03) or 1.0, decode, seconds=0.3, ranks=Ranks())
    rows = [response(uid, [1], reward=None) for uid in range(15)]
    grader.grade(rows)
    assert all(row.reward == 1.0 for row in rows)
