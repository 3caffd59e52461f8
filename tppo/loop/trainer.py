"""The training loop. One function, ten verbs, every scale and every algorithm: see :meth:`Trainer.step`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from tppo.algorithms.base import Columns
from tppo.algorithms.check import checked_parts
from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.engines.base import Engine
from tppo.engines.probe import BOUNDS, probe
from tppo.errors import DataError, NonFiniteError
from tppo.fit.terms import pick
from tppo.fit.update import policy_now, update
from tppo.grading.grader import Grader
from tppo.loop.held_out import EvalResult, evaluate
from tppo.loop.metrics import PhaseClock, Step
from tppo.loop.networks import Networks
from tppo.loop.slots import Slots
from tppo.maths.finite import check_finite
from tppo.models.base import Model
from tppo.models.call import Call
from tppo.ranks.ranks import Ranks
from tppo.ranks.shard import full_weights
from tppo.types import Batch, Response, Sampling

PATIENCE = 64  # times the longest response, after which a step that finds no group to train on is an error


class Trainer:
    """State of a run: networks by name, the responses in flight, and two counters.

    ``steps_done`` counts steps; ``version`` counts changes of the policy's weights. ``watch`` is told what begins.
    """

    def __init__(
        self, config: RunConfig, workload: Workload, models: Mapping[str, Model], engine: Engine, ranks: Ranks
    ) -> None:
        """models: "policy", and the network of each auxiliary of the algorithm by its name."""
        self.config, self.workload, self.engine, self.ranks = config, workload, engine, ranks
        r, compute = config.rollout, config.compute
        self.parts = checked_parts(config.algorithm, r)
        self.call = Call(ranks, r.temperature, compute.micro_batch_tokens, compute.packed, compute.logit_chunk_tokens)
        self.networks = Networks(self.parts, models, config.policy, self.call)
        self.policy = self.networks.policy
        self.slots = Slots(
            workload.prompts, slots=r.slots, group_size=r.group_size, window=config.window,
            max_response_tokens=r.max_response_tokens, select=self.parts.select, lag=self.parts.lag,
            staleness=self.parts.staleness,
        )  # fmt: skip
        self.sampling = Sampling(r.temperature, workload.stop_ids, config.seed)
        self.grader = Grader(workload.reward, workload.decode, seconds=config.grading_seconds, ranks=ranks)
        self.watch: Callable[[str | None], None] = lambda phase: None
        self.steps_done = self.version = 0

    def step(self) -> Step:
        """One step of training; returns what it did."""
        clock = PhaseClock(self.watch)
        responses = self.collect(clock)  # 1 to 4: load, admit, generate, grade
        try:
            return self.train(responses, clock)
        except NonFiniteError as error:
            raise error.at_step(self.steps_done) from None

    def train(self, responses: list[Response], clock: PhaseClock) -> Step:
        """The rest of a step, on these responses. Raises NonFiniteError before anything is updated with a NaN."""
        p, networks, version, key = self.parts, self.networks, self.version, (self.config.seed, self.steps_done)
        batch = Batch.of(responses)
        self.ranks.check_same("the tokens and rewards of this step", batch.tokens_N, batch.rewards_N)
        train_N, trains = p.tokens(batch), bool(p.terms) and self.steps_done >= p.policy_from
        columns: Columns = {"rewards": batch.rewards_N, "behaviour": batch.behaviour_N, "train": train_N}
        for aux in p.auxiliaries:  # 5: values, reference
            with clock.phase(aux.name):
                columns |= aux.columns(networks.context(aux, key, version), batch, train_N)
        if (p.reads if trains else p.reads_first) & {"old", "entropy"}:  # 6: the policy before the update
            with clock.phase("logprobs", int(train_N.sum())):
                columns["old"], columns["entropy"] = self.call.logprobs(self.policy, batch, train_N)
                check_finite("log-probabilities", columns["old"], uids=batch.uids_S, row_N=batch.row_N)
        for reward in p.rewards:  # 7: rewards, advantages
            columns["rewards"] = reward.shape(columns["rewards"], batch, pick(columns, reward.reads))
        if p.advantage is not None:
            columns |= p.advantage.estimate(batch, pick(columns, p.advantage.reads), train_N)
        stats: dict[str, float | None] = {}
        for aux in p.auxiliaries:  # 8: critic
            with clock.phase(f"update_{aux.name}"):
                stats |= aux.fit(networks.context(aux, key, version), batch, columns)
        if trains:  # 9: policy
            with clock.phase("update_policy", int(train_N.sum()) * self.config.policy.epochs):
                stats |= update(
                    self.policy, networks.optimizers["policy"], batch, p.terms, columns, call=self.call, now=policy_now,
                    name="policy", key=key, live=networks.live(batch, key, version), after=networks.follow,
                )  # fmt: skip
            self.version += bool(stats["policy_updates"])
        self.steps_done += 1
        stats |= self.engine.metrics()
        return Step(key[1], version, responses, batch, columns, trains, self.slots, stats, clock)  # 10: .metrics

    def collect(self, clock: PhaseClock) -> list[Response]:
        """Rounds of generation until the algorithm has what it trains on: one, unless it waits for whole groups."""
        cap, wanted = self.config.rollout.max_response_tokens, self.parts.groups or 1
        clock.count("generate", self.slots.new_tokens)
        with clock.phase("load_policy"):
            self.load_policy()
        for left in reversed(range(PATIENCE * -(-cap // self.slots.window))):
            responses = self.slots.admit(self.version)
            with clock.phase("generate"):
                ahead = self.grader.ahead(responses, cap)
                answers = self.engine.generate(self.slots.requests(), self.sampling, ahead)
                clock.count("generate", self.slots.extend(answers, self.version))
            with clock.phase("grade"):
                self.grader.grade(responses)
            if self.slots.settle(self.version) >= (wanted if left else 1) and (taken := self.slots.take()):
                return taken  # in the end with fewer groups: the other prompts are solved, or too hard
        raise DataError(f"too few groups to train on after {PATIENCE} longest responses: do all rewards agree?")

    def load_policy(self) -> None:
        """Give the engine the newest weights, and check on a few tokens that it uses them."""
        narrow = torch.bfloat16 if self.config.compute.dtype == "bfloat16" else None
        self.engine.load_policy(full_weights(self.policy.weights(), narrow), self.version)
        prompts = [self.workload.prompts(i).tokens or (0,) for i in range(2)]
        bound = self.config.probe_bound or BOUNDS[self.config.narrow]
        probe(self.engine, self.policy, prompts, bound=bound, version=self.version, ranks=self.ranks)

    def evaluate(self) -> EvalResult:
        """Held-out evaluation of the policy as it is now."""
        self.load_policy()
        return evaluate(self.workload, self.engine, self.grader, self.config)
