"""Gymnasium environments over a `TokenMDP`: `TokenEnv` for one response, `TokenVectorEnv` for many at a time.

Importing this module registers one id per family: sim/Garnet-v0, sim/ReasoningLadder-v0, sim/CombinationLock-v0 and
sim/TailedLength-v0. Keyword arguments go to the family:

>>> import gymnasium
>>> env = gymnasium.make("sim.mdp.env:sim/ReasoningLadder-v0", rungs=2, horizon=32)
>>> env.reset(seed=0)
(0, {'time': 0})

Two ways to end. A stop token ends the response in the table: `terminated`. The horizon cuts it: `truncated`, and
`terminated` stays False. The exact solver gives the cut response the value 0, because for a language model the length
cap is part of the task: an unfinished answer earns nothing more. Gymnasium reserves `truncated` for limits outside the
task, after which most agents bootstrap from their critic. An agent that does so optimises another objective than the
one `sim.exact.values` solves. Two remedies: treat `truncated` as final in the agent, or build the environment with
`cap_terminates=True`, which reports the cap as `terminated`. In either case the optimal policy depends on time, which
the observation holds only with `observe_time=True`.

A response that has ended has no state. Its last observation repeats the state in which the last token was chosen.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from sim.mdp.families import FAMILIES
from sim.mdp.table import Bools, Floats, Ints, TokenMDP


class TokenEnv(gymnasium.Env[Any, Any]):
    """An environment whose episode is one response.

    Observations are state indices; with `observe_time` they are pairs (state, tokens so far), int64 [2]. The info is
    {"time": tokens so far}.

    Args:
        mdp: a table, or the name of a family in `sim.mdp.families.FAMILIES`.
        observe_time: put the number of tokens so far into the observation.
        cap_terminates: report the horizon as `terminated` instead of `truncated`; the module docstring says why.
        family_kwargs: arguments of the family.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own declaration is a plain dict)

    def __init__(
        self,
        mdp: TokenMDP | str,
        *,
        observe_time: bool = False,
        cap_terminates: bool = False,
        render_mode: str | None = None,
        **family_kwargs: Any,
    ) -> None:
        self.mdp = _table(mdp, family_kwargs)
        self.observe_time = observe_time
        self.cap_terminates = cap_terminates
        self.render_mode = render_mode
        self.observation_space = _observation_space(self.mdp, observe_time)
        self.action_space = spaces.Discrete(self.mdp.num_tokens)
        self._state, self._time, self._over = 0, 0, True

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._state, self._time, self._over = int(self.mdp.start(self.np_random.random())), 0, False
        return self._observation(), {"time": 0}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._over:
            raise RuntimeError("step: found a response that is over; expected a live one; call reset() first.")
        result = self.mdp.step(self._state, action, self.np_random.random())
        self._time += 1
        ended = bool(result.terminated)
        cut = not ended and self._time == self.mdp.horizon
        if not ended:
            self._state = int(result.next_state)
        self._over = ended or cut
        terminated, truncated = ended or (cut and self.cap_terminates), cut and not self.cap_terminates
        return self._observation(), float(result.reward), terminated, truncated, {"time": self._time}

    def render(self) -> str | None:
        if self.render_mode is None:
            gymnasium.logger.warn('render: no render mode was chosen; build the environment with render_mode="ansi".')
            return None
        return f"{self.mdp.name}: {self._time} of {self.mdp.horizon} tokens, state {self._state}"

    def _observation(self) -> Any:
        return np.array([self._state, self._time]) if self.observe_time else self._state


class TokenVectorEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` environments, stepped together by one gather from the table.

    Spaces and info are those of `TokenEnv`, batched. One generator serves all environments, so a seed gives other
    responses than `num_envs` single environments would.

    Autoreset follows Gymnasium 1.x (`metadata["autoreset_mode"]`). NEXT_STEP: the step after an end ignores the action
    and returns the next start with reward 0. SAME_STEP: the step that ends returns the next start; the last observation
    and info are in `final_obs` and `final_info`. DISABLED: the caller resets with options={"reset_mask": bool [B]}.

    Shape suffix: _B environments.

    Args:
        mdp, observe_time, cap_terminates, family_kwargs: as in `TokenEnv`.
        num_envs: B.
    """

    def __init__(
        self,
        mdp: TokenMDP | str,
        num_envs: int = 1,
        *,
        observe_time: bool = False,
        cap_terminates: bool = False,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        **family_kwargs: Any,
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs: found {num_envs}; expected at least 1; raise it.")
        self.mdp = _table(mdp, family_kwargs)
        self.num_envs = num_envs
        self.observe_time = observe_time
        self.cap_terminates = cap_terminates
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        self.single_observation_space = _observation_space(self.mdp, observe_time)
        self.single_action_space = spaces.Discrete(self.mdp.num_tokens)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._state_B: Ints = np.zeros(num_envs, np.int64)
        self._time_B: Ints = np.zeros(num_envs, np.int64)
        self._over_B: Bools = np.ones(num_envs, np.bool_)
        self._started = False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        mask_B = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        if not isinstance(mask_B, np.ndarray) or mask_B.shape != (self.num_envs,) or mask_B.dtype != np.bool_:
            raise ValueError(
                f"reset_mask: found {mask_B!r}; expected a bool array of shape ({self.num_envs},); "
                "set it where an environment is to start again."
            )
        self._started = True
        self._restart(mask_B)
        return self._observations(), self._infos(mask_B)

    def step(self, actions: Any) -> tuple[Any, Floats, Bools, Bools, dict[str, Any]]:
        waiting_B = self._over_B.copy()
        if not self._started or (waiting_B.any() and self.autoreset_mode is not AutoresetMode.NEXT_STEP):
            raise RuntimeError(
                f"step: found responses that are over in environments {np.flatnonzero(waiting_B).tolist()}; expected "
                'live ones; call reset() first, or reset(options={"reset_mask": ...}) for these alone.'
            )
        tokens_B = np.where(waiting_B, 0, np.asarray(actions))
        result = self.mdp.step(self._state_B, tokens_B, self.np_random.random(self.num_envs))
        live_B = ~waiting_B
        self._time_B += live_B
        ended_B = live_B & result.terminated
        cut_B = live_B & ~ended_B & (self._time_B == self.mdp.horizon)
        self._state_B = np.where(live_B & ~ended_B, result.next_state, self._state_B)
        self._over_B = ended_B | cut_B
        rewards_B = np.where(live_B, result.reward, 0.0)
        self._restart(waiting_B)
        infos: dict[str, Any] = {}
        if self.autoreset_mode is AutoresetMode.SAME_STEP and self._over_B.any():
            over_B = self._over_B
            final_obs_B = np.full(self.num_envs, None, dtype=object)
            observations = self._observations()
            for i in np.flatnonzero(over_B):
                final_obs_B[i] = observations[i] if self.observe_time else int(observations[i])
            infos = {"final_obs": final_obs_B, "_final_obs": over_B.copy()}
            infos |= {"final_info": self._infos(over_B), "_final_info": over_B.copy()}
            self._restart(over_B)
        infos |= self._infos(np.ones(self.num_envs, np.bool_))
        if self.cap_terminates:
            ended_B, cut_B = ended_B | cut_B, np.zeros_like(cut_B)
        return self._observations(), rewards_B, ended_B, cut_B, infos

    def _restart(self, mask_B: Bools) -> None:
        self._state_B[mask_B] = self.mdp.start(self.np_random.random(int(mask_B.sum())))
        self._time_B[mask_B] = 0
        self._over_B = self._over_B & ~mask_B  # a new array: step() still holds the old one

    def _observations(self) -> NDArray[Any]:
        both_B2 = np.stack([self._state_B, self._time_B], axis=-1)
        return (both_B2 if self.observe_time else self._state_B).astype(self.observation_space.dtype)  # a copy

    def _infos(self, mask_B: Bools) -> dict[str, Any]:
        return {"time": np.where(mask_B, self._time_B, 0), "_time": mask_B.copy()}


def _table(mdp: TokenMDP | str, family_kwargs: dict[str, Any]) -> TokenMDP:
    if isinstance(mdp, TokenMDP):
        if family_kwargs:
            raise TypeError(
                f"found {sorted(family_kwargs)} beside a finished table; expected none; pass a family's name."
            )
        return mdp
    if mdp not in FAMILIES:
        raise ValueError(f"mdp: found {mdp!r}; expected a table or one of {sorted(FAMILIES)}; choose one.")
    return FAMILIES[mdp](**family_kwargs)


def _observation_space(mdp: TokenMDP, observe_time: bool) -> spaces.Space[Any]:
    if observe_time:
        return spaces.MultiDiscrete([mdp.num_states, mdp.horizon + 1])
    return spaces.Discrete(mdp.num_states)


def register() -> None:
    """Register sim/<Family>-v0 for every family. Importing this module calls it; calling it again changes nothing."""
    for family in FAMILIES:
        env_id = f"sim/{family.title().replace('_', '')}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(
                env_id,
                entry_point="sim.mdp.env:TokenEnv",
                vector_entry_point="sim.mdp.env:TokenVectorEnv",
                kwargs={"mdp": family},
            )


register()
