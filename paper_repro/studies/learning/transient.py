"""The responses that finish first are the short ones: what critic and solve rate believe until the long ones arrive."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paper_repro.studies.learning.bootstrap import Floats, band, interval, interval_limit
from paper_repro.studies.learning.trials import (
    DEMANDS,
    LABELS,
    Row,
    Trial,
    Truth,
    by_variant,
    critic_table,
    heavy_tailed,
    on_grid,
    tidy,
    train_all,
)
from paper_repro.studies.learning.variants import WINDOWED_CRITIC, tppo
from paper_repro.tasks.token_mdp import TokenMDPTask
from sim import exact
from sim.mdp.table import TokenMDP
from tppo.algorithms.auxiliaries.critic import WindowedCriticOptions
from tppo.figures import PALETTE, new_figure
from tppo.studies.study import Study, StudyOptions, StudyResult, Ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from tppo.loop.trainer import Trainer

WINDOWS = (4, 8, 16, 64)
SLOTS = 128
STEPS = 32
BLOCK = 4  # steps pooled while learning
TOLERANCE = 0.01  # of a solve rate
LEARNING, PER_TOKEN, PER_RESPONSE = "learning", "demands, loss per token", "demands, loss per response"
# A policy that often loses its way: half of its responses end within 15 tokens, 6% are cut at the cap of 64.
LADDER = TokenMDPTask(size=3, num_prompts=4, base_skill=0.3, base_stop_prob=0.03)


def believed(trainer: Trainer, metrics: Row, truth: Truth) -> Row:
    """Solved and finished responses of the step, and the critic's mean error over the states the policy visits."""
    V_S, visits_S = truth.values(truth.policy(trainer))
    critic_S = critic_table(trainer).values_S.detach().double().numpy()
    return {
        "finished": metrics["finished"],
        "solved": round((metrics["solve_rate"] or 0.0) * metrics["finished"]),
        "critic_bias": round(float(visits_S @ (critic_S - V_S) / visits_S.sum()), 6),
    }


def expected_solve_rate(truth: Truth, policy: Floats, window: int, steps: int) -> Floats:
    """[steps] expected solved over expected finished responses of each step, under a policy that does not move.

    With f_j the chance that a response takes j windows and g_j that it does and is solved, a slot opens a new response
    in step k with probability u_k = sum_j f_j u_{k-j}, u_0 = 1 (a renewal process). Finished responses of step k are
    those opened in step k + 1, and of them sum_j g_j u_{k+1-j} are solved. The ratio tends to sum_j g_j = J.
    """
    solved_S = (policy * truth.mdp.mean_reward_SA).sum(axis=1)  # rewards come with the stop token, and are 0 or 1
    g = _by_windows(np.concatenate([[0.0], exact.occupancy(truth.mdp, policy) @ solved_S]), window)
    opened = _opened(truth, policy, window, steps)
    solved = [g[1 : k + 1] @ opened[k - np.arange(1, min(k, len(g) - 1) + 1)] for k in range(1, steps + 1)]
    return np.array(solved) / opened[1:]


def expected_critic_bias(truth: Truth, policy: Floats, window: int, steps: int) -> Floats:
    """[steps] mean error of the least-squares critic of all tokens that have finished by the end of each step.

    What it is in expectation over ever more slots. Of the responses opened k steps ago, those of at most n = k W tokens
    have finished; the tokens they hold in state s, and those of them in solved responses, are

        N_n(s) = sum_t d_t(s) P(at most n tokens | s at t),   S_n(s) = sum_t d_t(s) P(same, and solved | s at t)

    and V(s) = sum S / sum N over all that were opened. Both probabilities are values of the table with the horizon n.
    A state without a finished token keeps its exact value.
    """
    mdp = truth.mdp
    V_S, visits_S = truth.values(policy)
    alive_HS = exact.occupancy(mdp, policy)
    stop_SAK = np.zeros_like(mdp.reward_SAK)
    stop_SAK[:, list(mdp.stop_tokens)] = 1.0
    held, solved = [], []
    for n in range(window, mdp.horizon + window, window):
        # At the horizon the cap ends what has not ended by itself.
        solves_HS = _values(dataclasses.replace(mdp, horizon=min(n, mdp.horizon)), policy)
        if n < mdp.horizon:
            ends_HS = _values(dataclasses.replace(mdp, horizon=n, reward_SAK=stop_SAK), policy)
        else:
            ends_HS = np.ones_like(alive_HS)
        held.append((alive_HS[:n] * ends_HS).sum(axis=0))
        solved.append((alive_HS[:n] * solves_HS).sum(axis=0))
    opened = _opened(truth, policy, window, steps)
    bias = np.empty(steps)
    for k in range(1, steps + 1):
        ages = np.minimum(np.arange(k, 0, -1), len(held)) - 1  # windows that responses opened in steps 0..k-1 have had
        N_S, S_S = (np.einsum("k,ks->s", opened[:k], np.array(x)[ages]) for x in (held, solved))
        fit_S = np.where(N_S > 0, S_S / np.maximum(N_S, 1e-300), V_S)
        bias[k - 1] = visits_S @ (fit_S - V_S) / visits_S.sum()
    return bias


def _values(mdp: TokenMDP, policy: Floats) -> Floats:
    """[H, S] V_t(s)."""
    V_HS = np.empty((mdp.horizon, mdp.num_states))
    for backup in exact.iter_evaluate(mdp, policy):
        V_HS[backup.t] = backup.V_S
    return V_HS


def _opened(truth: Truth, policy: Floats, window: int, steps: int) -> Floats:
    """[steps + 1] probability u_k that a slot opens a new response in step k."""
    f = _by_windows(exact.lengths(truth.mdp, policy).prob_H1, window)
    opened = np.zeros(steps + 1)
    opened[0] = 1.0
    for k in range(1, steps + 1):
        reach = min(k, len(f) - 1)
        opened[k] = f[1 : reach + 1] @ opened[k - np.arange(1, reach + 1)]
    return opened


def _by_windows(mass_H1: Floats, window: int) -> Floats:
    """Mass by the number of windows that a length takes, from mass by length."""
    return np.bincount(-(-np.arange(len(mass_H1)) // window), mass_H1).astype(np.float64)


def lasts(error_X: Floats) -> int:
    """Steps until |error| stays within the tolerance."""
    beyond = np.flatnonzero(np.abs(error_X) > TOLERANCE)
    return int(beyond[-1]) + 1 if len(beyond) else 0


def plan(options: StudyOptions) -> list[Trial]:
    """Every window with every seed, by a policy that does not move and by one that learns; a point each step.

    The critic's loss is a mean over tokens. On the other studies' table, whole responses compare it with the default,
    a mean over responses of means over tokens.
    """
    per_token = replace(WINDOWED_CRITIC, mini_batch=SLOTS, aggregation="token-mean")
    per_response = replace(per_token, aggregation="seq-mean-token-mean")
    kinds: list[tuple[str, int, float, WindowedCriticOptions, TokenMDPTask]] = []
    for window in WINDOWS:
        kinds += [(f"W = {window}", window, 0.0, per_token, LADDER)]
        kinds += [(f"W = {window}, {LEARNING}", window, 0.05, per_token, LADDER)]
    kinds += [(PER_TOKEN, WINDOWS[-1], 0.0, per_token, DEMANDS)]
    kinds += [(PER_RESPONSE, WINDOWS[-1], 0.0, per_response, DEMANDS)]
    runs = []
    for name, window, rate, critic, task in kinds:
        for seed in range(options.seed, options.seed + options.seeds):
            algorithm = replace(tppo(window, critic=critic), warmup_steps=0)
            config = heavy_tailed(algorithm, seed=seed, rate=rate, slots=SLOTS, mini_batch=SLOTS, task=task)
            runs.append(Trial(name, config, ("step", STEPS), points=STEPS, critic="exact", observe=believed))
    return runs


def run(options: StudyOptions, progress: Ticks) -> StudyResult:
    """Fit a critic, exact at the start, to what finishes; compare with the truth each step."""
    runs = plan(options)
    return result(train_all(runs, progress), Truth(runs[0].config))


def _counts(runs: list[list[Row]]) -> Floats:
    """[R, X, 2] solved and finished responses of each step."""
    return np.array([[(row["solved"], row["finished"]) for row in run[1:]] for run in runs], dtype=np.float64)


def _drift(runs: list[list[Row]]) -> Floats:
    """[R, blocks] reported solve rate less the exact one of the policies that sampled, over blocks of steps."""
    counts = _counts(runs)
    truth = np.array([[row["exact_return"] for row in run[:-1]] for run in runs])
    blocks = counts.shape[1] // BLOCK
    pooled = counts[:, : blocks * BLOCK].reshape(len(runs), blocks, BLOCK, 2).sum(axis=2)
    means = truth[:, : blocks * BLOCK].reshape(len(runs), blocks, BLOCK).mean(axis=2)
    return np.where(pooled[..., 1] > 0, pooled[..., 0] / np.maximum(pooled[..., 1], 1), means) - means


def result(rows: list[Row], truth: Truth) -> StudyResult:
    """What the rows say, and what the renewal process says."""
    runs = by_variant(rows)
    base = exact.softmax(LADDER.base_logits(truth.mdp))
    J, steps, short, long = truth.mean_return(base), runs[f"W = {WINDOWS[0]}"][0][-1]["step"], WINDOWS[0], WINDOWS[-1]
    grid_X = np.arange(1, steps + 1)
    seeds = len(runs[f"W = {short}"])
    # Rounded, and zero added, so that round-off is not written as -0.000.
    expected = {w: (expected_solve_rate(truth, base, w, steps) - J).round(12) + 0.0 for w in WINDOWS}
    fitted = {w: expected_critic_bias(truth, base, w, steps).round(12) + 0.0 for w in WINDOWS}
    critic = {name: on_grid(runs[name], "step", grid_X, "critic_bias") for name in runs if LEARNING not in name}
    drift = {w: _drift(runs[f"W = {w}, {LEARNING}"]) for w in WINDOWS}
    counts = {w: _counts(runs[f"W = {w}"]).sum(axis=0) for w in WINDOWS}

    figure = new_figure(14, 4.6)
    axes = figure.subplots(1, 3)
    for i, w in enumerate(WINDOWS):
        axes[0].plot(grid_X, expected[w], color=PALETTE[i], lw=1.4, label=f"W = {w}, computed")
        axes[1].plot(grid_X, fitted[w], color=PALETTE[i], lw=1.4, ls="--", label=f"W = {w}, computed")
        _band(axes[2], BLOCK * np.arange(drift[w].shape[1]) + (BLOCK + 1) / 2, drift[w], i, f"W = {w}")
    solved, finished = counts[short].T[0], np.maximum(counts[short].T[1], 1)
    error = 1.96 * np.sqrt((J + expected[short]) * (1 - J - expected[short]) / finished)
    axes[0].errorbar(
        grid_X, solved / finished - J, yerr=error, fmt="o", ms=3, lw=0.8, color=PALETTE[0], alpha=0.6,
        label=f"W = {short}, measured",
    )  # fmt: skip
    for i, w in enumerate(WINDOWS):
        if w in (short, long):
            _band(axes[1], grid_X, critic[f"W = {w}"], i, f"W = {w}, trained")
    titles = ("policy fixed: solve rate", "policy fixed: critic", f"policy learning, {BLOCK} steps pooled")
    labels = ("reported less exact solve rate", "V less exact V, mean over visited states")
    for ax, title, label in zip(axes, titles, (*labels, labels[0]), strict=True):
        ax.axhline(0, color="k", lw=0.8, ls=":")
        ax.set(xlabel=LABELS["step"], ylabel=label, title=title, xlim=(0, None))
        ax.legend(fontsize=8)
        tidy(ax)

    last = {w: lasts(expected[w]) for w in WINDOWS}
    settled = {
        w: f"within {TOLERANCE} after {n} steps"
        if (n := lasts(fitted[w])) < steps
        else f"still beyond {TOLERANCE} at the end"
        for w in WINDOWS
    }
    half = {name: interval(critic[name][:, steps // 2 :].mean(axis=1)) for name in critic}
    early = {w: interval(drift[w][:, : max(last[short] // BLOCK, 1)].mean(axis=1)) for w in WINDOWS}
    late = {w: interval(drift[w][:, drift[w].shape[1] // 2 :].mean(axis=1)) for w in WINDOWS}
    return StudyResult(
        rows=rows,
        figure=figure,
        caption=(
            f"Errors of what a run believes, by training step. Left: solve rate of finished responses under a fixed "
            f"policy, computed, and measured over {seeds} seeds with 95% intervals. Middle: mean error of the critic "
            f"that fits best all that has finished so far (computed), and of the trained one, exact at the start. "
            f"Right: solve rate while learning, less that of the policies that sampled. Bands: interquartile mean of "
            f"{seeds} seeds, 95% bootstrap intervals."
        ),
        answer=(
            f"With a fixed policy of solve rate {J:.3f} and a window of {short} out of {long} tokens, the solve "
            f"rate of finished responses is off by between {expected[short].min():+.3f} and "
            f"{expected[short].max():+.3f}, and stays within {TOLERANCE} after "
            f"{last[short]} steps (after {last[WINDOWS[1]]} and {last[WINDOWS[2]]} with "
            f"windows of {WINDOWS[1]} and {WINDOWS[2]}): once responses as long as the cap have arrived. A critic "
            f"fitted to everything finished so far errs between {fitted[short].min():+.3f} and "
            f"{fitted[short].max():+.3f} on average over states, and by {fitted[short][-1]:+.3f} "
            f"still after {steps} steps, for it forgets no survivor; with whole responses neither errs by more than "
            f"{max(np.abs(expected[long]).max(), np.abs(fitted[long]).max()):.1g}. All these numbers are computed, not "
            f"sampled."
        ),
        details=[
            *(
                f"W = {w}: solve rate off by {expected[w].min():+.3f} to {expected[w].max():+.3f}, within {TOLERANCE} "
                f"after {last[w]} steps ({last[w] * w} decode steps; the cap is {long}); best-fitting critic off by "
                f"{fitted[w].min():+.3f} to {fitted[w].max():+.3f}, {settled[w]}; "
                f"trained critic off by {half[f'W = {w}'].text('+.3f')} over the second half; while "
                f"learning, solve rate off by {early[w].text('+.3f')} in the first {last[short] // BLOCK * BLOCK} "
                f"steps and by {late[w].text('+.3f')} over the second half"
                for w in WINDOWS
            ),
            f"Measured solve rates agree with the computed ones: of {len(WINDOWS) * steps} differences the largest is "
            f"{_largest_gap(counts, expected, J):.1f} standard errors.",
            f"A bias that does not pass, with whole responses too: on demands with a Pareto tail the trained critic is "
            f"off by {half[PER_RESPONSE].text('+.3f')} over the second half when its loss is a mean per response, the "
            f"default and that of the authors' port, and by {half[PER_TOKEN].text('+.3f')} when it is a mean per "
            f"token: in the former a token weighs the less, the longer its response.",
        ],
        limits=[
            "Sign and size follow from the task: here most responses that end in the first window have given up, and "
            "the slow ones are lost more often than those of middling length.",
            "All responses enter in the first step. A run that resumes with its responses in flight has no transient.",
            "Computed numbers are those of ever more slots. A trained critic forgets, follows with a delay and has the "
            "noise of its step size of 0.05, which here is as large as the effect.",
            "While learning, two errors mix: which responses finish, and that they were sampled in part by older "
            "policies.",
            interval_limit(seeds),
        ],
    )


def _band(ax: Axes, x: NDArray[np.floating], scores_RX: Floats, colour: int, name: str) -> None:
    curve = band(scores_RX, resamples=500)
    ax.plot(x, curve.mid_X, color=PALETTE[colour], lw=1.6, label=name)
    ax.fill_between(x, curve.low_X, curve.high_X, color=PALETTE[colour], alpha=0.18, lw=0)


def _largest_gap(counts: dict[int, Floats], expected: dict[int, Floats], J: float) -> float:
    """Largest |measured - computed| solve rate in binomial standard errors."""
    worst = 0.0
    for window, error_X in expected.items():
        for (solved, finished), error in zip(counts[window], error_X, strict=True):
            rate = J + error
            if finished and 0.0 < rate < 1.0:
                worst = max(worst, abs(solved / finished - rate) / float(np.sqrt(rate * (1 - rate) / finished)))
    return worst


STUDY = Study(
    name="transient",
    chapter="learning",
    question="How long do the first, short responses mislead the critic and the reported solve rate?",
    run=run,
    seeds=6,
    full_seeds=40,
)
