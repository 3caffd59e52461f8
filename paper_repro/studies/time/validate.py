"""Holds the clock to measurements: prices fitted to one set of schedules, predictions for another."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.time.measure import Plan, embedded_prefill_tokens, plans
from sim.clock.fitted import FittedCost, Work, fit_cost
from sim.clock.schedules import trace_of
from tppo.errors import DataError

OTHER_SEEDS = 8


@dataclass(frozen=True)
class Validation:
    """One engine. prices: fitted to the plans marked fit. rows: one a plan, see `validate`.

    spread: median over plans of (largest - smallest) / median of the repeats. waiting: median of wall over CPU time.
    """

    engine: str
    prices: FittedCost
    rows: list[dict[str, Any]]
    spread: float
    waiting: float

    def errors(self, column: str = "error") -> np.ndarray:
        """Relative errors of the schedules that were not fitted to."""
        return np.array([row[column] for row in self.rows if row["split"] == "check"])

    def speed_ups(self) -> list[tuple[str, float, float]]:
        """T-PPO over PPO in generated tokens a second, predicted and measured, where both were checked on the same
        slots, lengths and prompts."""
        check = [row for row in self.rows if row["split"] == "check"]
        out = []
        for cut in check:
            for ppo in check:
                same = all(cut[k] == ppo[k] for k in ("slots", "lengths", "prompt_tokens"))
                if same and cut["window"] is not None and ppo["window"] is None:
                    rates = [cut["tokens"] / cut[k] / (ppo["tokens"] / ppo[k]) for k in ("predicted_s", "measured_s")]
                    out.append((f"{cut['plan']} against PPO", rates[0], rates[1]))
        return out


def validate(engine: str, measured: Sequence[dict[str, Any]]) -> Validation:
    """Fit and predict. Time is CPU time of the process, which one thread on an idle machine spends as wall time.

    Rows: predicted_s with the lengths that the engine was given; other_draws_s with lengths drawn anew from the same
    distribution, scaled to the same number of calls. Raises DataError where measurements are not of these plans.
    """
    seconds: dict[str, list[float]] = defaultdict(list)
    walls: dict[str, list[float]] = defaultdict(list)
    tokens: dict[str, int] = {}
    for row in measured:
        if row["engine"] == engine:
            seconds[row["plan"]].append(row["cpu_seconds"])
            walls[row["plan"]].append(row["seconds"])
            tokens[row["plan"]] = row["tokens"]
    known = plans()
    works = {plan.name: work(plan) for plan in known}
    for plan in known:
        if tokens.get(plan.name) != sum(int(step.new_S.sum()) for step in plan.steps()):
            raise DataError(f"{engine}: no measurement, or one of other lengths, for {plan.name!r}; measure again")
    fit = [plan for plan in known if plan.split == "fit"]
    medians = {name: float(np.median(times)) for name, times in seconds.items()}
    prices = fit_cost(
        [works[plan.name] for plan in fit],
        np.array([medians[plan.name] for plan in fit]),
        padded=engine == "torch",
        prefill_call_tokens=embedded_prefill_tokens(),
    )
    rows: list[dict[str, Any]] = []
    for plan in known:
        predicted, at = prices.seconds(works[plan.name]), medians[plan.name]
        rows.append(
            {
                "engine": engine, "split": plan.split, "plan": plan.name, "slots": plan.slots, "window": plan.window,
                "lengths": plan.lengths.name, "prompt_tokens": plan.prompt_tokens, "tokens": tokens[plan.name],
                "measured_s": at, "lowest_s": min(seconds[plan.name]), "highest_s": max(seconds[plan.name]),
                "wall_s": float(np.median(walls[plan.name])), "repeats": len(seconds[plan.name]),
                "predicted_s": predicted, "error": predicted / at - 1,
                "other_draws_error": _other_draws(plan, prices) / at - 1 if plan.split == "check" else None,
            }
        )  # fmt: skip
    spread = np.median([(row["highest_s"] - row["lowest_s"]) / row["measured_s"] for row in rows])
    return Validation(
        engine, prices, rows, float(spread), float(np.median([r["wall_s"] / r["measured_s"] for r in rows]))
    )


def work(plan: Plan, seed: int | None = None) -> Work:
    """Contexts and traces of all calls of a plan."""
    return [trace_of(step, plan.task) for step in plan.steps(seed)]


def _other_draws(plan: Plan, prices: FittedCost) -> float:
    """Mean prediction over lengths that the engine never saw."""
    return float(np.mean([prices.seconds(work(plan, 10_000 + seed)) for seed in range(OTHER_SEEDS)]))
