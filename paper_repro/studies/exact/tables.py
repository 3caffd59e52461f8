"""The four tables, policies and critics that the exact studies share.

Lengths have a tail in all four: with windows of 8 to 32 tokens some responses end in their first window and some need
several, as at scale with a window of a third of the longest response.

Shape suffixes: _H time, _S states, _A tokens. H1 is H + 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from sim import exact
from sim.exact.moments import Boundary, EstimatorMoments, estimator_moments
from sim.mdp import families
from sim.mdp.table import Floats, TokenMDP
from tppo.figures import PALETTE

Critic = Literal["exact", "zero", "optimistic", "noisy", "stale"]
CRITICS: tuple[Critic, ...] = get_args(Critic)
HORIZON = 64


@dataclass(frozen=True, eq=False)
class Table:
    """A token MDP with the policy that is being trained, and the one it was some steps ago."""

    name: str
    mdp: TokenMDP
    policy_SA: Floats  # [S, A]
    older_SA: Floats  # [S, A] of 0.15 less skill

    @property
    def logits_SA(self) -> Floats:
        """The policy's logits, [S, A]."""
        return np.log(self.policy_SA)


def tables(horizon: int = HORIZON) -> dict[str, Table]:
    """Name to table: random transitions, a ladder with detours, a lock, and a long tail of demanded lengths."""
    built = {
        "garnet": (families.garnet(20, 4, 3, horizon, stop_token=True), 0.5, 0.08),
        "ladder": (families.reasoning_ladder(5, 5, 4, horizon), 0.55, 0.05),
        "lock": (families.combination_lock(4, 4, horizon), 0.5, 0.05),
        "tail": (families.tailed_length(0.5, 48, 4, horizon), 0.55, 0.03),
    }
    return {
        name: Table(
            name,
            mdp,
            exact.noisy_policy(mdp, skill, stop_prob=stop_prob),
            exact.noisy_policy(mdp, skill - 0.15, stop_prob=stop_prob),
        )
        for name, (mdp, skill, stop_prob) in built.items()
    }


def critic(table: Table, kind: Critic, gamma: float, draw: int = 0) -> Floats:
    """A value table with a chosen error, [H1, S].

    exact: V of the policy. zero: 0, a critic before its warm-up. optimistic: V of the best policy. stale: V of the
    older policy. noisy: V plus a normal number for every time and state, of half the standard deviation that V has
    over the states visited; `draw` chooses the numbers.
    """
    V_HS = exact.evaluate(table.mdp, table.policy_SA, gamma).V_HS
    if kind == "exact":
        return V_HS
    if kind == "zero":
        return np.zeros_like(V_HS)
    if kind == "optimistic":
        return exact.optimum(table.mdp, gamma).V_HS
    if kind == "stale":
        return exact.evaluate(table.mdp, table.older_SA, gamma).V_HS
    visits_HS = exact.occupancy(table.mdp, table.policy_SA)
    weight_HS = visits_HS / visits_HS.sum()
    spread = float(np.sqrt((weight_HS * (V_HS[:-1] - (weight_HS * V_HS[:-1]).sum()) ** 2).sum()))
    noise_HS = np.random.default_rng(draw).standard_normal(V_HS.shape)
    return V_HS + 0.5 * spread * noise_HS


ESTIMATORS: dict[str, tuple[Literal["gae", "egae", "monte-carlo"], Boundary | None]] = {
    "EGAE, repeat": ("egae", "repeat"),
    "EGAE, critic": ("egae", "critic"),
    "EGAE, terminal": ("egae", "terminal"),
    "GAE": ("gae", None),
    "Monte Carlo": ("monte-carlo", None),
}
Rows = list[dict[str, Any]]  # of data.csv
COLOURS = {
    "EGAE, repeat": PALETTE[0],
    "EGAE, critic": PALETTE[2],
    "EGAE, terminal": PALETTE[3],
    "GAE": PALETTE[6],
    "Monte Carlo": PALETTE[7],
}


def moments(
    table: Table, critic_HS: Floats, name: str, *, window: int | None, gamma: float, lam: float | None
) -> EstimatorMoments:
    """`estimator_moments` of an entry of ESTIMATORS. GAE and Monte Carlo have no window, Monte Carlo no lambda."""
    estimator, boundary = ESTIMATORS[name]
    return estimator_moments(
        table.mdp, table.policy_SA, critic_HS, estimator=estimator, boundary=boundary, window=window, gamma=gamma,
        lam=1.0 if lam is None else lam,
    )  # fmt: skip


def choices(windows: Sequence[int], lams: Sequence[float]) -> list[tuple[str, int | None, float | None]]:
    """Every (name, window, lambda) that differs from all others."""
    windowed = [name for name, (estimator, _) in ESTIMATORS.items() if estimator == "egae"]
    return [
        *((name, window, lam) for name in windowed for window in windows for lam in lams),
        *(("GAE", None, lam) for lam in lams),
        ("Monte Carlo", None, None),
    ]


def visits(table: Table) -> Floats:
    """The share of all generated tokens that is token a in state s at time t, [H, S, A]; it sums to one."""
    weight_HSA = exact.occupancy(table.mdp, table.policy_SA)[:, :, None] * table.policy_SA
    return np.asarray(weight_HSA / weight_HSA.sum())


def rms(x_HSA: Floats, weight_HSA: Floats) -> float:
    """The root of the weighted mean of x^2."""
    return float(np.sqrt((weight_HSA * x_HSA**2).sum() / weight_HSA.sum()))


def short(x: float) -> float:
    """x rounded to five digits, which is what data.csv keeps."""
    return float(f"{x:.5g}")


def finish(axes: Iterable[Any], fontsize: float = 8) -> None:
    """Give every panel a light grid, no frame, and a legend where it has none."""
    for ax in axes:
        if ax.get_legend() is None:
            ax.legend(fontsize=fontsize)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)


def bars_by_critic(ax: Any, values: Callable[[str, Critic], list[float]]) -> None:
    """Draw for each critic a bar for each estimator: the median of the tables, whiskers from lowest to highest."""
    width = 0.8 / len(ESTIMATORS)
    for i, estimator in enumerate(ESTIMATORS):
        per_critic = np.array([values(estimator, kind) for kind in CRITICS])
        middle = np.median(per_critic, axis=1)
        x = np.arange(len(CRITICS)) + (i - (len(ESTIMATORS) - 1) / 2) * width
        reach = [middle - per_critic.min(axis=1), per_critic.max(axis=1) - middle]
        ax.bar(x, middle, width, color=COLOURS[estimator], label=estimator, yerr=reach, error_kw={"lw": 0.8})
    ax.set_xticks(range(len(CRITICS)), CRITICS)
    ax.set_xlabel("critic")
