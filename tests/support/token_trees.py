"""Small token MDPs whose responses can be listed, and what an algorithm's own parts make of a group of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sim import exact
from sim.mdp.table import TERMINAL, Floats, TokenMDP
from tests.support.helpers import response
from tests.support.sim_brute_force import all_responses
from tppo.algorithms.base import Algorithm, Parts, Rollout
from tppo.config.registry import algorithm_entry_points, load_algorithm
from tppo.fit.terms import Columns, Now, Term, pick
from tppo.maths.aggregate import aggregate_count, aggregate_sum
from tppo.types import Batch, Response, Status

CHAIN3_STOP = (0.5, 0.4, 0.3)


def chain3(rewards: Sequence[float] = (0.0, 1.0, 1.0)) -> TokenMDP:
    """Tokens stop (0) and go (1), cap 3. Rewards of stopping at depth 0, 1, 2; "go go go" has none.

    With the stop chances .5, .4, .3 the solve rate is .29.
    """
    next_SA = np.array([[TERMINAL, 1], [TERMINAL, 2], [TERMINAL, TERMINAL]])
    reward_SA = np.stack([np.asarray(rewards, np.float64), np.zeros(3)], axis=1)
    return TokenMDP("chain3", 3, np.array([1.0, 0, 0]), next_SA[..., None], np.ones((3, 2, 1)), reward_SA[..., None])


def fork() -> TokenMDP:
    """A prefix tree with two ways to go on (tokens 1, 2), cap 2 and graded outcomes: seven responses."""
    next_SA = np.array([[TERMINAL, 1, 2], [TERMINAL] * 3, [TERMINAL] * 3])
    reward_SA = np.array([[0.5, 0.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.0]])
    return TokenMDP("fork", 2, np.array([1.0, 0, 0]), next_SA[..., None], np.ones((3, 3, 1)), reward_SA[..., None])


def logits_of(stop: Sequence[float]) -> Floats:
    """Logits [S, 2] of a policy of stop and go by its chance to stop in each state."""
    q = np.asarray(stop, np.float64)
    return np.log(np.stack([q, 1 - q], axis=1))


def cosine(a: Floats, b: Floats) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


@dataclass(frozen=True, eq=False)
class Listed:
    """A table whose responses are listed, under one policy [S, A]."""

    mdp: TokenMDP
    logits: Floats

    @cached_property
    def answers(self) -> list[tuple[float, list[tuple[int, int]], float]]:
        """(probability, (state, token) of each token, outcome) of every response."""
        found = all_responses(self.mdp, exact.softmax(self.logits))
        return [(p, [(s, a) for s, a, _, _ in steps], sum(step[2] for step in steps)) for p, steps in found]

    @cached_property
    def law(self) -> exact.OutcomeLaw:
        return exact.outcome_law(self.mdp, exact.softmax(self.logits))

    def gradient(self, f_RH1: Floats) -> Floats:
        """Of the expected utility f."""
        return exact.utility_gradient(self.mdp, self.logits, self.law, f_RH1)


@cache
def groups(table: Listed, size: int, *, ordered: bool) -> list[tuple[float, Batch, Tensor, Tensor]]:
    """(probability, batch, state [N], token [N]) of every group; up to order each counts for all of its orders."""
    answers = range(len(table.answers))
    if ordered:
        return [_group(table, members, 1) for members in itertools.product(answers, repeat=size)]
    return [_group(table, m, _orders(m)) for m in itertools.combinations_with_replacement(answers, size)]


def _orders(members: tuple[int, ...]) -> int:
    """Different orders of these."""
    return math.factorial(len(members)) // math.prod(math.factorial(members.count(i)) for i in set(members))


def _group(table: Listed, members: tuple[int, ...], orders: int) -> tuple[float, Batch, Tensor, Tensor]:
    answers = [table.answers[i] for i in members]
    steps = torch.tensor([step for _, taken, _ in answers for step in taken])
    batch = group_batch([(reward, [a for _, a in taken]) for _, taken, reward in answers], table.mdp.horizon)
    return orders * math.prod(p for p, _, _ in answers), batch, steps[:, 0], steps[:, 1]


def group_batch(answers: Iterable[tuple[float, Sequence[int]]], horizon: int) -> Batch:
    """One group: (outcome, tokens) of each member. Without a stop token, 0, at the end the cap has ended it."""
    members: list[Response] = []
    for uid, (reward, tokens) in enumerate(answers):
        status = Status.LENGTH if len(tokens) == horizon and tokens[-1] != 0 else Status.EOS
        members.append(replace(response(uid, tokens, status=status, reward=reward), group=0))
    return Batch.of(members)


def outcome_algorithms() -> dict[str, Algorithm]:
    """Every registered algorithm whose advantage is made of rewards alone, without its KL penalties."""
    found = {}
    for name in sorted(algorithm_entry_points()):
        algorithm = without_kl(load_algorithm(name)())
        advantage = algorithm.parts(Rollout(slots=4, group_size=2, max_response_tokens=4)).advantage
        if advantage is not None and advantage.reads <= {"rewards"}:
            found[name] = algorithm
    return found


def without_kl(algorithm: Algorithm, **changes: Any) -> Algorithm:
    """Without a KL penalty, and next to nothing added to standard deviations."""
    plain: dict[str, Any] = {"kl": 0.0, "kl_reward": 0.0, "eps": 1e-300}
    return replace(algorithm, **{k: v for k, v in plain.items() if hasattr(algorithm, k)}, **changes)


def parts_of(algorithm: Algorithm, horizon: int, group_size: int) -> Parts:
    return algorithm.parts(Rollout(slots=group_size, group_size=group_size, max_response_tokens=horizon))


def columns_of(parts: Parts, batch: Batch, logprobs_N: Tensor) -> Columns:
    """What the loop knows of a batch before the update, in float64; every policy that is named is the present one."""
    train_N, now_N = parts.tokens(batch), logprobs_N.detach()
    columns: Columns = {"rewards": batch.rewards_N.double(), "behaviour": now_N, "old": now_N, "train": train_N}
    for reward in parts.rewards:
        columns["rewards"] = reward.shape(columns["rewards"], batch, pick(columns, reward.reads))
    assert parts.advantage is not None
    return columns | parts.advantage.estimate(batch, pick(columns, parts.advantage.reads), train_N)


def aggregated(term: Term, now: Now, columns: Columns) -> Tensor:
    """The loss of one mini-batch by one term, as `tppo.fit.update` has it."""
    keep_X, found = columns["train"], term.loss(now, pick(columns, term.reads))
    count = aggregate_count(keep_X, now.offsets, mode=term.aggregation, constant_length=term.constant_length)
    return aggregate_sum(found.loss_X, keep_X, now.offsets, mode=term.aggregation) / count.clamp(min=1)


def objective(parts: Parts, batch: Batch, logprobs_N: Tensor) -> Tensor:
    """The algorithm's objective on one batch; 0 for a group that it does not train on."""
    if parts.select(batch.responses, 0) != "now":
        return 0.0 * logprobs_N.sum()
    now = Now(logprobs_N, torch.zeros_like(logprobs_N), batch.offsets)
    return aggregated(parts.terms[0], now, columns_of(parts, batch, logprobs_N))


def expected_update(table: Listed, algorithm: Algorithm, group_size: int, *, ordered: bool = False) -> Floats:
    """-grad of the expected loss over all groups, at the policy that sampled them."""
    parts = parts_of(algorithm, table.mdp.horizon, group_size)
    logits_SA = torch.tensor(table.logits, requires_grad=True)
    log_pi = torch.log_softmax(logits_SA, dim=-1)
    losses = [
        p * objective(parts, batch, log_pi[s, a]) for p, batch, s, a in groups(table, group_size, ordered=ordered)
    ]
    torch.stack(losses).sum().backward()
    assert logits_SA.grad is not None
    return -logits_SA.grad.numpy()


def own_credit(parts: Parts, batch: Batch) -> float:
    """What the objective gives the first member: n A, the same for each of its tokens or this fails."""
    logprobs_N = torch.full((len(batch.row_N),), -1.0, dtype=torch.float64, requires_grad=True)
    [slope_N] = torch.autograd.grad(objective(parts, batch, logprobs_N), logprobs_N)
    own = slope_N[batch.row_N == 0]
    assert float(own.amax() - own.amin()) < 1e-14
    return float(-batch.num_responses * own[0])


def utility(table: Listed, algorithm: Algorithm, group_size: int, *, lengths: bool = True) -> Floats:
    """f(R, L), frozen: the mean credit of a response over all groups that it can be in.

    lengths: whether the others' lengths matter; if not they count as one token.
    """
    parts, law = parts_of(algorithm, table.mdp.horizon, group_size), table.law

    def kind(reward: float, length: int) -> tuple[float, int]:
        return reward, length if lengths else 1

    kinds = sorted({kind(float(law.rewards_R[i]), int(n)) for i, n in np.argwhere(law.prob_RH1 > 0)})
    one_hot = dict(zip(kinds, np.eye(len(kinds)), strict=True))

    def credit(reward: float, length: int, others_MK: Floats) -> list[float]:
        found = []
        for counts_K in others_MK:
            others = [other for other, count in zip(kinds, counts_K, strict=True) for _ in range(round(count))]
            answers = [(r, [1] * (n - 1) + [0]) for r, n in [(reward, length), *others]]
            found.append(own_credit(parts, group_batch(answers, table.mdp.horizon)))
        return found

    return exact.frozen_utility(law, group_size, credit, statistic=lambda r, n: one_hot[kind(r, n)])


@dataclass(frozen=True)
class Summed(Algorithm):
    """Another algorithm with the aggregation n = 1: a sum over the tokens of each response."""

    inner: Algorithm

    def parts(self, rollout: Rollout) -> Parts:
        parts = self.inner.parts(rollout)
        first = replace(parts.terms[0], aggregation="seq-mean-token-sum", constant_length=None)
        return replace(parts, terms=(first, *parts.terms[1:]))


def coin(p: float) -> Listed:
    """One token, right with probability p."""
    table = TokenMDP(
        "coin", 1, np.ones(1), np.full((1, 2, 1), TERMINAL), np.ones((1, 2, 1)), np.array([[[0.0], [1.0]]])
    )
    return Listed(table, np.log(np.array([[1 - p, p]])))


def slope(algorithm: Algorithm, p: float, group_size: int) -> float:
    """h(p) = E[n A | right] - E[n A | wrong]: the expected update is h(p) grad p."""
    wrong, right = utility(coin(p), algorithm, group_size)[:, 1]
    return float(right - wrong)
