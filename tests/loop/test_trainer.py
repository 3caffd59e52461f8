"""The loop: identities, bookkeeping, determinism, faults."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from paper_repro.recipes.registry import RECIPES
from sim import exact
from tests.support.helpers import leaves, small_token_mdp, states_equal, timeless, trainer_with
from tppo.algorithms import PPO, TPPO
from tppo.algorithms.base import Auxiliary, Columns, Context, Parts, Rollout, Select, Term, Verdict
from tppo.algorithms.parts.select import mixed_group, whole_group
from tppo.config.registry import with_algorithm
from tppo.config.run import RunConfig
from tppo.data.workload import Workload
from tppo.engines.base import Wrapped
from tppo.errors import ConfigError, DataError, NonFiniteError, RewardError
from tppo.fit.terms import Loss, Now
from tppo.loop.metrics import Step
from tppo.loop.trainer import PATIENCE, Trainer
from tppo.maths.objectives import ppo_loss
from tppo.models.base import Model, PolicyModel
from tppo.runs.build import build_trainer
from tppo.types import Batch, Continuation, Prompt, Response


def run(config: RunConfig, steps: int = 5) -> tuple[Trainer, list[Step]]:
    trainer = build_trainer(config)
    return trainer, [trainer.step() for _ in range(steps)]


def network(trainer: Trainer, name: str) -> Any:
    """A table of the run, or a transformer."""
    return trainer.networks.models[name]


def test_same_seed_same_bits_other_seed_other_bits() -> None:
    one, steps_one = run(small_token_mdp())
    two, steps_two = run(small_token_mdp())
    other, _ = run(small_token_mdp(seed=1))
    assert [timeless(s) for s in steps_one] == [timeless(s) for s in steps_two]
    for name in ("policy", "critic"):
        assert states_equal(network(one, name), network(two, name))
        assert not states_equal(network(one, name), network(other, name))


def test_every_token_trains_once_and_every_finished_token_fits_the_critic_once() -> None:
    ignore = 2
    trainer, steps = run(small_token_mdp(algorithm__warmup_steps=0, algorithm__window=5), steps=12)
    trained: Counter[tuple[int, int]] = Counter()
    generated: Counter[tuple[int, int]] = Counter()
    fitted: Counter[tuple[int, int]] = Counter()
    dropped = set()
    [critic] = trainer.parts.auxiliaries
    [regression] = critic.terms()
    assert regression.tokens is not None
    for step in steps:
        batch, keep = step.batch, step.columns["train"]
        fits = regression.tokens(batch)
        assert batch.num_responses == 16  # the slots are constant
        assert step.trains
        assert (step.metrics["trained_tokens"], step.metrics["critic_updates"] > 0) == (
            int(keep.sum()),
            bool(fits.any()),
        )
        position = torch.arange(len(keep)) - batch.offsets[batch.row_N]
        for n, (row, t) in enumerate(zip(batch.row_N.tolist(), position.tolist(), strict=True)):
            key = (batch.uids_S[row], t)
            generated[key] += bool(batch.window_N[n])
            trained[key] += bool(keep[n])
            fitted[key] += bool(fits[n])
            if batch.window_N[n] and not keep[n]:
                assert not batch.finished_S[row]
                assert t >= int(batch.lengths_S[row]) - ignore
                dropped.add(key)
    assert set(generated.values()) == {1}
    assert dropped  # the filter was exercised
    assert all(count == (key not in dropped) for key, count in trained.items())
    open_now = {r.uid for r in trainer.slots.in_flight}
    assert all(count == (key[0] not in open_now) for key, count in fitted.items())
    assert any(math.ceil(t / 5) > 1 for key, t in fitted if fitted[key, t])  # some responses took several windows


def test_context_of_a_carried_response_is_its_own_text() -> None:
    """Each sequence is prompt plus all tokens so far, with the versions of the policies that sampled them."""
    _, steps = run(small_token_mdp(algorithm__warmup_steps=0, algorithm__window=5), steps=8)
    texts: dict[int, list[int]] = {}
    for step in steps:
        batch = step.batch
        assert (step.sampled_by, step.trains) == (step.number, True)
        for row, uid in enumerate(batch.uids_S):
            ids = batch.sequences[row].tolist()
            before = texts.get(uid, ids[: int(batch.prompt_lengths_S[row])])
            assert ids[: len(before)] == before
            versions = batch.versions_N[batch.offsets[row] : batch.offsets[row + 1]]
            assert (versions.diff() >= 0).all()
            new = batch.window_N[batch.offsets[row] : batch.offsets[row + 1]]
            assert set(versions[new].tolist()) == {step.number}
            texts[uid] = ids
    assert max(len(r.window_starts) for r in steps[-1].responses) > 1


@pytest.mark.parametrize("name", sorted(n for n in RECIPES if f"{n}-ppo" in RECIPES))
def test_window_of_the_cap_is_ppo_bit_for_bit(name: str) -> None:
    """EGAE, the filter and the schedule of T-PPO with window = cap, against plain GAE over whole responses."""
    small = {
        "steps": 5, "rollout__slots": 16, "rollout__group_size": 4, "policy__mini_batch": 8,
        "algorithm__critic__mini_batch": 8, "algorithm__warmup_steps": 1,
    }  # fmt: skip
    tppo = RECIPES[name]().with_values(**small, **SMALL_TASK.get(name, {}))
    tppo = tppo.with_values(algorithm__window=tppo.rollout.max_response_tokens)
    ppo = RECIPES[f"{name}-ppo"]().with_values(**small, **SMALL_TASK.get(name, {}))
    assert isinstance(tppo.algorithm, TPPO)
    assert type(ppo.algorithm) is PPO
    assert tppo.algorithm.ignore_last > 0
    one, steps_one = run(tppo)
    two, steps_two = run(ppo)
    start = build_trainer(ppo)
    for model in ("policy", "critic"):
        assert not states_equal(network(two, model), network(start, model))
        assert states_equal(network(one, model), network(two, model))
    for a, b in zip(steps_one, steps_two, strict=True):
        assert a.columns.keys() == b.columns.keys()
        assert all(torch.equal(a.columns[c], b.columns[c]) for c in a.columns if c != "stored_values")
        assert timeless(a) == timeless(b)
    truncated, _ = run(tppo.with_values(algorithm__window=tppo.algorithm.ignore_last + 3))
    assert not states_equal(truncated.policy, two.policy)  # and a real window is something else


SMALL_TASK: dict[str, dict[str, Any]] = {
    "token-mdp": {"rollout__max_response_tokens": 32},
    "toy-language": {"rollout__max_response_tokens": 64},
}


def test_warm_up_trains_the_critic_only() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__warmup_steps=3))
    start = build_trainer(small_token_mdp())
    for _ in range(3):
        step = trainer.step()
        assert not step.trains
        assert not {"old", "entropy"} & step.columns.keys()  # nor is it run
        assert not {"policy_loss", "policy_updates", "seconds_logprobs"} & step.metrics.keys()
        assert step.metrics["trained_tokens"] == 0
    assert trainer.version == 0
    assert states_equal(trainer.policy, start.policy)
    assert not states_equal(network(trainer, "critic"), network(start, "critic"))
    step = trainer.step()
    assert step.trains
    assert "policy_loss" in step.metrics
    assert trainer.version == 1


def test_metrics_are_of_their_own_step_whenever_they_are_read() -> None:
    """The responses of a step go on growing, and its slots are filled with others."""
    trainer, late = run(small_token_mdp(algorithm__window=4), steps=4)
    again = build_trainer(small_token_mdp(algorithm__window=4))
    at_once = [dict(again.step().metrics) for _ in range(4)]
    assert [s.metrics["unfinished"] for s in late] == [m["unfinished"] for m in at_once]
    assert [timeless(s) for s in late] == [{k: v for k, v in m.items() if "second" not in k} for m in at_once]
    assert all(m["finished"] + m["unfinished"] == 16 for m in at_once)
    assert all(len(r.tokens) > 4 for r in trainer.slots.in_flight if r.uid in late[0].batch.uids_S)


def test_metrics_are_complete_and_consistent() -> None:
    config = small_token_mdp(algorithm__window=6, rollout__slots=64, policy__mini_batch=64)
    metrics = [step.metrics for step in run(config, steps=6)[1]]
    for m in metrics:
        assert m["finished"] + m["unfinished"] == 64
        assert m["waiting"] == 0
        assert m["finished"] == m["ended_by_eos"] + m["ended_by_length"] + m["ended_by_empty"]
        trained = 0 if m["step"] < 1 else m["new_tokens"] - m["dropped_tokens"]  # the first step is warm-up
        assert m["trained_tokens"] == trained
        assert m["engine_gap_max"] is None if m["step"] < 1 else m["engine_gap_max"] < 1e-5
        for phase in ("load_policy", "generate", "grade", "critic", "update_critic"):
            assert m[f"seconds_{phase}"] > 0
        for phase in ("generate", *(["logprobs", "update_policy"] if m["step"] else [])):
            assert m[f"tokens_per_second_{phase}"] > 0
    last = metrics[-1]
    wanted = {
        "reward", "solve_rate", "length_mean", "length_median", "length_p99", "length_max", "clip_fraction_high",
        "clip_fraction_low", "dual_clip_fraction", "ratio_mean", "ratio_max", "policy_kl", "entropy", "critic_loss",
        "explained_variance_finished", "explained_variance_unfinished", "policy_grad_norm", "critic_grad_norm",
        "advantage_mean", "advantage_std", "advantage_unfinished_mean", "target_version_span", "cut_gap",
        "lambda_mean", "lm_loss",
    }  # fmt: skip
    assert {name for name in wanted if last.get(name) is None} == set()
    assert last["ratio_mean"] == pytest.approx(1.0, abs=1e-5)  # one mini-batch: on-policy exactly
    assert last["policy_kl"] == pytest.approx(0.0, abs=1e-8)
    assert last["target_version_span"] >= 1


def test_returns_agree_with_the_exact_return() -> None:
    """The whole path (prompts, engine, status, grading) samples J: z-test against dynamic programming."""
    config = small_token_mdp(evaluation__problems=4096, rollout__max_response_tokens=40)
    trainer = build_trainer(config)
    result = trainer.evaluate()
    j = trainer.workload.report(trainer.policy)["exact_return"]
    assert 0.05 < j < 0.95
    # Rewards are 0 or 1, so the standard error under the exact J is known. Two-sided, false alarm 1e-6.
    assert abs(result.reward - j) < 4.9 * math.sqrt(j * (1 - j) / 4096)


def test_expected_update_direction_is_the_exact_gradient() -> None:
    """Average advantage-weighted score of unfiltered GAE against the exact policy gradient of the simulator.

    With V = 0, gamma = lambda = 1 the estimator is the plain score-function gradient: unbiased, so the average of
    independent steps is compared entry by entry, Bonferroni over entries, false alarm 1e-6 in all.
    """
    from scipy import stats

    from tppo.maths.advantages import gae

    config = small_token_mdp(
        task__num_prompts=1, task__size=2, rollout__slots=2000, rollout__max_response_tokens=12, algorithm__window=12
    )
    trainer = build_trainer(config)
    mdp = config.task.mdp(12)  # type: ignore[attr-defined]
    logits = trainer.policy.logits_SA.detach().double()  # type: ignore[attr-defined]
    responses = trainer.slots.admit()
    trainer.slots.extend(trainer.engine.generate(trainer.slots.requests(), trainer.sampling), 0)
    trainer.grader.grade(responses)
    batch = Batch.of(responses)
    advantages = gae(
        batch.rewards_N.double(), torch.zeros(len(batch.tokens_N)).double(), batch.offsets, gamma=1.0, lam=1.0
    )
    probs = logits.softmax(-1)
    samples = np.zeros((len(responses), *probs.shape))
    for i, r in enumerate(responses):
        state = r.prompt.tokens[0] - mdp.num_tokens
        for t, token in enumerate(r.tokens):
            a = float(advantages[batch.offsets[i] + t])
            samples[i, state] -= a * probs[state].numpy()
            samples[i, state, token] += a
            state = int(mdp.next_SAK[state, token, 0])
    truth = exact.softmax_policy_gradient(mdp, logits.numpy())
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(responses))
    z = np.abs(samples.mean(axis=0) - truth)[error > 0] / error[error > 0]
    assert z.size > 10
    assert z.max() < stats.norm.isf(1e-6 / 2 / z.size)


def test_a_reward_that_is_not_finite_stops_the_run() -> None:
    trainer = trainer_with(small_token_mdp(), reward=lambda prompt, text: float("nan"))
    with pytest.raises(RewardError, match=r"the reward of prompt '.*', response \d+ is nan"):
        trainer.step()


def test_a_reward_that_raises_names_the_prompt() -> None:
    def broken(prompt: Prompt, text: str) -> float:
        raise KeyError("no answer")

    trainer = trainer_with(small_token_mdp(), reward=broken)
    with pytest.raises(RewardError, match=r"failed on prompt 'reasoning ladder/0/.*KeyError"):
        trainer.step()


def test_an_empty_prompt_stops_before_generation() -> None:
    trainer = trainer_with(small_token_mdp(), prompts=lambda i: Prompt(id="void", tokens=()))
    with pytest.raises(DataError, match="prompt 'void' is empty"):
        trainer.step()


class Tampering(Wrapped):
    """Once armed, does something to the answers, or to anything else, between generation and training."""

    armed: Callable[[list[Continuation]], list[Continuation]] | None = None

    def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
        answers = super().generate(requests, sampling, done)
        return answers if self.armed is None else self.armed(answers)


@pytest.mark.parametrize("bad", ["values", "log-probabilities", "critic_loss", "policy_loss"])
@pytest.mark.parametrize("steps", [0, 2])
def test_what_is_not_finite_is_named_with_step_and_responses(bad: str, steps: int) -> None:
    """And nothing is updated with it, and no step is counted."""
    outcome: dict[str, float] = {"reward": 1.0}
    broken: list[int] = []
    # One mini-batch: none before the broken one may train.
    config = small_token_mdp(algorithm__warmup_steps=0, algorithm__importance_cap=2.0, policy__mini_batch=64)
    trainer = trainer_with(config, Tampering, reward=lambda prompt, text: outcome["reward"])
    for _ in range(steps):
        trainer.step()
    engine, policy, critic = trainer.engine, network(trainer, "policy"), network(trainer, "critic")
    assert isinstance(engine, Tampering)

    @torch.no_grad()
    def forget_the_policy(answers: list[Continuation]) -> list[Continuation]:
        policy.logits_SA[:] = float("nan")  # before generation the engine would be found to differ
        return answers

    def lose_a_logprob(answers: list[Continuation]) -> list[Continuation]:
        broken.append(answers[3].uid)
        answers[3] = replace(answers[3], logprobs=(float("nan"), *answers[3].logprobs[1:]))
        return answers

    if bad == "values":
        with torch.no_grad():
            critic.values_S[:] = float("inf")
    elif bad == "critic_loss":
        outcome["reward"] = 3e38  # finite, but its square is not
    else:
        engine.armed = forget_the_policy if bad == "log-probabilities" else lose_a_logprob
    before = copy.deepcopy(trainer.networks.models)
    with pytest.raises(NonFiniteError) as caught:
        trainer.step()
    error = caught.value
    assert (error.tensor, error.step) == (bad, steps)
    where = f"{bad} has {error.count} non-finite value(s) at step {steps}, in responses [{error.responses[0]}"
    assert where in str(error)
    if bad == "policy_loss":
        assert (error.responses, error.count) == (tuple(broken), 1)
    assert (trainer.steps_done, trainer.version) == (steps, steps)
    if bad != "log-probabilities":  # where the test itself has changed it
        assert states_equal(policy, before["policy"])
    if bad != "policy_loss":  # which comes after the critic's update
        assert states_equal(critic, before["critic"])


class Curt(Wrapped):
    """Ends some responses without a token."""

    every = 3

    def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
        answers = super().generate(requests, sampling)
        return [Continuation(c.uid, (), (), True) if c.uid % self.every == 0 else c for c in answers]


class Mute(Curt):
    """Ends every response without a token."""

    every = 1


def test_empty_responses_are_graded_and_train_nothing() -> None:
    """An engine that ends some responses without a token."""
    trainer = trainer_with(small_token_mdp(algorithm__warmup_steps=0), Curt)
    for step in [trainer.step() for _ in range(3)]:
        m = step.metrics
        assert m["ended_by_empty"] > 0
        assert math.isfinite(m["policy_loss"])
        assert math.isfinite(m["critic_loss"])
        empty = [r for r in step.responses if not r.tokens]
        assert len(empty) == m["ended_by_empty"]
        assert all(r.reward == 0.0 for r in empty)


def test_all_empty_is_a_step_without_updates() -> None:
    trainer = trainer_with(small_token_mdp(algorithm__warmup_steps=0), Mute)
    m = trainer.step().metrics
    assert (m["policy_updates"], m["critic_updates"], m["ended_by_empty"]) == (0, 0, 16)
    assert trainer.version == 0


def test_answers_without_end_are_length_and_graded() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__window=8, algorithm__warmup_steps=0))
    with torch.no_grad():
        network(trainer, "policy").logits_SA[:, 0] = -40.0
    metrics = [trainer.step().metrics for _ in range(3)]
    assert [m["unfinished"] for m in metrics] == [16, 16, 0]
    assert metrics[2]["ended_by_length"] == 16
    assert metrics[2]["dropped_tokens"] == 0  # at the cap nothing is dropped
    assert metrics[2]["reward"] == 0.0
    assert [m["critic_updates"] > 0 for m in metrics] == [False, False, True]


def test_kl_keeps_the_policy_near_its_start() -> None:
    free, _ = run(small_token_mdp(rollout__slots=64), steps=12)
    tied, steps = run(small_token_mdp(rollout__slots=64, algorithm__kl=30.0), steps=12)
    start = network(build_trainer(small_token_mdp()), "policy").logits_SA.softmax(-1)
    move = lambda t: (t.policy.logits_SA.softmax(-1) - start).abs().sum().item()  # noqa: E731
    assert move(tied) < 0.5 * move(free)
    assert steps[-1].metrics["reference_kl"] > 0
    assert set(free.networks.models) == {"policy", "critic"}  # a copy is kept only where it is needed
    assert set(tied.networks.models) == {"policy", "critic", "reference"}


# Large steps and tight clips, so that everything has a chance to show.
LIVELY = {
    "policy__lr": 0.5, "policy__epochs": 3, "algorithm__window": 5, "algorithm__lam": 0.3, "algorithm__lam_alpha": 0.5,
    "algorithm__clamp": 1.5, "algorithm__dual_clip": 1.3, "algorithm__critic__clip_low": 0.02,
    "algorithm__critic__clip_high": 0.03, "algorithm__critic__lr": 0.2, "algorithm__critic__weight_decay": 0.1,
    "algorithm__critic__grad_clip": 0.05, "algorithm__critic__mini_batch": 3, "algorithm__critic__epochs": 2,
}  # fmt: skip
OTHERWISE: dict[str, list[Any]] = {
    "gamma": [0.9], "lam": [0.8], "lam_alpha": [None, 0.2], "whiten": [False], "clamp": [None, 1.0], "bias": [0.2],
    "clip_low": [0.1], "clip_high": [0.1], "dual_clip": [None, 1.6], "importance_cap": [0.9],
    "aggregation": ["seq-mean-token-mean", "seq-mean-token-sum"], "imitate": [0.0], "entropy": [0.05], "kl": [0.05],
    "warmup_steps": [0], "window": [7], "ignore_last": [0], "boundary": ["critic", "terminal"], "critic.lr": [0.1],
    "critic.weight_decay": [0.0], "critic.beta1": [0.5], "critic.beta2": [0.9], "critic.warmup_updates": [20],
    "critic.grad_clip": [None], "critic.mini_batch": [8], "critic.epochs": [1], "critic.lam": [0.5],
    "critic.clip_low": [0.3], "critic.clip_high": [0.3],
    "critic.aggregation": ["token-mean", "seq-mean-token-sum"], "critic.responses": ["all"],
    "critic.old_values": ["stored"],
}  # fmt: skip


@pytest.fixture(scope="module")
def plain() -> tuple[Trainer, list[Step]]:
    return run(small_token_mdp(**LIVELY))


def test_every_option_of_the_algorithm_is_tried() -> None:
    known = {path for path, _, _ in leaves(small_token_mdp().algorithm)}
    assert known - OTHERWISE.keys() == {"critic.start"}  # another run's critic; tests of beginnings have one


@pytest.mark.parametrize(("option", "value"), [(o, v) for o, values in OTHERWISE.items() for v in values])
def test_every_option_changes_what_is_learned(plain: tuple[Trainer, list[Step]], option: str, value: Any) -> None:
    change = {"algorithm__" + option.replace(".", "__"): value}
    trainer, steps = run(small_token_mdp(**LIVELY | change))
    assert all(math.isfinite(s.metrics["policy_loss"]) for s in steps[1:])
    changed = not states_equal(trainer.policy, plain[0].policy)
    assert changed == (option != "critic.weight_decay")  # which goes to matrices only, and this critic is a vector


def test_boundaries_differ() -> None:
    ends = []
    for choice in ("repeat", "critic", "terminal"):
        config = small_token_mdp(algorithm__boundary=choice, algorithm__window=4)
        ends.append(run(config, steps=5)[0].policy)
    assert not any(states_equal(a, b) for a, b in [(ends[0], ends[1]), (ends[0], ends[2]), (ends[1], ends[2])])


@dataclass(frozen=True)
class Choosing(PPO):
    """PPO whose groups are chosen, as many as it is told."""

    select: ClassVar[Select] = staticmethod(whole_group)  # type: ignore[assignment]
    wanted: ClassVar[int | None] = None
    at_most: ClassVar[int | None] = None

    def parts(self, rollout: Rollout) -> Parts:
        return replace(super().parts(rollout), select=type(self).select, groups=self.wanted, window=self.at_most)


def choosing(groups: int | None, window: int | None, selects: Select = whole_group) -> RunConfig:
    kind = dataclass(frozen=True)(
        type("Chosen", (Choosing,), {"select": staticmethod(selects), "wanted": groups, "at_most": window})
    )
    return with_algorithm(small_token_mdp(algorithm__warmup_steps=0), kind)


@pytest.mark.parametrize(("groups", "window"), [(None, 4), (3, 4), (6, None), (9, 8)])
def test_whole_groups_train_as_one_however_many_rounds_it_takes(groups: int | None, window: int | None) -> None:
    trainer = build_trainer(choosing(groups, window))
    loads: list[int] = []
    rounds: list[int] = []
    inner, admit = trainer.engine.load_policy, trainer.slots.admit
    trainer.slots.admit = lambda *at: (rounds.append(0), admit(*at))[1]  # type: ignore[method-assign]
    trainer.engine.load_policy = lambda named, version: (loads.append(version), inner(named, version))[1]  # type: ignore
    seen: Counter[int] = Counter()
    for number in range(5):
        loads.clear()
        rounds.clear()
        step = trainer.step()
        uids = [r.uid for r in step.responses]
        assert uids == sorted(uids)
        assert set(Counter(r.group for r in step.responses).values()) == {4}  # whole
        assert step.batch.finished_S.all()
        assert torch.equal(step.columns["train"], torch.ones_like(step.batch.window_N))
        assert len({r.group for r in step.responses}) >= (groups or 1)
        seen.update(uids)
        assert step.metrics["waiting"] == len(trainer.slots.waiting)
        assert loads == [number]  # all rounds of a step by one policy, given to the engine once
        if groups is not None and groups > 4:  # more than the 16 slots hold
            assert len(rounds) > 1
        assert trainer.slots.ready == []
    assert set(seen.values()) == {1}
    s = trainer.slots
    assert len(seen) + len(s.in_flight) + len(s.waiting) + len(s.queue) == s.next_uid


def test_dropped_groups_make_room_for_others() -> None:
    """Dynamic sampling: rounds go on until there are as many groups with a signal as are wanted."""
    trainer = build_trainer(choosing(3, None, mixed_group))
    for _ in range(4):
        step = trainer.step()
        right = Counter(r.group for r in step.responses if r.reward)
        sizes = Counter(r.group for r in step.responses)
        assert len(sizes) >= 3
        assert set(sizes.values()) == {4}
        assert all(0 < right[group] < 4 for group in sizes)
        assert step.metrics["policy_updates"] > 0
    assert trainer.slots.next_uid > 16 * 4  # more rounds than steps


@pytest.mark.parametrize("verdict", ["wait", "drop"])
def test_an_algorithm_that_never_trains_ends(verdict: Verdict) -> None:
    asked: list[int] = []

    def never(group: Sequence[Response], version: int) -> Verdict:
        asked.append(version)
        return verdict

    trainer = build_trainer(choosing(None, 12, never))
    rounds: list[int] = []
    admit = trainer.slots.admit
    trainer.slots.admit = lambda *at: (rounds.append(0), admit(*at))[1]  # type: ignore[method-assign]
    with pytest.raises(DataError, match=f"too few groups to train on after {PATIENCE} longest responses"):
        trainer.step()
    assert len(rounds) == PATIENCE * 2  # two windows are a response
    assert (trainer.steps_done, trainer.version, set(asked)) == (0, 0, {0})


@dataclass(frozen=True)
class Average(Auxiliary):
    """Bias-corrected moving average of the policy's weights (PPO-EWMA): w <- b w + 1, m <- m (1 - 1/w) + p / w."""

    decay: float = 0.9
    name: ClassVar[str] = "average"
    gives: ClassVar[frozenset[str]] = frozenset({"proximal"})

    def start(self, workload: Workload) -> Model:
        module = copy.deepcopy(workload.policy).requires_grad_(False)
        module.register_buffer("weight_of_average", torch.ones((), dtype=torch.float64))
        return module

    def columns(self, at: Context, batch: Batch, train_N: torch.Tensor) -> Columns:
        assert isinstance(at.model, PolicyModel)
        return {"proximal": at.call.logprobs(at.model, batch, train_N)[0]}

    @torch.no_grad()
    def follow(self, own: Model, policy: PolicyModel) -> None:
        weight = own.get_buffer("weight_of_average").mul_(self.decay).add_(1)
        for mean, p in zip(own.parameters(), policy.parameters(), strict=True):
            mean.lerp_(p, float(1 / weight))


def around(centre: str) -> Term:
    """The clipped surrogate around the policy of any column, with the largest distance from it."""

    def loss(now: Now, data: Columns) -> Loss:
        terms = ppo_loss(now.value_X, data[centre], data["advantages"], clip_low=0.05, clip_high=0.05)
        return Loss(
            terms.loss_N,
            {"clipped": terms.clipped_N.float()},
            {"away": (now.value_X.detach() - data[centre]).abs()},
        )

    return Term("policy_loss", loss, reads=frozenset({centre, "advantages"}))


@dataclass(frozen=True)
class Averaging(PPO):
    """PPO clipped around a moving average."""

    decay: float = 0.9
    live: bool = True
    centre: str = "proximal"

    def parts(self, rollout: Rollout) -> Parts:
        parts = super().parts(rollout)
        return replace(
            parts, terms=(around(self.centre),), auxiliaries=(*parts.auxiliaries, Average(self.decay)),
            live=frozenset({"proximal"} if self.live else ()),
        )  # fmt: skip


def averaging(**changes: Any) -> RunConfig:
    config = with_algorithm(small_token_mdp(algorithm__warmup_steps=0, policy__epochs=3, policy__lr=0.1), PPO)
    return replace(config, algorithm=Averaging(warmup_steps=0, critic=config.algorithm.critic, **changes))  # type: ignore


def test_a_live_column_follows_the_policy_through_an_update() -> None:
    """An average with no memory is the policy itself: nothing is ever clipped, whatever the number of epochs."""
    trainer, steps = run(averaging(decay=0.0), steps=3)
    for step in steps:
        assert step.metrics["policy_updates"] > 3
        assert step.metrics["clipped"] == 0.0
        assert step.metrics["away"] == 0.0
    assert all(
        torch.equal(a, b)
        for a, b in zip(network(trainer, "average").parameters(), trainer.policy.parameters(), strict=True)
    )
    assert "average" not in trainer.networks.optimizers
    # Without either half of it things are clipped: the column as it was before the update, or a memory.
    for other in ({"decay": 0.0, "live": False}, {"decay": 0.9}, {"centre": "old"}):
        assert run(averaging(**other), steps=1)[1][0].metrics["clipped"] > 0


def test_an_auxiliary_is_told_of_every_step_of_the_policy_and_of_no_other() -> None:
    trainer, steps = run(averaging(decay=1.0), steps=3)
    weight = float(network(trainer, "average").get_buffer("weight_of_average"))  # with decay 1 it counts them
    assert weight == 1 + sum(step.metrics["policy_updates"] for step in steps)
    assert sum(step.metrics["critic_updates"] for step in steps) > 0


def test_a_column_read_by_the_average_before_the_update_is_kept() -> None:
    """Live columns are of the update only; the step keeps what they were before it."""
    trainer = build_trainer(averaging(decay=0.0))
    before = copy.deepcopy(trainer.policy)
    step = trainer.step()
    expected, _ = trainer.call.logprobs(before, step.batch, step.columns["train"])
    assert torch.equal(step.columns["proximal"], expected)


def test_unknown_device() -> None:
    with pytest.raises(ConfigError, match=r"compute.device = 'abacus'"):
        build_trainer(small_token_mdp(compute__device="abacus"))


@pytest.mark.gpu
def test_the_loop_runs_on_a_gpu() -> None:
    _, steps = run(small_token_mdp(compute__device="cuda"))
    assert all(math.isfinite(s.metrics["policy_loss"]) for s in steps[1:])


def test_toy_language_learns() -> None:
    """The shipped base model and recipe, a tenth of its steps: from at most 0.5 held-out to at least 0.6."""
    trainer = build_trainer(RECIPES["toy-language"]())
    base = trainer.evaluate()
    for _ in range(10):
        trainer.step()
    learned = trainer.evaluate()
    assert 0.25 < base.solve_rate <= 0.5
    assert learned.solve_rate >= 0.6
    # Long answers are there, and so is truncation.
    assert np.percentile(base.lengths, 99) >= 5 * np.median(base.lengths)
    assert max(len(r.window_starts) for r in trainer.slots.in_flight) > 1


@pytest.mark.slow
def test_toy_language_reaches_its_goal(tmp_path: Any) -> None:
    """What ``make train`` promises."""
    from tppo.runs.run import run as run_recipe

    summary = run_recipe(RECIPES["toy-language"](), tmp_path / "run", progress=False)
    assert summary["solve_rate_base"] <= 0.5
    assert summary["solve_rate_final"] >= 0.9
    assert summary["wall_seconds"] < 600
