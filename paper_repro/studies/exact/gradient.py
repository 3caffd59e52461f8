"""Where the expected policy update points: exact for each estimator, sampled for the whitened and clamped one.

With d_t(s) the chance that a response is alive in s at time t, the update of one step, per response, expects

    g = sum_{t,s,a} d_t(s) pi(a|s) E[K A | t, s, a] grad log pi(a|s)

where A is the estimate and K is 1 where the filter keeps the token. The true gradient has the true advantage in the
place of E[K A]. `cosine` is that of the angle between the two, `length` the ratio of their lengths. Filtering is exact
(`sim.exact.filtered`). Whitening and clamping depend on the batch, so they are sampled, by the library's own functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from paper_repro.studies.exact.gradient_findings import IGNORE_LAST, LAM, WINDOW, caption, draw, measure, say
from paper_repro.studies.exact.sampling import Shaping, estimates, sample, shaped
from paper_repro.studies.exact.tables import CRITICS, Critic, Rows, choices, critic, short, tables
from paper_repro.studies.exact.updates import cosine, direction, expected_update, true_gradient, update
from sim.mdp.table import Floats
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

SLOTS = 256
DRAWS = 8  # of the noisy critic; its update is linear in the error, so each draw has a direction of its own
STEPS = {
    "as estimated": Shaping(),
    "filtered": Shaping(IGNORE_LAST),
    "whitened": Shaping(whiten=True),
    "filtered, whitened": Shaping(IGNORE_LAST, whiten=True),
    "and clamped at 10": Shaping(IGNORE_LAST, whiten=True, clamp=10.0),
    "and clamped at 2": Shaping(IGNORE_LAST, whiten=True, clamp=2.0),
}
SAMPLED = ("EGAE, repeat", "EGAE, critic")
SAMPLED_CRITICS: tuple[Critic, ...] = ("exact", "stale")
Update = tuple[Floats, float]  # [S, A] and the share of tokens clamped
Cell = tuple[str, Critic, str]  # estimator, critic, step of shaping


@dataclass(frozen=True)
class Grid:
    """The values of everything that is varied."""

    windows: tuple[int, ...] = (8, 16, 32)
    lams: tuple[float, ...] = (0.0, 0.9, 0.95, 1.0)
    responses: int = 20_000  # a seed


FULL = Grid((4, 8, 16, 32, 48), (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0), 100_000)


def exact_part(job: tuple[Grid, str, Critic, int]) -> Rows:
    """Compute the exact rows of one table and critic."""
    grid, name, kind, seed = job
    table = tables()[name]
    truth_SA = true_gradient(table)
    draws = range(seed, seed + DRAWS) if kind == "noisy" else [0]
    critics = [critic(table, kind, 1.0, draw) for draw in draws]
    rows: Rows = []
    for estimator, window, lam in choices(grid.windows, grid.lams):
        for ignore_last in (0,) if window is None else (0, IGNORE_LAST):
            updates = [expected_update(table, c_HS, estimator, window, lam, ignore_last) for c_HS in critics]
            rows.append(
                _row(name, kind, estimator, window, lam, "filtered" if ignore_last else "as estimated")
                | {"cosine": short(float(np.mean([cosine(u, truth_SA) for u in updates])))}
                | {"length": short(float(np.mean([np.linalg.norm(u) for u in updates]) / np.linalg.norm(truth_SA)))}
            )
    return rows


def sampled_part(job: tuple[Grid, str, int]) -> dict[Cell, Update]:
    """Sample the updates of one table and seed."""
    grid, name, seed = job
    table = tables()[name]
    windows = sample(table, np.random.default_rng([seed, 1]), grid.responses, WINDOW)
    found = {}
    for kind in SAMPLED_CRITICS:
        critic_HS = critic(table, kind, 1.0)
        for estimator in SAMPLED:
            raw_N = estimates(windows, critic_HS, estimator, gamma=1.0, lam=LAM)
            for step, shaping in STEPS.items():
                advantages_N, clamped = shaped(windows, raw_N, shaping, SLOTS)
                found[estimator, kind, step] = update(table, windows, advantages_N, grid.responses), clamped
    return found


def _row(name: str, kind: str, estimator: str, window: int | None, lam: float | None, step: str) -> dict[str, Any]:
    """A row with every column, numbers still empty."""
    head = {"table": name, "critic": kind, "estimator": estimator, "window": window, "lam": lam, "step": step}
    rest = ("cosine_low", "cosine_high", "length_low", "length_high", "clamped_share")
    return head | {"sampled": False, "cosine": None, "length": None} | dict.fromkeys(rest)


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Compute the exact grid, sample the steps of shaping, and say what both show."""
    grid = FULL if options.full else Grid()
    names = list(tables())
    parts = progress.map(exact_part, [(grid, name, kind, options.seed) for name in names for kind in CRITICS])
    rows = [row for part in parts for row in part]
    seeds = range(options.seed, options.seed + options.seeds)
    found = iter(progress.map(sampled_part, [(grid, name, seed) for name in names for seed in seeds]))
    for name in names:
        rows += _sampled_rows(name, [next(found) for _ in seeds])
    findings = measure(rows)
    answer, details = say(findings)
    shown = caption(len(names), SLOTS, options.seeds, grid.responses)
    return StudyResult(rows, draw(rows, findings), shown, answer, details, LIMITS)


def _sampled_rows(name: str, by_seed: list[dict[Cell, Update]]) -> Rows:
    """The rows of one table's sampled updates, from one dictionary a seed."""
    truth_SA = true_gradient(tables()[name])
    rows: Rows = []
    for key in by_seed[0]:
        cos, length = direction([found[key][0] for found in by_seed], truth_SA)
        estimator, kind, step = key
        clamped = float(np.mean([found[key][1] for found in by_seed]))
        rows.append(
            _row(name, kind, estimator, WINDOW, LAM, step)
            | {"sampled": True, "cosine": short(cos.mean), "length": short(length.mean)}
            | {"cosine_low": short(cos.low), "cosine_high": short(cos.high)}
            | {"length_low": short(length.low), "length_high": short(length.high), "clamped_share": short(clamped)}
        )
    return rows


LIMITS = (
    "A softmax policy over a table: tokens of one state share their logits and no other state does. In a "
    "network, states share parameters, and biases of different states can add up or cancel.",
    "The policy stands still and the update is that of the first gradient step, where the ratio is 1; clipping "
    "never acts.",
    "Four small tables; a range is over them, not a confidence interval. The critic's error is chosen, not learned.",
    "A length other than 1 is a change of the learning rate. After whitening it has no meaning across tables.",
)
STUDY = Study(
    name="gradient",
    chapter="exact",
    question="Where does the policy update of a truncated window point?",
    run=run,
    seeds=8,
    full_seeds=16,
)
