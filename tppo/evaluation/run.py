"""Sampling k responses to each problem, graded while the next batch is generated, resumable at any moment."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

from tqdm import tqdm

from tppo.engines.base import Engine
from tppo.errors import DataError
from tppo.evaluation.store import EvalFolder, Generation
from tppo.grading.answers import find_answer
from tppo.grading.reward import SubmittingReward
from tppo.ranges import HOT, SEED, TOKENS, Range
from tppo.types import EVALUATION_UIDS, Continuation, GenerationRequest, Prompt, Sampling


@dataclass(frozen=True)
class EvalSettings:
    """What decides the responses, beside model and problems."""

    k: Annotated[int, Range(1, 1000, unit="samples")] = 32
    """Responses to each problem."""
    max_new_tokens: Annotated[int, Range(1, TOKENS, unit="tokens")] = 24576
    """Cap of a response."""
    temperature: Annotated[float, Range(0, HOT)] = 1.0
    """Of sampling; 0 is greedy."""
    top_p: Annotated[float, Range(0, 1, above=True)] = 0.7
    """Nucleus; 1 is off. VAPO (arXiv 2504.05118) evaluates with temperature 1.0 and top-p 0.7."""
    seed: Annotated[int, Range(0, SEED)] = 0
    """Of sampling."""


def response_uid(problem: str, sample: int) -> int:
    """The response's key of random numbers: of its problem and its number alone, not of what else is asked.

    >>> response_uid("aime-2024/60", 1) == response_uid("aime-2024/60", 1) != response_uid("aime-2024/60", 0)
    True
    """
    digest = hashlib.sha256(f"{sample} {problem}".encode()).digest()
    return EVALUATION_UIDS + int.from_bytes(digest[:8], "big") % 2**62


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """SHA-256 of ids, tokens and truths, for the manifest."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(repr((prompt.id, prompt.tokens, prompt.truth)).encode())
    return digest.hexdigest()


def sample_responses(
    prompts: Sequence[Prompt],
    settings: EvalSettings,
    folder: EvalFolder,
    *,
    open_engine: Callable[[], Engine],
    stop_ids: frozenset[int],
    decode: Callable[[Sequence[int]], str],
    grader: SubmittingReward,
    batch: int = 64,
    progress: bool = True,
) -> list[list[Generation]]:
    """All responses [problem][sample]: those in the folder, and new ones for what is missing.

    The engine is opened only when something is missing, must hold the model to be judged, and is closed here. First
    sample 0 of every problem, then sample 1, and so on. A response is graded as soon as it is complete; a batch is on
    disk as soon as it is graded, while the next is generated. Batch size and interruptions do not change random
    numbers or the order of lines.
    Raises DataError when the folder holds a response that is not asked for.
    """
    plan = {(prompt.id, sample): prompt for sample in range(settings.k) for prompt in prompts}
    done = {(g.problem, g.sample): g for g in folder.done}
    if len(plan) < len(prompts) * settings.k:
        raise DataError("two problems have the same id: expected unique ids")
    if stray := set(done) - set(plan):
        raise DataError(f"{folder.path} holds responses that are not asked for: {sorted(stray)[:3]}")
    missing = [key for key in plan if key not in done]
    if missing:
        right = sum(g.correct for g in done.values())
        sampling = Sampling(settings.temperature, stop_ids, settings.seed, settings.top_p)
        engine = open_engine()
        bar = tqdm(
            total=len(plan), initial=len(done), desc="evaluate", unit="response", disable=not progress, file=sys.stderr
        )
        # One thread writes, so batches stay in order; leaving the block waits for all that was generated.
        try:
            with bar, ThreadPoolExecutor(max_workers=1) as writer:
                written: Future[list[Generation]] | None = None
                for first in range(0, len(missing), batch):
                    keys = {response_uid(*key): key for key in missing[first : first + batch]}
                    graded: dict[int, tuple[Future[float], Generation]] = {}

                    def hand_in(answer: Continuation, keys: Any = keys, graded: Any = graded) -> None:
                        problem, sample = keys[answer.uid]
                        tokens = [token for token in answer.tokens if token not in stop_ids]
                        new = _generation(problem, sample, settings.seed, answer, decode(tokens))
                        graded[answer.uid] = grader.submit(plan[problem, sample], new.text), new
                        bar.update()

                    requests = [
                        GenerationRequest(uid, plan[key].tokens, 0, settings.max_new_tokens)
                        for uid, key in keys.items()
                    ]
                    engine.generate(requests, sampling, hand_in)
                    if written is not None:
                        right += _note(done, written.result())
                        bar.set_postfix(solved=f"{right / len(done):.3f}", refresh=False)
                    written = writer.submit(_write, folder, [graded[uid] for uid in keys])
                assert written is not None
                _note(done, written.result())
        finally:
            engine.close()
    return [[done[prompt.id, sample] for sample in range(settings.k)] for prompt in prompts]


def _note(done: dict[tuple[str, int], Generation], new: list[Generation]) -> int:
    done.update({(g.problem, g.sample): g for g in new})
    return sum(g.correct for g in new)


def _generation(problem: str, sample: int, seed: int, answer: Continuation, text: str) -> Generation:
    """The response, its verdict still to come."""
    return Generation(
        problem=problem,
        sample=sample,
        uid=answer.uid,
        seed=seed,
        tokens=len(answer.tokens),
        finish="stop" if answer.stopped else "length",
        answer=find_answer(text),
        correct=False,
        text=text,
    )


def _write(folder: EvalFolder, graded: list[tuple[Future[float], Generation]]) -> list[Generation]:
    generations = [dataclasses.replace(g, correct=verdict.result() > 0) for verdict, g in graded]
    folder.append(generations)
    return generations
