"""Parts that do not fit together are refused before anything is loaded, with what is missing and who could give it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from paper_repro.tasks.token_mdp import TokenMDPTask
from tests.support.helpers import small_token_mdp
from tests.support.reinforce import Reinforce
from tppo.algorithms import PPO, TPPO, ValuePretraining
from tppo.algorithms.auxiliaries import Critic, Reference
from tppo.algorithms.auxiliaries.critic import CriticOptions
from tppo.algorithms.base import Advantage, Algorithm, Auxiliary, Parts, Reward, Rollout, no_tokens
from tppo.algorithms.check import ALWAYS, checked_parts
from tppo.algorithms.parts.terms import clipped, entropy_bonus, imitate_positives, kl_to_reference
from tppo.config.registry import algorithm_entry_points, load_algorithm
from tppo.config.run import RunConfig, validate
from tppo.errors import ConfigError
from tppo.fit.terms import Loss, Term
from tppo.runs.build import build_trainer
from tppo.runs.run import run

Change = Callable[[Parts], Parts]


@dataclass(frozen=True)
class Odd(Algorithm):
    """REINFORCE with something changed."""

    change: ClassVar[Change]

    def parts(self, rollout: Rollout) -> Parts:
        return type(self).change(Reinforce().parts(rollout))


def odd(change: Change) -> RunConfig:
    return replace(small_token_mdp(), algorithm=type("Odd", (Odd,), {"change": staticmethod(change)})())


@dataclass(frozen=True)
class Other(Auxiliary):
    """A network that gives what it is told to."""

    called: str
    columns_given: frozenset[str] = frozenset()

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.called

    @property
    def gives(self) -> frozenset[str]:  # type: ignore[override]
        return self.columns_given


def reading(column: str) -> Term:
    return Term("mine", lambda now, data: Loss(now.value_X * data[column]), reads=frozenset({column}))


CASES: dict[str, tuple[Change, str]] = {
    "a term reads a column of the critic": (
        lambda p: replace(p, terms=(reading("values"),)),
        "a part that gives the column 'values', which another one reads; given by: auxiliary Critic",
    ),
    "a term reads a column of the reference": (
        lambda p: replace(p, terms=(*p.terms, kl_to_reference(0.1))),
        "the column 'reference', which another one reads; given by: auxiliary Reference",
    ),
    "a term reads advantages and nobody estimates": (
        lambda p: replace(p, advantage=None),
        "the column 'advantages', which another one reads; given by: an advantage",
    ),
    "a term reads what nobody ever heard of": (
        lambda p: replace(p, terms=(reading("wisdom"),)),
        "the column 'wisdom', which another one reads; given by: no part that this library has",
    ),
    "a reward reads a column of the critic": (
        lambda p: replace(p, rewards=(Reward(lambda r, b, c: r, frozenset({"cut_values"})),)),
        "the column 'cut_values', which another one reads; given by: auxiliary Critic",
    ),
    "an advantage reads a column of the reference": (
        lambda p: replace(p, advantage=Advantage(lambda b, c, t: {}, frozenset({"reference"}))),
        "the column 'reference', which another one reads; given by: auxiliary Reference",
    ),
    "a reward reads advantages, which come after it": (
        lambda p: replace(p, rewards=(Reward(lambda r, b, c: r, frozenset({"advantages"})),)),
        "the column 'advantages', which another one reads",
    ),
    "an advantage reads what it gives itself": (
        lambda p: replace(p, advantage=Advantage(lambda b, c, t: {}, frozenset({"x"}), frozenset({"x", "advantages"}))),
        "the column 'x', which another one reads",
    ),
    "two auxiliaries of one name": (
        lambda p: replace(p, auxiliaries=(Other("twin", frozenset({"a"})), Other("twin", frozenset({"b"})))),
        "one network of each name; 'twin' is there twice",
    ),
    "two critics": (
        lambda p: replace(p, auxiliaries=(Critic(CriticOptions()), Critic(CriticOptions(), gamma=0.5))),
        "one network of each name; 'critic' is there twice",
    ),
    "an auxiliary with the policy's name": (
        lambda p: replace(p, auxiliaries=(Other("policy"),)),
        "one network of each name; 'policy' is there twice",
    ),
    "two auxiliaries for one column": (
        lambda p: replace(p, auxiliaries=(Reference(), Other("average", frozenset({"reference"})))),
        "one auxiliary for each column; two give 'reference'",
    ),
    "a term without tokens": (
        lambda p: replace(p, tokens=no_tokens),
        "tokens for the term 'policy_loss'; name Parts.tokens, or the term's own tokens",
    ),
    "one term of two without tokens": (
        lambda p: replace(p, tokens=no_tokens, terms=(imitate_positives(0.1), entropy_bonus(0.1))),
        "tokens for the term 'update_entropy'",
    ),
    "a constant without a length": (
        lambda p: replace(p, terms=(replace(p.terms[0], aggregation="constant"),)),
        "a constant_length for a term of aggregation 'constant'",
    ),
    "a constant of no length": (
        lambda p: replace(p, terms=(replace(p.terms[0], aggregation="constant", constant_length=0),)),
        "a constant_length for a term of aggregation 'constant'",
    ),
    "a length without a constant": (
        lambda p: replace(p, terms=(replace(p.terms[0], constant_length=9),)),
        "aggregation 'constant' for a term with a constant_length",
    ),
    "a constant longer than any response": (
        lambda p: replace(p, terms=(replace(p.terms[0], aggregation="constant", constant_length=10**30),)),
        f"a constant_length in [1, 10000000] [tokens]; the term 'policy_loss' has {10**30}",
    ),
    "a live column of nobody": (
        lambda p: replace(p, live=frozenset({"reference"})),
        "an auxiliary that gives the live column 'reference'",
    ),
    "nothing is learned": (
        lambda p: Parts(select=p.select, auxiliaries=(Reference(),)),
        "at least one term, or an auxiliary that trains; nothing would be learned",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_that_do_not_fit_are_refused_before_anything_is_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, says = CASES[name]
    config = odd(change)
    monkeypatch.setattr(TokenMDPTask, "build", lambda *_: pytest.fail("the task was built"))
    for refuse in (
        lambda: validate(config),
        lambda: build_trainer(config),
        lambda: run(config, tmp_path / "run", progress=False),
    ):
        with pytest.raises(ConfigError) as caught:
            refuse()
        assert caught.value.field == "algorithm"
        assert "algorithm = 'Odd': expected" in str(caught.value)
        assert says in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_same_with_the_giver_is_accepted_and_runs() -> None:
    """Each refusal above names what was missing: with it the run goes."""
    critic = Critic(CriticOptions(lr=0.05, mini_batch=8))
    for change in (
        lambda p: replace(p, terms=(reading("values"),), auxiliaries=(critic,)),
        lambda p: replace(p, terms=(*p.terms, kl_to_reference(0.1)), auxiliaries=(Reference(),)),
        lambda p: replace(p, terms=(replace(p.terms[0], aggregation="constant", constant_length=24),)),
        lambda p: replace(p, tokens=no_tokens, terms=(imitate_positives(0.1),)),
        lambda p: replace(p, auxiliaries=(Reference(),), live=frozenset({"reference"}), terms=(
            *p.terms, kl_to_reference(0.1))),
    ):  # fmt: skip
        trainer = build_trainer(odd(change))
        assert [trainer.step().metrics["policy_updates"] > 0 for _ in range(2)] == [True, True]


def test_a_reward_may_read_the_policy_from_the_first_step_on() -> None:
    """A penalty inside the reward, and steps in which only the critic trains: it learns the shaped rewards too."""

    def shape(rewards: torch.Tensor, batch: Any, columns: Any) -> torch.Tensor:
        return rewards - 0.1 * (columns["old"] - columns["reference"])

    @dataclass(frozen=True)
    class Shaped(PPO):
        """KL in the reward."""

        def parts(self, rollout: Rollout) -> Parts:
            parts = super().parts(rollout)
            return replace(
                parts, rewards=(Reward(shape, frozenset({"old", "reference"})),),
                auxiliaries=(*parts.auxiliaries, Reference()),
            )  # fmt: skip

    trainer = build_trainer(replace(small_token_mdp(), algorithm=Shaped(warmup_steps=1)))
    steps = [trainer.step() for _ in range(2)]
    assert [step.trains for step in steps] == [False, True]
    assert all(step.columns["rewards"].isfinite().all() for step in steps)


@pytest.mark.parametrize("name", sorted(algorithm_entry_points()))
def test_installed_algorithms_fit_together(name: str) -> None:
    kind = load_algorithm(name)
    rollout = Rollout(slots=16, group_size=4, max_response_tokens=24576)
    parts = checked_parts(kind(), rollout)
    assert parts.reads <= ALWAYS | {"advantages", "values", "cut_values", "reference", "average"}
    assert kind.name == name
    assert kind.__doc__


def test_networks_are_those_that_the_algorithm_names() -> None:
    def names(algorithm: Algorithm) -> tuple[set[str], set[str]]:
        trainer = build_trainer(replace(small_token_mdp(), algorithm=algorithm))
        return set(trainer.networks.models), set(trainer.networks.optimizers)

    assert names(Reinforce()) == ({"policy"}, {"policy"})
    assert names(TPPO(window=8, ignore_last=2, warmup_steps=0)) == ({"policy", "critic"},) * 2
    assert names(PPO(kl=0.1, warmup_steps=0)) == ({"policy", "critic", "reference"}, {"policy", "critic"})
    assert names(ValuePretraining()) == ({"policy", "critic"}, {"critic"})


def test_a_surrogate_around_the_behaviour_policy_needs_no_second_pass() -> None:
    """The columns that nobody reads are not made."""
    config = odd(lambda p: replace(p, terms=(clipped(clip_low=0.2, clip_high=0.2, centre="behaviour"),)))
    step = build_trainer(config).step()
    assert "old" not in step.columns
    assert "seconds_logprobs" not in step.metrics
    assert "seconds_critic" not in step.metrics
