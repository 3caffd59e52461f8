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
    """One engine. prices: fitted to the plans marked fit. rows: one a plan, see `validate`."""

    engine: str
    prices: FittedCost
    rows: list[dict[str, Any]]

    @property
    def spread(self) -> float:
        """The median over plans of (largest - smallest) / median of the repeats."""
        return float(np.median([(row["highest_s"] - row["lowest_s"]) / row["measured_s"] for row in self.rows]))

    @property
    def waiting(self) -> float:
        """The median over plans of wall time over CPU time."""
        return float(np.median([row["wall_s"] / row["measured_s"] for row in self.rows]))

    def errors(self, column: str = "error") -> np.ndarray:
        """The relative errors of the schedules that were not fitted to."""
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
    repeats: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in measured:
        if row["engine"] == engine:
            repeats[row["plan"]].append(row)
    known = plans()
    works = {plan.name: work(plan) for plan in known}
    for plan in known:
        tokens = sum(int(step.new_S.sum()) for step in plan.steps())
        if not repeats[plan.name] or repeats[plan.name][-1]["tokens"] != tokens:
            raise DataError(f"{engine}: no measurement, or one of other lengths, for {plan.name!r}; measure again")
    fit = [plan for plan in known if plan.split == "fit"]
    prices = fit_cost(
        [works[plan.name] for plan in fit],
        np.array([_median(repeats[plan.name], "cpu_seconds") for plan in fit]),
        padded=engine == "torch",
        prefill_call_tokens=embedded_prefill_tokens(),
    )
    rows = [_row(engine, plan, repeats[plan.name], prices, works[plan.name]) for plan in known]
    return Validation(engine, prices, rows)


def _row(engine: str, plan: Plan, repeats: list[dict[str, Any]], prices: FittedCost, calls: Work) -> dict[str, Any]:
    """What a plan took and what it was predicted to take."""
    seconds, at = [row["cpu_seconds"] for row in repeats], _median(repeats, "cpu_seconds")
    predicted = prices.seconds(calls)
    return {
        "engine": engine, "split": plan.split, "plan": plan.name, "slots": plan.slots, "window": plan.window,
        "lengths": plan.lengths.name, "prompt_tokens": plan.prompt_tokens, "tokens": repeats[-1]["tokens"],
        "measured_s": at, "lowest_s": min(seconds), "highest_s": max(seconds),
        "wall_s": _median(repeats, "seconds"), "repeats": len(seconds),
        "predicted_s": predicted, "error": predicted / at - 1,
        "other_draws_error": _other_draws(plan, prices) / at - 1 if plan.split == "check" else None,
    }  # fmt: skip


def _median(repeats: list[dict[str, Any]], column: str) -> float:
    """The median of one column over the repeats of a plan."""
    return float(np.median([row[column] for row in repeats]))


def work(plan: Plan, seed: int | None = None) -> Work:
    """The contexts and traces of all calls of a plan."""
    return [trace_of(step, plan.task) for step in plan.steps(seed)]


def _other_draws(plan: Plan, prices: FittedCost) -> float:
    """The mean prediction over lengths that the engine never saw."""
    return float(np.mean([prices.seconds(work(plan, 10_000 + seed)) for seed in range(OTHER_SEEDS)]))
