"""What the study `transient` finds in its rows: numbers, a figure and sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from paper_repro.studies.intervals import Interval
from paper_repro.studies.learning.bootstrap import Floats, interval
from paper_repro.studies.learning.curves import LABELS, draw_band, tidy
from paper_repro.studies.learning.renewal import expected_critic_bias, expected_solve_rate
from paper_repro.studies.learning.trials import Row, Truth, by_variant, on_grid
from paper_repro.studies.learning.variants import heavy_tailed, windowed
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from tppo.figures import PALETTE, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WINDOWS = (4, 8, 16, 64)
BLOCK = 4  # steps pooled while learning
TOLERANCE = 0.01  # of a solve rate
LEARNING, PER_TOKEN, PER_RESPONSE = "learning", "demands, loss per token", "demands, loss per response"
# A policy that often loses its way: half of its responses end within 15 tokens, 6% are cut at the cap of 64.
LADDER = TokenMDPTask(size=3, num_prompts=4, base_skill=0.3, base_stop_prob=0.03)


@dataclass(frozen=True, eq=False)
class Believed:
    """What a run with one window believes of its policy, less what is true."""

    solve_rate: Floats  # [steps] of finished responses under a fixed policy, computed
    critic: Floats  # [steps] of the critic that fits best all that has finished, computed
    trained: Interval  # of the trained critic, mean over the second half of the steps
    early: Interval  # solve rate while learning, until the transient of the shortest window is over
    late: Interval  # the same over the second half

    @property
    def lasts(self) -> int:
        """How many steps the solve rate is off."""
        return lasts(self.solve_rate)

    @property
    def critic_lasts(self) -> int:
        """How many steps the best critic is off."""
        return lasts(self.critic)


@dataclass(frozen=True, eq=False)
class Findings:
    """How far a run is misled, and for how long."""

    solve_rate: float  # of the start policy
    steps: int
    windows: Mapping[int, Believed]
    early_steps: int  # over which `Believed.early` is a mean
    per_token: Interval  # error of the trained critic on demands when its loss is a mean over tokens
    per_response: Interval  # the same when it is a mean over responses
    largest_gap: float  # between measured and computed solve rates [standard errors]


def measure(rows: list[Row]) -> Findings:
    """Compute the findings from the rows of data.csv, and what a renewal process says beside them."""
    runs = by_variant(rows)
    truth = Truth(heavy_tailed(windowed(WINDOWS[0]), task=LADDER))
    base = exact.softmax(LADDER.base_logits(truth.mdp))
    J, steps = truth.mean_return(base), runs[f"W = {WINDOWS[0]}"][0][-1]["step"]
    # Rounded, and zero added, so that round-off is not written as -0.000.
    expected = {w: (expected_solve_rate(truth, base, w, steps) - J).round(12) + 0.0 for w in WINDOWS}
    blocks = max(lasts(expected[WINDOWS[0]]) // BLOCK, 1)

    def trained(name: str) -> Interval:
        return interval(_critic_bias(runs[name], steps)[:, steps // 2 :].mean(axis=1))

    windows = {}
    for w in WINDOWS:
        drift = _drift(runs[f"W = {w}, {LEARNING}"])
        windows[w] = Believed(
            solve_rate=expected[w],
            critic=expected_critic_bias(truth, base, w, steps).round(12) + 0.0,
            trained=trained(f"W = {w}"),
            early=interval(drift[:, :blocks].mean(axis=1)),
            late=interval(drift[:, drift.shape[1] // 2 :].mean(axis=1)),
        )
    counts = {w: _counts(runs[f"W = {w}"]).sum(axis=0) for w in WINDOWS}
    return Findings(
        solve_rate=J,
        steps=steps,
        windows=windows,
        early_steps=lasts(expected[WINDOWS[0]]) // BLOCK * BLOCK,
        per_token=trained(PER_TOKEN),
        per_response=trained(PER_RESPONSE),
        largest_gap=_largest_gap(counts, expected, J),
    )


def lasts(error_X: Floats) -> int:
    """How many steps it takes until |error| stays within the tolerance."""
    beyond = np.flatnonzero(np.abs(error_X) > TOLERANCE)
    return int(beyond[-1]) + 1 if len(beyond) else 0


def _counts(runs: list[list[Row]]) -> Floats:
    """The solved and finished responses of each step, [R, X, 2]."""
    return np.array([[(row["solved"], row["finished"]) for row in run[1:]] for run in runs], dtype=np.float64)


def _drift(runs: list[list[Row]]) -> Floats:
    """The reported solve rate less the exact one of the policies that sampled, over blocks of steps, [R, blocks]."""
    counts = _counts(runs)
    truth = np.array([[row["exact_return"] for row in run[:-1]] for run in runs])
    blocks = counts.shape[1] // BLOCK
    pooled = counts[:, : blocks * BLOCK].reshape(len(runs), blocks, BLOCK, 2).sum(axis=2)
    means = truth[:, : blocks * BLOCK].reshape(len(runs), blocks, BLOCK).mean(axis=2)
    return np.where(pooled[..., 1] > 0, pooled[..., 0] / np.maximum(pooled[..., 1], 1), means) - means


def _critic_bias(runs: list[list[Row]], steps: int) -> Floats:
    """The mean error of the trained critic after each step, [R, steps]."""
    return on_grid(runs, "step", np.arange(1, steps + 1), "critic_bias")


def _largest_gap(counts: dict[int, Floats], expected: dict[int, Floats], J: float) -> float:
    """The largest |measured - computed| solve rate in binomial standard errors."""
    worst = 0.0
    for window, error_X in expected.items():
        for (solved, finished), error in zip(counts[window], error_X, strict=True):
            rate = J + error
            if finished and 0.0 < rate < 1.0:
                worst = max(worst, abs(solved / finished - rate) / float(np.sqrt(rate * (1 - rate) / finished)))
    return worst


def say(found: Findings) -> tuple[str, list[str]]:
    """The answer, and further findings."""
    steps, (short, *middle, long) = found.steps, WINDOWS
    first, last = found.windows[short], found.windows[long]
    later = " and ".join(str(found.windows[w].lasts) for w in middle)
    answer = (
        f"With a fixed policy of solve rate {found.solve_rate:.3f} and a window of {short} out of {long} tokens, the "
        f"solve rate of finished responses is off by between {first.solve_rate.min():+.3f} and "
        f"{first.solve_rate.max():+.3f}, and stays within {TOLERANCE} after {first.lasts} steps (after {later} with "
        f"windows of {' and '.join(map(str, middle))}): once responses as long as the cap have arrived. A critic "
        f"fitted to everything finished so far errs between {first.critic.min():+.3f} and "
        f"{first.critic.max():+.3f} on average over states, and by {first.critic[-1]:+.3f} "
        f"still after {steps} steps, for it forgets no survivor; with whole responses neither errs by more than "
        f"{max(np.abs(last.solve_rate).max(), np.abs(last.critic).max()):.1g}. All these numbers are computed, not "
        f"sampled."
    )
    return answer, [
        *(_window(found, window) for window in found.windows),
        f"Measured solve rates agree with the computed ones: of {len(WINDOWS) * steps} differences the largest is "
        f"{found.largest_gap:.1f} standard errors.",
        f"A bias that does not pass, with whole responses too: on demands with a Pareto tail the trained critic is "
        f"off by {found.per_response.text('+.3f')} over the second half when its loss is a mean per response, the "
        f"default and that of the authors' port, and by {found.per_token.text('+.3f')} when it is a mean per "
        f"token: in the former a token weighs the less, the longer its response.",
    ]


def _window(found: Findings, window: int) -> str:
    """How far and for how long one window misleads."""
    of = found.windows[window]
    settled = (
        f"within {TOLERANCE} after {of.critic_lasts} steps"
        if of.critic_lasts < found.steps
        else f"still beyond {TOLERANCE} at the end"
    )
    return (
        f"W = {window}: solve rate off by {of.solve_rate.min():+.3f} to {of.solve_rate.max():+.3f}, within {TOLERANCE} "
        f"after {of.lasts} steps ({of.lasts * window} decode steps; the cap is {WINDOWS[-1]}); best-fitting critic off "
        f"by {of.critic.min():+.3f} to {of.critic.max():+.3f}, {settled}; trained critic off by "
        f"{of.trained.text('+.3f')} over the second half; while learning, solve rate off by {of.early.text('+.3f')} in "
        f"the first {found.early_steps} steps and by {of.late.text('+.3f')} over the second half"
    )


def caption(seeds: int) -> str:
    """What the figure shows."""
    return (
        f"Errors of what a run believes, by training step. Left: solve rate of finished responses under a fixed "
        f"policy, computed, and measured over {seeds} seeds with 95% intervals. Middle: mean error of the critic "
        f"that fits best all that has finished so far (computed), and of the trained one, exact at the start. "
        f"Right: solve rate while learning, less that of the policies that sampled. Bands: interquartile mean of "
        f"{seeds} seeds, 95% bootstrap intervals."
    )


def draw(rows: list[Row], found: Findings) -> Figure:
    """Draw the three panels that `caption` describes."""
    runs = by_variant(rows)
    grid_X, short, long = np.arange(1, found.steps + 1), WINDOWS[0], WINDOWS[-1]
    figure = new_figure(14, 4.6)
    axes = figure.subplots(1, 3)
    for i, (w, of) in enumerate(found.windows.items()):
        axes[0].plot(grid_X, of.solve_rate, color=PALETTE[i], lw=1.4, label=f"W = {w}, computed")
        axes[1].plot(grid_X, of.critic, color=PALETTE[i], lw=1.4, ls="--", label=f"W = {w}, computed")
        drift = _drift(runs[f"W = {w}, {LEARNING}"])
        draw_band(axes[2], BLOCK * np.arange(drift.shape[1]) + (BLOCK + 1) / 2, drift, i, f"W = {w}")
    _draw_measured(axes[0], _counts(runs[f"W = {short}"]).sum(axis=0), found)
    for w in (short, long):
        draw_band(axes[1], grid_X, _critic_bias(runs[f"W = {w}"], found.steps), WINDOWS.index(w), f"W = {w}, trained")
    titles = ("policy fixed: solve rate", "policy fixed: critic", f"policy learning, {BLOCK} steps pooled")
    labels = ("reported less exact solve rate", "V less exact V, mean over visited states")
    for ax, title, label in zip(axes, titles, (*labels, labels[0]), strict=True):
        ax.axhline(0, color="k", lw=0.8, ls=":")
        ax.set(xlabel=LABELS["step"], ylabel=label, title=title, xlim=(0, None))
        ax.legend(fontsize=8)
        tidy(ax)
    return figure


def _draw_measured(ax: Any, counts: Floats, found: Findings) -> None:
    """Draw the measured solve rates of the shortest window. counts: solved and finished responses, [steps, 2]."""
    J, error = found.solve_rate, found.windows[WINDOWS[0]].solve_rate
    solved, finished = counts.T[0], np.maximum(counts.T[1], 1)
    ax.errorbar(
        np.arange(1, found.steps + 1), solved / finished - J,
        yerr=1.96 * np.sqrt((J + error) * (1 - J - error) / finished),
        fmt="o", ms=3, lw=0.8, color=PALETTE[0], alpha=0.6, label=f"W = {WINDOWS[0]}, measured",
    )  # fmt: skip
