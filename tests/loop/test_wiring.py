"""What the loop hands from one part to the next: the mistakes that leave every single part correct."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from tppo.algorithms.estimate import Estimate, value_targets

from tests.support.helpers import mixed_responses, response, small_token_mdp, states_equal, tiny_lm
from tppo.algorithms.base import Algorithm, PolicyLoss, ValueTarget
from tppo.config.run import Compute, Optimizer
from tppo.errors import EngineError, NonFiniteError
from tppo.fit.optim import ModelOptimizer
from tppo.fit.update import update_critic, update_policy
from tppo.models.call import logprobs_of, values_of
from tppo.models.transformer import TransformerCritic, TransformerPolicy
from tppo.runs.build import build_trainer
from tppo.types import Batch

CPU = Compute()


def capture(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Arguments of every call of a function that the trainer uses."""
    import tppo.loop.trainer

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    inner = getattr(tppo.loop.trainer, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return inner(*args, **kwargs)

    monkeypatch.setattr(f"tppo.loop.trainer.{name}", spy)
    return calls


def test_windows_do_not_change_what_a_response_says() -> None:
    """Frozen policy: every response of a run with windows of 4 equals that of a run without windows."""

    def texts(window: int) -> dict[int, list[int]]:
        config = small_token_mdp(policy__lr=0.0, algorithm__schedule__window=window)
        trainer = build_trainer(config)
        done: dict[int, list[int]] = {}
        retire = trainer.window.retire

        def keep() -> Any:
            out = retire()
            done.update({r.uid: list(r.tokens) for r in out})
            return out

        trainer.window.retire = keep  # type: ignore[method-assign]
        for _ in range(12):
            trainer.step()
        return done

    cut, whole = texts(4), texts(24)
    shared = set(cut) & set(whole)
    assert any(len(cut[uid]) > 8 for uid in shared)
    assert all(cut[uid] == whole[uid] for uid in shared)


@pytest.mark.parametrize("temperature", [0.7, 1.4])
def test_one_temperature_everywhere(temperature: float) -> None:
    """Engine, old log-probs and update agree: no gap, and a ratio of one on the first mini-batch."""
    config = small_token_mdp(rollout__temperature=temperature, policy__mini_batch=64)
    trainer = build_trainer(config)
    for _ in range(3):
        m = trainer.step()
    assert m["engine_gap_max"] < 1e-5
    assert m["ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert m["ratio_max"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("choice", ["recompute", "stored"])
def test_clip_centre_of_the_critic(choice: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of earlier windows: of the critic as it stands, or as they were when sampled."""
    calls = capture(monkeypatch, "update_critic")
    config = small_token_mdp(algorithm__value_target__old_values=choice, algorithm__schedule__window=4)
    trainer = build_trainer(config)
    sampled: dict[tuple[int, int], float] = {}
    differences = 0
    for _ in range(8):
        before = copy.deepcopy(trainer.critic)
        trainer.step()
        batch: Batch = calls[-1][0][2]
        old = calls[-1][1]["old_values_N"]
        everything = torch.ones_like(batch.window_N)
        now, _ = values_of(before, batch, everything, ~batch.finished_S, max_tokens=9999)
        for n, row in enumerate(batch.row_N.tolist()):
            key = (batch.uids_S[row], n - int(batch.offsets[row]))
            if batch.window_N[n]:
                sampled[key] = float(now[n])
            if batch.finished_S[row]:
                assert float(old[n]) == (float(now[n]) if choice == "recompute" else sampled[key])
                differences += sampled[key] != float(now[n])
    assert differences  # the two choices could be told apart


def test_lambda_sees_the_window_and_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_token_mdp(
        algorithm__advantage__lam_min=0.0, algorithm__advantage__lam_alpha=0.5, algorithm__schedule__window=20
    )
    calls = capture(monkeypatch, "update_policy")
    trainer = build_trainer(config)
    seen = set()
    for _ in range(6):
        trainer.step()
        if not calls:
            continue
        batch, estimate = calls[-1][0][2], calls[-1][0][3]
        for i, length in enumerate(batch.lengths_S.tolist()):
            done = bool(batch.finished_S[i])
            expected = length if done else min(length + 10, 24)
            assert float(estimate.lam_S[i]) == pytest.approx(max(0.0, 1 - 1 / (0.5 * expected)))
            seen.add(done)
    assert seen == {True, False}


def test_the_reference_policy_stays_where_it_was() -> None:
    trainer = build_trainer(small_token_mdp(algorithm__policy_loss__kl_coef=0.1))
    start = copy.deepcopy(trainer.policy_module)
    for _ in range(4):
        trainer.step()
    assert isinstance(trainer.reference, torch.nn.Module)
    assert states_equal(trainer.reference, start)
    assert not states_equal(trainer.policy_module, start)


def test_targets_are_discounted() -> None:
    batch = Batch.of([response(0, [1, 2, 3], reward=2.0)])
    algorithm = replace(Algorithm(), advantage=replace(Algorithm().advantage, gamma=0.5))
    # Monte-Carlo, 2 on the last token: 2 * 0.25, 2 * 0.5, 2.
    assert value_targets(algorithm, batch, torch.zeros(3)).tolist() == [0.5, 1.0, 2.0]
    # lambda 0: r + gamma V_next.
    td = replace(algorithm, value_target=ValueTarget(lam=0.0))
    assert value_targets(td, batch, torch.tensor([0.1, 0.4, 0.8])).tolist() == pytest.approx([0.2, 0.4, 2.0])


class Recorder(ModelOptimizer):
    """Keeps the gradient of every mini-batch and moves nothing."""

    gradients: list[dict[str, torch.Tensor]]

    def step(self, *, name: str, step: int) -> float:
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

    def gradients(part: list[Any], size: int, which: str) -> list[dict[str, torch.Tensor]]:
        batch = Batch.of(part)
        model: Any = policy if which == "policy" else critic
        recorder = Recorder(model, Optimizer(mini_batch=size))
        if which == "policy":
            old, _ = logprobs_of(policy, batch, batch.window_N, temperature=1.0, max_tokens=999, chunk=999)
            advantages = batch.tokens_N.double()  # a function of the token, so parts agree with the whole
            update_policy(
                policy, recorder, batch,
                Estimate(advantages, advantages, batch.window_N, torch.ones(len(part))), old_logprobs_N=old,
                reference_N=None, loss=PolicyLoss(aggregation=aggregation), temperature=1.0, compute=CPU, step=0,
                seed=0,
            )  # fmt: skip
        else:
            zeros = torch.zeros(len(batch.tokens_N), dtype=torch.float64)
            update_critic(
                critic, recorder, batch, returns_N=value_targets(Algorithm(), batch, zeros), old_values_N=zeros,
                loss=ValueTarget(aggregation=aggregation), compute=CPU, step=0, seed=0,
            )  # fmt: skip
        for p in model.parameters():
            p.grad = None
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
        optimizer.step(name="model", step=0)
        for n, p in module.named_parameters():  # zero gradient: only decay moves a weight, and only matrices decay
            shrink = 1 - rates[-1] * 0.5 if p.ndim > 1 else 1.0
            assert torch.allclose(p, before[n] * shrink), n
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])


def test_gradients_are_clipped_to_the_norm() -> None:
    module = torch.nn.Linear(4, 1, bias=False)
    optimizer = ModelOptimizer(module, Optimizer(lr=0.0, grad_clip=1.0))
    module.weight.grad = torch.full_like(module.weight, 3.0)
    assert optimizer.step(name="model", step=0) == pytest.approx(6.0)  # sqrt(4 * 9), before clipping
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
        optimizer.step(name="critic", step=0)


def test_a_stale_engine_is_caught_by_the_loop() -> None:
    """An engine that forgets a load is stopped at the next one."""
    trainer = build_trainer(small_token_mdp(algorithm__value_target__warmup_steps=0, policy__lr=0.5))
    load = trainer.engine.load_policy
    trainer.engine.load_policy = lambda weights, version: load(weights, version) if version == 0 else None  # type: ignore[method-assign]
    trainer.step()
    with pytest.raises(EngineError, match=r"after loading policy version 1 .* stale"):
        trainer.step()
