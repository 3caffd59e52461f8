"""The training loop. One function, ten verbs, every scale: see :meth:`Trainer.step`.

Departures from the authors' port of T-PPO are listed in ``tppo.algorithms.tppo``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from tppo.algorithms.estimate import critic_tokens, estimate_advantages, value_targets
from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.engines.base import Engine
from tppo.engines.probe import probe
from tppo.engines.sharded import ShardedEngine
from tppo.fit.optim import ModelOptimizer
from tppo.fit.update import update_critic, update_policy
from tppo.grading.grader import Grader
from tppo.loop.held_out import EvalResult, evaluate
from tppo.loop.metrics import PhaseClock, critic_metrics, policy_metrics, rollout_metrics
from tppo.loop.slots import SlotWindow
from tppo.maths.finite import check_finite
from tppo.models.call import logprobs_of, values_of
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import full_weights
from tppo.types import Sampling, TokenBatch


class Trainer:
    """State of a run: models, optimisers, the responses in flight, and two counters.

    ``steps_done`` counts steps; ``version`` counts changes of the policy's weights. ``watch`` is told what begins.
    """

    def __init__(self, config: RunConfig, workload: Workload, engine: Engine, ranks: Ranks) -> None:
        self.config, self.workload, self.engine, self.ranks = config, workload, engine, ranks
        self.policy, self.critic = workload.policy, workload.critic
        assert isinstance(self.policy, torch.nn.Module)
        assert isinstance(self.critic, torch.nn.Module)
        self.policy_module: torch.nn.Module = self.policy
        self.policy_optimizer = ModelOptimizer(self.policy, config.policy)
        self.critic_optimizer = ModelOptimizer(self.critic, config.critic)
        self.reference = workload.reference
        self.window = SlotWindow(
            workload.prompts,
            slots=config.rollout.slots,
            group_size=config.rollout.group_size,
            window=config.window,
            max_response_tokens=config.rollout.max_response_tokens,
        )
        self.sampling = Sampling(config.rollout.temperature, workload.stop_ids, config.seed)
        self.grader = Grader(workload.reward, workload.decode, ranks, seconds=config.grading_seconds)
        self.watch: Callable[[str | None], None] = lambda phase: None
        self.steps_done = 0
        self.version = 0

    def step(self) -> dict[str, Any]:
        """One step of training; returns its metrics."""
        c, algorithm, clock = self.config, self.config.algorithm, PhaseClock(self.watch)
        cut: dict[str, Any] = {"max_tokens": c.compute.micro_batch_tokens, "packed": c.compute.packed}
        score: Callable[..., tuple[torch.Tensor, torch.Tensor]] = functools.partial(
            logprobs_of, temperature=c.rollout.temperature, chunk=c.compute.logit_chunk_tokens, **cut
        )

        responses = self.window.admit()
        with clock.phase("load_policy"):
            self.load_policy()
        with clock.phase("generate"):
            ahead = self.grader.ahead(responses, c.rollout.max_response_tokens)
            self.window.extend(self.engine.generate(self.window.requests(), self.sampling, ahead), self.version)
        with clock.phase("grade"):
            self.grader.grade(responses)
        batch = TokenBatch.of(responses)
        self.ranks.check_same("the tokens and rewards of this step", batch.tokens_N, batch.rewards_N)
        with clock.phase("values"):
            recompute = algorithm.value_target.old_values == "recompute"
            need_N = batch.window_N | batch.finished_S[batch.row_N] if recompute else batch.window_N
            values_N, cut_S = values_of(self.critic, batch, need_N, ~batch.finished_S, **cut)
            check_finite("values", values_N, step=self.steps_done, uids=batch.uids_S, row_N=batch.row_N)
            stored_N = self.window.store_values(batch.offsets, values_N)
            values_N = values_N if recompute else stored_N
        estimate = estimate_advantages(
            algorithm, batch, values_N, cut_S, window=c.window, max_length=c.rollout.max_response_tokens
        )
        trains = self.steps_done >= algorithm.value_target.warmup_steps
        scored_N = estimate.keep_N & trains  # nothing is scored that trains nothing
        with clock.phase("logprobs"):
            old_N, entropy_N = score(self.policy, batch, scored_N)
            check_finite("log-probabilities", old_N, step=self.steps_done, uids=batch.uids_S, row_N=batch.row_N)
        returns_N = value_targets(algorithm, batch, values_N, cut_S)
        with clock.phase("update_critic"):
            critic_stats = update_critic(
                self.critic,
                self.critic_optimizer,
                batch,
                returns_N=returns_N,
                old_values_N=values_N,
                loss=algorithm.value_target,
                compute=c.compute,
                step=self.steps_done,
                seed=c.seed,
            )
        metrics = {
            "step": self.steps_done,
            "policy_version": self.version,
            **rollout_metrics(responses, batch),
            **critic_metrics(batch, stored_N, values_N, cut_S, gamma=algorithm.advantage.gamma),
            **policy_metrics(batch, estimate, scored_N, old_N, entropy_N, self.version),
            **(self.engine.idle() if isinstance(self.engine, ShardedEngine) else {}),
            **critic_stats,
        }
        if trains:
            with clock.phase("update_policy"):
                reference_N = None
                if self.reference is not None:
                    reference_N, _ = score(self.reference, batch, estimate.keep_N)
                policy_stats = update_policy(
                    self.policy,
                    self.policy_optimizer,
                    batch,
                    estimate,
                    old_logprobs_N=old_N,
                    reference_N=reference_N,
                    loss=algorithm.policy_loss,
                    temperature=c.rollout.temperature,
                    compute=c.compute,
                    step=self.steps_done,
                    seed=c.seed,
                )
            metrics |= policy_stats
            self.version += policy_stats["policy_updates"] > 0
            clock.tokens["update_policy"] = int(scored_N.sum()) * c.policy.epochs
        self.window.retire()
        clock.tokens |= {"generate": int(batch.window_N.sum()), "values": int(need_N.sum())}
        clock.tokens |= {"logprobs": int(scored_N.sum())}
        clock.tokens["update_critic"] = int(critic_tokens(algorithm.value_target, batch).sum()) * c.critic.epochs
        self.steps_done += 1
        return metrics | clock.metrics()

    def load_policy(self) -> None:
        """Give the engine the newest weights, and check on a few tokens that it uses them."""
        dtype = torch.bfloat16 if self.config.compute.dtype == "bfloat16" else None
        self.engine.load_policy(full_weights(self.policy.weights(), dtype), self.version)
        context = self.workload.prompts(0).tokens or (0,)
        probe(self.engine, self.policy, context, self.ranks, bound=self.config.probe_bound, version=self.version)

    def evaluate(self) -> EvalResult:
        """Held-out evaluation of the policy as it is now."""
        self.load_policy()
        return evaluate(self.workload, self.engine, self.grader, self.config)
