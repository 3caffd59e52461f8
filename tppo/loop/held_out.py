"""Held-out evaluation: whole responses, no window, average over samples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.engines.base import Engine
from tppo.grading.grader import Grader
from tppo.types import EVALUATION_UIDS, GenerationRequest, Response, Sampling, Status


@dataclass(frozen=True)
class EvalResult:
    """solve_rate: mean over problems of the share of samples with positive reward. standard_error: of that mean, over
    problems. solved: problem id to whether each of its samples has a positive reward. lengths: of the responses
    [tokens]. truncated: share that hit the cap.
    """

    solve_rate: float
    standard_error: float
    reward: float
    solved: dict[str, tuple[bool, ...]]
    lengths: tuple[int, ...]
    truncated: float

    def summary(self) -> dict[str, float]:
        """The figures that go into metrics."""
        return {
            "held_out_solve_rate": self.solve_rate,
            "held_out_standard_error": self.standard_error,
            "held_out_reward": self.reward,
            "held_out_length_mean": float(np.mean(self.lengths)),
            "held_out_truncated": self.truncated,
        }


def evaluate(workload: Workload, engine: Engine, grader: Grader, config: RunConfig) -> EvalResult:
    """Sample ``evaluation.samples`` responses to each of the first ``evaluation.problems`` held-out problems.

    The same problems and the same random numbers every time, so two evaluations differ by the policy alone. The engine
    must already hold the policy to be judged.
    """
    e, cap = config.evaluation, config.rollout.max_response_tokens
    responses = [
        Response(uid=EVALUATION_UIDS + i * e.samples + k, group=i, prompt=workload.held_out(i))
        for i in range(e.problems)
        for k in range(e.samples)
    ]
    requests = [GenerationRequest(r.uid, r.prompt.tokens, 0, cap) for r in responses]
    sampling = Sampling(temperature=e.temperature, stop_ids=workload.stop_ids, seed=config.seed, top_p=e.top_p)
    for response, c in zip(responses, engine.generate(requests, sampling, grader.ahead(responses, cap)), strict=True):
        response.extend(c.tokens, c.logprobs, 0)
        response.status = (Status.EOS if c.tokens else Status.EMPTY) if c.stopped else Status.LENGTH
    grader.grade(responses)
    rewards = np.array([r.reward for r in responses], dtype=float).reshape(e.problems, e.samples)
    rates = (rewards > 0).mean(axis=1)
    return EvalResult(
        solve_rate=float(rates.mean()),
        standard_error=float(rates.std(ddof=1) / np.sqrt(len(rates))) if len(rates) > 1 else float("nan"),
        reward=float(rewards.mean()),
        solved={responses[i * e.samples].prompt.id: tuple((row > 0).tolist()) for i, row in enumerate(rewards)},
        lengths=tuple(len(r.tokens) for r in responses),
        truncated=float(np.mean([r.status is Status.LENGTH for r in responses])),
    )
