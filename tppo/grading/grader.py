"""Grading beside generation: a response is handed to the reward the moment its last token is there, while the engine
still generates the others.

A reward with ``submit`` (``tppo.grading.reward.SubmittingReward``) judges in its own workers; any other is called in
one thread. Whatever it raises there, an exit or an interrupt too, stops the run with the response named; only an
interrupt of the thread that waits is the user's.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any

from tppo.environment import in_one_line, warn
from tppo.errors import RewardError
from tppo.grading.guard import guarded
from tppo.grading.reward import CountingReward, Reward, SubmittingReward, as_score
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
        self._submit = (
            guarded(reward.submit) if isinstance(reward, SubmittingReward) else _InThread(guarded(reward)).submit
        )
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
            self._await(mine)
            scores = {r.uid: _checked(r, self._pending[r.uid]) for r in mine}
        except Exception as error:
            failure = error
        finally:
            self._pending.clear()
        known = {uid: score for of_rank in ranks.together(scores, failure) for uid, score in of_rank.items()}
        for response in open_ones:
            response.reward = known[response.uid]

    def report(self) -> dict[str, Any]:
        """How the verdicts of the reward in use came about, on all ranks together; nothing where it does not count."""
        of_ranks = [found for found in self.ranks.gather(_counted(self.reward)) if found is not None]
        if not of_ranks:
            return {}
        names = dict.fromkeys(name for counts, _ in of_ranks for name in counts)
        verdicts = {name: sum(counts.get(name, 0) for counts, _ in of_ranks) for name in names}
        return {"verdicts": verdicts, "slowest_verdict_seconds": max(slowest for _, slowest in of_ranks)}

    def _hand_in(self, response: Response, tokens: Sequence[int]) -> None:
        text = self.decode(tokens)
        try:
            future = self._submit(response.prompt, text)
            if not isinstance(future, Future):
                raise TypeError(f"submit returned a {type(future).__name__}, expected a concurrent.futures.Future")
            future.done()  # of a subclass that is not made, this raises
        except KeyboardInterrupt:
            raise  # of this thread: the user's
        except BaseException as error:
            raise _failed(response, error) from error
        self._pending[response.uid] = future

    def _await(self, responses: Sequence[Response]) -> None:
        """Until all of them are judged. Each future tells of its end itself: `concurrent.futures.wait` would wait for
        ever for one that was cancelled.
        """
        done: queue.SimpleQueue[object] = queue.SimpleQueue()
        futures = {id(future): future for future in (self._pending[r.uid] for r in responses)}.values()
        for future in futures:
            future.add_done_callback(done.put)
        try:
            for _ in futures:
                done.get(timeout=self.seconds)
        except queue.Empty:
            late = next((r for r in responses if not self._pending[r.uid].done()), responses[-1])
            raise RewardError(
                f"the reward function gave no verdict in {self.seconds:g} s (grading_seconds); it is at "
                f"{_where(late)}. Give it a time limit of its own, or raise grading_seconds"
            ) from None


def _counted(reward: object) -> tuple[dict[str, int], float] | None:
    """What a reward counted; None where it does not count, or only has attributes of the same names."""
    try:
        if isinstance(reward, CountingReward):
            return {str(name): int(count) for name, count in reward.counts.items()}, float(reward.slowest)
    except Exception as error:  # of a reward of anyone's: the run is over, and its results are not lost for this
        warn(f"the reward's counts are not in the summary: {in_one_line(error)}")
    return None


def _checked(response: Response, future: Future[float]) -> float:
    if future.cancelled():
        raise RewardError(f"the reward function gave up on {_where(response)}: its future was cancelled")
    if (error := future.exception()) is not None:  # not raised: an interrupt in there is not the user's
        raise _failed(response, error) from error
    try:
        return as_score(future.result())
    except ValueError as error:
        raise RewardError(f"the reward of {_where(response)} {error}") from None


def _failed(response: Response, error: BaseException) -> RewardError:
    return RewardError(f"the reward function failed on {_where(response)}: {in_one_line(error)}")


def _where(response: Response) -> str:
    return f"prompt {response.prompt.id!r}, response {response.uid}"


class _InThread:
    """One daemon thread: a reward that never returns must not keep the process from ending."""

    def __init__(self, reward: Callable[[Prompt, str], float]) -> None:
        self.reward = reward
        self.jobs: queue.SimpleQueue[tuple[Future[float], Prompt, str]] = queue.SimpleQueue()
        self.thread: threading.Thread | None = None

    def submit(self, prompt: Prompt, text: str) -> Future[float]:
        if self.thread is None or not self.thread.is_alive():  # in a process that was forked since, it is not
            self.jobs = queue.SimpleQueue()
            self.thread = threading.Thread(target=self._serve, daemon=True, name="reward")
            self.thread.start()
        future: Future[float] = Future()
        self.jobs.put((future, prompt, text))
        return future

    def _serve(self) -> None:
        while True:
            future, prompt, text = self.jobs.get()
            try:
                score = self.reward(prompt, text)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(score)
