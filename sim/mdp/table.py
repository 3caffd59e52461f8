"""A finite-horizon decision process over tokens, held as one table.

The simulator (`TokenMDP.step`, `TokenMDP.walk`, `sim.mdp.env`) and the exact solver (`sim.exact`) read the same arrays.
They cannot drift apart.

Vocabulary. A *state* stands for everything that matters in "prompt plus tokens so far". A *token* is an action.
Sampling a token in a state has up to K *outcomes*; each is a next state, a reward and a probability. A next state of
-1 ends the response (EOS): nothing follows and the value there is 0. After `horizon` tokens the response is cut
(LENGTH). The cap is part of the task, so the value there is 0 too, and the objective is the expected sum of rewards
over at most `horizon` tokens.

Shape suffixes: _S states, _A tokens, _K outcomes of one state-token pair, _H time steps; _B any batch shape.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

TERMINAL = -1
PROBABILITY_TOLERANCE = 1e-9


class Step(NamedTuple):
    """The outcome of sampled tokens. All fields share the broadcast shape [B] of the arguments of `TokenMDP.step`."""

    next_state: Ints  # [B] index of the next state, -1 where the response ended
    reward: Floats  # [B] reward of this token
    terminated: Bools  # [B] the table ended the response (EOS); the horizon is the caller's business


class Walk(NamedTuple):
    """A whole response replayed on a deterministic table."""

    reward: float  # undiscounted sum of the rewards of all tokens
    states: tuple[int, ...]  # states[t] is where tokens[t] was chosen; the last state reached follows if not ended
    ended: bool  # the last token ended the response (EOS); False when it is unfinished or was cut by the horizon


@dataclass(frozen=True, eq=False)
class TokenMDP:
    """A token MDP. It is immutable: the arrays are kept as read-only views.

    >>> coin = TokenMDP(
    ...     name="stop or go on", horizon=3, initial_S=np.array([1.0]),
    ...     next_SAK=np.array([[[-1], [0]]]), prob_SAK=np.ones((1, 2, 1)), reward_SAK=np.array([[[1.0], [0.0]]]),
    ... )
    >>> coin.stop_tokens, coin.deterministic, coin.ends_only_by_stop_token
    ((0,), True, True)
    >>> coin.walk(0, [1, 1, 0])
    Walk(reward=1.0, states=(0, 0, 0), ended=True)
    """

    name: str  # of the family, for reports
    horizon: int  # T_max: the largest number of tokens in a response
    initial_S: Floats  # [S] probability that a response starts in the state
    next_SAK: Ints  # [S, A, K] index of the next state, -1 for the end
    prob_SAK: Floats  # [S, A, K] probability of the outcome; sums to one over K
    reward_SAK: Floats  # [S, A, K] reward of the outcome

    def __post_init__(self) -> None:
        if isinstance(self.horizon, bool) or not isinstance(self.horizon, int) or self.horizon < 1:
            _fail(
                "horizon", repr(self.horizon), "an int of at least 1", "pass the largest number of tokens of a response"
            )
        for field, dtype in (
            ("initial_S", np.float64),
            ("next_SAK", np.int64),
            ("prob_SAK", np.float64),
            ("reward_SAK", np.float64),
        ):
            _check_array(field, getattr(self, field), np.dtype(dtype))
        shape = self.next_SAK.shape
        if len(shape) != 3 or 0 in shape:
            _fail(
                "next_SAK",
                f"shape {shape}",
                "three axes [S, A, K], none empty",
                "add a last axis of length 1 for one outcome",
            )
        for field, expected in (("initial_S", shape[:1]), ("prob_SAK", shape), ("reward_SAK", shape)):
            found = getattr(self, field).shape
            if found != expected:
                _fail(
                    field,
                    f"shape {found}",
                    f"shape {expected}, from next_SAK {shape}",
                    "build all tables with the same S, A and K",
                )
        if self.next_SAK.min() < TERMINAL or self.next_SAK.max() >= shape[0]:
            found = f"values from {self.next_SAK.min()} to {self.next_SAK.max()}"
            _fail("next_SAK", found, f"state indices 0..{shape[0] - 1}, or -1", "use -1 for the end of the response")
        if not np.isfinite(self.reward_SAK).all():
            _fail("reward_SAK", "NaN or infinity", "finite rewards", "replace the entries that are not finite")
        _check_probabilities("initial_S", self.initial_S)
        _check_probabilities("prob_SAK", self.prob_SAK)
        for field in ("initial_S", "next_SAK", "prob_SAK", "reward_SAK"):
            view = getattr(self, field).view()
            view.flags.writeable = False
            object.__setattr__(self, field, view)

    @property
    def num_states(self) -> int:
        return self.next_SAK.shape[0]

    @property
    def num_tokens(self) -> int:
        return self.next_SAK.shape[1]

    @property
    def num_outcomes(self) -> int:
        return self.next_SAK.shape[2]

    @cached_property
    def end_prob_SA(self) -> Floats:
        """[S, A] probability that the token ends the response. Exactly 1.0 when every possible outcome does."""
        ends_SAK = self.next_SAK == TERMINAL
        always_SA = (ends_SAK | (self.prob_SAK == 0.0)).all(axis=-1)
        return np.where(always_SA, 1.0, np.where(ends_SAK, self.prob_SAK, 0.0).sum(axis=-1))

    @cached_property
    def mean_reward_SA(self) -> Floats:
        """[S, A] expected reward of the token."""
        return np.einsum("sak,sak->sa", self.prob_SAK, self.reward_SAK)

    @cached_property
    def deterministic(self) -> bool:
        """Every state-token pair has one outcome, or several that agree on next state and reward."""
        likeliest_SA1 = self.prob_SAK.argmax(axis=-1)[..., None]
        same_next = self.next_SAK == np.take_along_axis(self.next_SAK, likeliest_SA1, axis=-1)
        same_reward = self.reward_SAK == np.take_along_axis(self.reward_SAK, likeliest_SA1, axis=-1)
        return bool(((same_next & same_reward) | (self.prob_SAK == 0.0)).all())

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """Tokens that end the response from every state with probability one."""
        return tuple(int(token) for token in np.flatnonzero((self.end_prob_SA == 1.0).all(axis=0)))

    @cached_property
    def ends_only_by_stop_token(self) -> bool:
        """Nothing but a stop token can end a response before the horizon; a language-model loop needs this."""
        others = [token for token in range(self.num_tokens) if token not in self.stop_tokens]
        return not (self.end_prob_SA[:, others] > 0.0).any()

    @cached_property
    def _cdf_SAK(self) -> Floats:
        """[S, A, K] cumulative probabilities, exactly 1.0 from the last possible outcome on (no round-off gap)."""
        cdf_SAK = np.cumsum(self.prob_SAK, axis=-1)
        possible_from_SAK = np.cumsum(self.prob_SAK[..., ::-1] > 0.0, axis=-1)[..., ::-1]
        cdf_SAK[possible_from_SAK == (self.prob_SAK > 0.0)] = 1.0
        return cdf_SAK

    @cached_property
    def _cdf_S(self) -> Floats:
        """[S] cumulative probabilities of the start states, exactly 1.0 from the last possible one on."""
        cdf_S = np.cumsum(self.initial_S)
        cdf_S[np.flatnonzero(self.initial_S)[-1] :] = 1.0
        return cdf_S

    def start(self, u: ArrayLike) -> Ints:
        """Draw start states by inverse CDF.

        Args:
            u: [B] uniform numbers in [0, 1).
        """
        return np.searchsorted(self._cdf_S, _check_uniform(u), side="right").astype(np.int64)

    def step(self, state: ArrayLike, token: ArrayLike, u: ArrayLike) -> Step:
        """Sample one token's outcome by inverse CDF. Arguments broadcast against one another.

        Args:
            state: [B] state indices.
            token: [B] tokens.
            u: [B] uniform numbers in [0, 1): the k-th outcome is drawn when cdf[k-1] <= u < cdf[k].
        """
        state_B = _check_index("state", state, self.num_states)
        token_B = _check_index("token", token, self.num_tokens)
        cdf_BK = self._cdf_SAK[state_B, token_B]
        outcome_B = (_check_uniform(u)[..., None] >= cdf_BK).sum(axis=-1)
        next_B = self.next_SAK[state_B, token_B, outcome_B]
        return Step(next_B, self.reward_SAK[state_B, token_B, outcome_B], next_B == TERMINAL)

    def walk(self, start_state: int, tokens: ArrayLike) -> Walk:
        """Replay a response. Only for deterministic tables, where the tokens fix the states.

        Args:
            start_state: the state that the prompt stands for.
            tokens: [T] token ids, T <= horizon; a token that ends the response can only be the last.
        """
        if not self.deterministic:
            _fail(
                "walk",
                f"table {self.name!r} with several outcomes",
                "a deterministic table",
                "sample with step() instead",
            )
        tokens_T = np.atleast_1d(np.asarray(tokens, dtype=np.int64)) if np.size(tokens) else np.zeros(0, np.int64)
        if len(tokens_T) > self.horizon:
            _fail(
                "tokens",
                f"{len(tokens_T)} tokens",
                f"at most horizon = {self.horizon}",
                "cut the response at the horizon",
            )
        state = int(_check_index("start_state", start_state, self.num_states))
        total, states = 0.0, [state]
        for t, token in enumerate(tokens_T):
            result = self.step(state, token, 0.0)
            total += float(result.reward)
            if result.terminated:
                if t + 1 < len(tokens_T):
                    _fail(
                        "tokens",
                        f"{len(tokens_T) - t - 1} tokens after the end",
                        "none",
                        f"drop the tokens after index {t}",
                    )
                return Walk(total, tuple(states), True)
            state = int(result.next_state)
            states.append(state)
        return Walk(total, tuple(states), False)


def _fail(field: str, found: str, expected: str, remedy: str) -> NoReturn:
    raise ValueError(f"{field}: found {found}; expected {expected}; {remedy}.")


def _check_array(field: str, value: Any, dtype: np.dtype[Any]) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__
        _fail(field, found, f"a numpy array of {dtype}", f"convert with np.asarray(..., dtype=np.{dtype})")


def _check_probabilities(field: str, prob: Floats) -> None:
    if not (prob >= 0.0).all():
        _fail(field, f"a smallest entry of {prob.min()}", "probabilities of at least 0", "clip or rebuild the table")
    error = float(np.abs(prob.sum(axis=-1) - 1.0).max())
    if error > PROBABILITY_TOLERANCE:
        found = f"a last-axis sum that misses 1 by {error:.3g}"
        _fail(field, found, f"sums of 1 within {PROBABILITY_TOLERANCE:g}", "divide by the sum over the last axis")


def _check_index(field: str, value: ArrayLike, size: int) -> Ints:
    array = np.asarray(value)
    if array.dtype.kind not in "iu":
        _fail(field, f"dtype {array.dtype}", "integers", "pass indices, not floats")
    if array.size and (array.min() < 0 or array.max() >= size):
        # A -1 would silently read the last row of the table.
        _fail(
            field,
            f"values from {array.min()} to {array.max()}",
            f"0..{size - 1}",
            "a state of -1 has ended: reset it first",
        )
    return array.astype(np.int64, copy=False)


def _check_uniform(u: ArrayLike) -> Floats:
    array = np.asarray(u, dtype=np.float64)
    if not ((array >= 0.0) & (array < 1.0)).all():
        _fail(
            "u", f"values from {array.min()} to {array.max()}", "0 <= u < 1", "draw with numpy.random.Generator.random"
        )
    return array
