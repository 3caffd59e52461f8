"""What the loop hands from one part to the next: the mistakes that leave every single part correct."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch

from tests.support.helpers import mixed_responses, response, small_token_mdp, states_equal, tiny_lm, trainer_with
from tppo.algorithms import PPO
from tppo.algorithms.auxiliaries.critic import Critic, CriticOptions
from tppo.algorithms.parts.terms import clipped, imitate_positives
from tppo.config.registry import with_algorithm
from tppo.engines.base import Wrapped
from tppo.errors import EngineError, NonFiniteError
from tppo.fit.optim import ModelOptimizer
from tppo.fit.options import Optimizer
from tppo.fit.update import critic_now, policy_now, update
from tppo.models.call import Call
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.ranks.ranks import Ranks
from tppo.runs.build import build_trainer
from tppo.types import Batch, Continuation

CALL = Call(Ranks())


def test_windows_do_not_change_what_a_response_says() -> None:
    """Frozen policy: every response of a run with windows of 4 equals that of a run without windows."""

    def texts(config: Any) -> dict[int, list[int]]:
        trainer = build_trainer(config)
        done: dict[int, list[int]] = {}
        for _ in range(12):
            done.update({r.uid: list(r.tokens) for r in trainer.step().responses if r.status.finished})
        return done

    config = small_token_mdp(policy__lr=0.0)
    cut, long = texts(config.with_values(algorithm__window=4)), texts(config.with_values(algorithm__window=24))
    whole = texts(with_algorithm(config, PPO))
    assert long == whole
    shared = set(cut) & set(whole)
    assert any(len(cut[uid]) > 8 for uid in shared)
    assert all(cut[uid] == whole[uid] for uid in shared)


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_one_temperature_everywhere(temperature: float) -> None:
    """Engine, old log-probs and update agree: no gap, and a ratio of one on the first mini-batch."""
    config = small_token_mdp(rollout__temperature=temperature, policy__mini_batch=64)
    trainer = build_trainer(config)
    for _ in range(3):
        step = trainer.step()
    keep = step.columns["train"]
    assert torch.allclose(step.columns["old"][keep], step.columns["behaviour"][keep], rtol=0, atol=1e-5)
    assert step.metrics["engine_gap_max"] < 1e-5
    assert step.metrics["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert step.metrics["ratio_max"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("choice", ["recompute", "stored"])
def test_clip_centre_of_the_critic(choice: str) -> None:
    """Values of earlier windows: of the critic as it stands, or as they were when sampled."""
    config = small_token_mdp(algorithm__critic__old_values=choice, algorithm__window=4)
    trainer = build_trainer(config)
    sampled: dict[tuple[int, int], float] = {}
    differences = 0
    for _ in range(8):
        before = copy.deepcopy(trainer.networks.models["critic"])
        step = trainer.step()
        batch, old, stored = step.batch, step.columns["values"], step.columns["stored_values"]
        now, cut = trainer.call.values(before, batch, torch.ones_like(batch.window_N), ~batch.finished_S)  # type: ignore
        assert torch.equal(step.columns["cut_values"], cut)
        for n, row in enumerate(batch.row_N.tolist()):
            key = (batch.uids_S[row], n - int(batch.offsets[row]))
            if batch.window_N[n]:
                sampled[key] = float(now[n])
            assert float(stored[n]) == sampled[key]
            if batch.finished_S[row]:
                assert float(old[n]) == (float(now[n]) if choice == "recompute" else sampled[key])
                differences += sampled[key] != float(now[n])
    assert differences  # the two choices could be told apart


def test_lambda_sees_the_window_and_the_cap() -> None:
    config = small_token_mdp(algorithm__lam=0.0, algorithm__lam_alpha=0.5, algorithm__window=20)
    trainer = build_trainer(config)
    seen = set()
    for _ in range(6):
        step = trainer.step()
        for i, length in enumerate(step.batch.lengths_S.tolist()):
            done = bool(step.batch.finished_S[i])
            expected = length if done else min(length + 10, 24)
            assert float(step.columns["lambda"][i]) == pytest.approx(max(0.0, 1 - 1 / (0.5 * expected)))
            seen.add(done)
    assert seen == {True, False}


def test_the_reference_policy_stays_where_it_was() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__kl=0.1))
    start = copy.deepcopy(trainer.policy)
    for _ in range(4):
        step = trainer.step()
    assert states_equal(trainer.networks.models["reference"], start)
    assert not states_equal(trainer.policy, start)
    assert trainer.networks.optimizers.keys() == {"policy", "critic"}
    expected, _ = trainer.call.logprobs(start, step.batch, step.columns["train"])
    assert torch.equal(step.columns["reference"], expected)


def targets(batch: Batch, values_N: torch.Tensor, *, gamma: float = 1.0, lam: float = 1.0) -> torch.Tensor:
    critic = Critic(CriticOptions(lam=lam), gamma)
    return critic.targets(batch, {"rewards": batch.rewards_N, "values": values_N})


def test_targets_are_discounted() -> None:
    batch = Batch.of([response(0, [1, 2, 3], reward=2.0)])
    # Monte-Carlo, 2 on the last token: 2 * 0.25, 2 * 0.5, 2.
    assert targets(batch, torch.zeros(3), gamma=0.5).tolist() == [0.5, 1.0, 2.0]
    # lambda 0: r + gamma V_next.
    td = targets(batch, torch.tensor([0.1, 0.4, 0.8]), gamma=0.5, lam=0.0)
    assert td.tolist() == pytest.approx([0.2, 0.4, 2.0])


class Recorder(ModelOptimizer):
    """Keeps the gradient of every mini-batch and moves nothing."""

    gradients: list[dict[str, torch.Tensor]]

    def step(self, *, name: str) -> float:
        self.__dict__.setdefault("gradients", []).append(
            {n: p.grad.clone() for n, p in self.named if p.grad is not None}
        )
        return 0.0


@pytest.mark.parametrize("aggregation", ["token-mean", "seq-mean-token-mean"])
def test_each_mini_batch_is_its_own_mean(aggregation: Any) -> None:
    """Gradients do not leak from one mini-batch into the next, and each divides by its own count.

    A mini-batch alone must give the gradient that it gives among others.
    """
    responses = [r for r in mixed_responses(count=9) if r.tokens]
    policy = TransformerPolicy(tiny_lm(dtype=torch.float64))
    critic = TransformerCritic(tiny_lm(dtype=torch.float64).base_model).double()
    torch.nn.init.normal_(critic.head.weight, std=0.1)
    policy_terms = (clipped(clip_low=0.2, clip_high=0.28, aggregation=aggregation), imitate_positives(0.1))
    critic_terms = Critic(CriticOptions(aggregation=aggregation)).terms()

    def gradients(part: list[Any], size: int, which: str) -> list[dict[str, torch.Tensor]]:
        batch = Batch.of(part)
        model: Any = policy if which == "policy" else critic
        recorder = Recorder(model, Optimizer(mini_batch=size))
        columns = {"train": batch.window_N}
        if which == "policy":
            columns["old"], _ = CALL.logprobs(policy, batch, batch.window_N)
            columns["advantages"] = batch.tokens_N.double()  # a function of the token, so parts agree with the whole
        else:
            columns["values"] = torch.zeros(len(batch.tokens_N), dtype=torch.float64)
            columns["returns"] = targets(batch, columns["values"])
        update(
            model, recorder, batch, policy_terms if which == "policy" else critic_terms, columns, call=CALL,
            now=policy_now if which == "policy" else critic_now, name=which, key=(0, 0),
        )  # fmt: skip
        assert all(p.grad is None for p in model.parameters())
        return recorder.gradients

    for which in ("policy", "critic"):
        together = gradients(responses, 2, which)
        assert len(together) > 2
        alone = [gradients([r], 1, which) for r in responses if which == "policy" or r.status.finished]
        singles = gradients(responses, 1, which)
        assert len(singles) == len(alone)
        for g in singles:  # each single mini-batch equals some response trained alone
            assert any(all(torch.allclose(g[n], a[0][n], rtol=1e-8, atol=1e-10) for n in g) for a in alone), which


def test_warm_up_and_weight_decay_of_the_optimizer() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    optimizer = ModelOptimizer(module, Optimizer(lr=0.1, weight_decay=0.5, warmup_updates=3, grad_clip=None))
    rates = []
    for _ in range(5):
        for p in module.parameters():
            p.grad = torch.zeros_like(p)
        before = {n: p.detach().clone() for n, p in module.named_parameters()}
        rates.append(optimizer.adamw.param_groups[0]["lr"])
        optimizer.step(name="model")
        for n, p in module.named_parameters():  # zero gradient: only decay moves a weight, and only matrices decay
            shrink = 1 - rates[-1] * 0.5 if p.ndim > 1 else 1.0
            assert torch.allclose(p, before[n] * shrink), n
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_gradients_are_clipped_to_the_norm() -> None:
    module = torch.nn.Linear(4, 1, bias=False)
    optimizer = ModelOptimizer(module, Optimizer(lr=0.0, grad_clip=1.0))
    module.weight.grad = torch.full_like(module.weight, 3.0)
    assert optimizer.step(name="model") == pytest.approx(6.0)  # sqrt(4 * 9), before clipping
    assert float(module.weight.grad.norm()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("limit", [1.0, None])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_weight_with_the_bad_gradient_is_named(limit: float | None, bad: float) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    optimizer = ModelOptimizer(module, Optimizer(grad_clip=limit))
    for p in module.parameters():
        p.grad = torch.zeros_like(p)
    assert module[1].weight.grad is not None
    module[1].weight.grad[0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"gradient of critic weight 1\.weight has 1"):
        optimizer.step(name="critic")


class Forgetful(Wrapped):
    """Takes the weights of the first load only."""

    def load_policy(self, named_tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        if version == 0:
            super().load_policy(named_tensors, version)


def test_a_stale_engine_is_caught_by_the_loop() -> None:
    """An engine that forgets a load is stopped at the next one."""
    trainer = trainer_with(small_token_mdp(algorithm__warmup_steps=0, policy__lr=0.5), Forgetful)
    trainer.step()
    with pytest.raises(EngineError, match=r"after loading policy version 1 .* stale"):
        trainer.step()


class Talkative(Wrapped):
    """Has something to say, and notes when it is asked."""

    def __init__(self, engine: Any) -> None:
        super().__init__(engine)
        self.asked: list[str] = []

    def generate(self, requests: Any, sampling: Any, done: Any = None) -> list[Continuation]:
        self.asked.append("generate")
        return super().generate(requests, sampling, done)

    def metrics(self) -> dict[str, float]:
        self.asked.append("metrics")
        return {"generate_idle": 0.25}


def test_what_the_engine_says_of_its_last_call_is_among_the_metrics() -> None:
    trainer = trainer_with(small_token_mdp(), Talkative)
    assert trainer.step().metrics["generate_idle"] == 0.25
    assert trainer.engine.asked == ["generate", "metrics"]  # type: ignore[attr-defined]
