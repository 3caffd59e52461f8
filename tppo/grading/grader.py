"""Grading beside generation: a response is handed to the reward the moment its last token is there, while the engine
still generates the others.

A reward with ``submit`` (``tppo.grading.reward.SubmittingReward``) judges in its own workers; any other is called in
one thread.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from tppo.errors import RewardError
from tppo.grading.reward import Reward, SubmittingReward
from tppo.ranks.ranks import Ranks
from tppo.types import Continuation, Prompt, Response


class Grader:
    """Grades finished responses, each once, beside whatever the caller does meanwhile.

    reward: of the workload.
    decode: token ids to the text that the reward reads.
    seconds: the longest time without any verdict before the run stops; limits for single texts are the reward's own.
    """

    def __init__(self, reward: Reward, decode: Callable[[Sequence[int]], str], *, seconds: float, ranks: Ranks) -> None:
        self.reward, self.decode, self.seconds, self.ranks = reward, decode, seconds, ranks
        self._submit = reward.submit if isinstance(reward, SubmittingReward) else _InThread(reward).submit
        self._pending: dict[int, Future[float]] = {}

    def ahead(self, responses: Iterable[Response], cap: int) -> Callable[[Continuation], None]:
        """For an engine to call with each continuation it completes: hands in those that finish their response.

        responses: as they stand before the continuations. cap: total tokens of a response.
        """
        by_uid = {response.uid: response for response in responses}

        def done(continuation: Continuation) -> None:
            response = by_uid[continuation.uid]
            if continuation.stopped or len(response.tokens) + len(continuation.tokens) >= cap:
                self._hand_in(response, [*response.tokens, *continuation.tokens])

        return done

    def grade(self, responses: Iterable[Response]) -> None:
        """Set the reward of every finished response that has none yet; an unfinished one is never shown to the reward.

        Each rank judges a share of them. Raises RewardError, on all ranks, when the reward raises, returns anything but
        a finite number, or gives no verdict in time.
        """
        ranks = self.ranks
        open_ones = [r for r in responses if r.status.finished and r.reward is None]
        scores, failure = dict[int, float](), None
        try:
            # What this rank's engine completed is with the reward already; what no rank has is dealt out in turns.
            taken = {uid for of_rank in ranks.gather(set(self._pending)) for uid in of_rank}
            for i, response in enumerate(r for r in open_ones if r.uid not in taken):
                if i % ranks.size == ranks.rank:
                    self._hand_in(response, response.tokens)
            mine = [r for r in open_ones if r.uid in self._pending]
            self._await([self._pending[r.uid] for r in mine], mine)
            scores = {r.uid: _checked(r, self._pending[r.uid]) for r in mine}
        except Exception as error:
            failure = error
        finally:
            self._pending.clear()
        known = {uid: score for of_rank in ranks.together(scores, failure) for uid, score in of_rank.items()}
        for response in open_ones:
            response.reward = known[response.uid]

    def _hand_in(self, response: Response, tokens: Sequence[int]) -> None:
        try:
            self._pending[response.uid] = self._submit(response.prompt, self.decode(tokens))
        except Exception as error:
            raise _failed(response, error) from error

    def _await(self, futures: Iterable[Future[float]], responses: Sequence[Response]) -> None:
        left = set(futures)
        while left:
            done, left = wait(left, timeout=self.seconds, return_when=FIRST_COMPLETED)
            if not done:
                late = next(r for r in responses if not self._pending[r.uid].done())
                raise RewardError(
                    f"the reward function gave no verdict in {self.seconds:g} s (grading_seconds); it is at "
                    f"{_where(late)}. Give it a time limit of its own, or raise grading_seconds"
                )


def _checked(response: Response, future: Future[float]) -> float:
    try:
        score = float(future.result())
    except Exception as error:
        raise _failed(response, error) from error
    if not math.isfinite(score):
        raise RewardError(f"the reward of {_where(response)} is {score}: expected a finite number")
    return score


def _failed(response: Response, error: Exception) -> RewardError:
    return RewardError(f"the reward function failed on {_where(response)}: {type(error).__name__}: {error}")


def _where(response: Response) -> str:
    return f"prompt {response.prompt.id!r}, response {response.uid}"


class _InThread:
    """One daemon thread: a reward that never returns must not keep the process from ending."""

    def __init__(self, reward: Reward) -> None:
        self.reward = reward
        self.jobs: queue.SimpleQueue[tuple[Future[float], Prompt, str]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        if self.thread is None:
            self.thread = threading.Thread(target=self._serve, daemon=True, name="reward")
            self.thread.start()
        future: Future[float] = Future()
        self.jobs.put((future, prompt, text))
        return future

    def _serve(self) -> None:
        while True:
            future, prompt, text = self.jobs.get()
            try:
                future.set_result(self.reward(prompt, text))
            except Exception as error:
                future.set_exception(error)
