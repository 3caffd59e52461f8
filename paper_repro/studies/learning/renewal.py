"""What a fixed policy makes a run believe, computed: responses enter together, and the short ones finish first.

Slots are a renewal process in training steps: a response takes as many steps as it has windows, then a new one opens.

Shape suffixes: _H time, _S states, _A tokens, _K outcomes. H1 is H + 1.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from paper_repro.studies.learning.bootstrap import Floats
from paper_repro.studies.learning.trials import Truth
from sim import exact
from sim.mdp.table import TokenMDP


def expected_solve_rate(truth: Truth, policy: Floats, window: int, steps: int) -> Floats:
    """Expected solved over expected finished responses of each step, [steps], under a policy that does not move.

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
    """The mean error of the least-squares critic of all tokens that have finished by the end of each step, [steps].

    This is its limit for ever more slots. Of the responses opened k steps ago, those of at most n = k W tokens
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
    """V_t(s) of a policy, [H, S]."""
    V_HS = np.empty((mdp.horizon, mdp.num_states))
    for backup in exact.iter_evaluate(mdp, policy):
        V_HS[backup.t] = backup.V_S
    return V_HS


def _opened(truth: Truth, policy: Floats, window: int, steps: int) -> Floats:
    """The probability u_k that a slot opens a new response in step k, [steps + 1]."""
    f = _by_windows(exact.lengths(truth.mdp, policy).prob_H1, window)
    opened = np.zeros(steps + 1)
    opened[0] = 1.0
    for k in range(1, steps + 1):
        reach = min(k, len(f) - 1)
        opened[k] = f[1 : reach + 1] @ opened[k - np.arange(1, reach + 1)]
    return opened


def _by_windows(mass_H1: Floats, window: int) -> Floats:
    """Sum mass by length into mass by the number of windows that a length takes."""
    return np.bincount(-(-np.arange(len(mass_H1)) // window), mass_H1).astype(np.float64)
