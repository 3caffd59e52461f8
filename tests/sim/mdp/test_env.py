"""Gymnasium environments: the checker, the two ways to end, and the vector environment against Gymnasium's own."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env, data_equivalence
from gymnasium.vector import AutoresetMode, SyncVectorEnv

import sim.mdp.env
from sim.exact.policies import noisy_policy
from sim.exact.values import evaluate
from sim.mdp.env import TokenEnv, TokenVectorEnv
from sim.mdp.families import FAMILIES, combination_lock, garnet, tailed_length
from tests.support import sim_brute_force as brute

IDS = ["sim/Garnet-v0", "sim/ReasoningLadder-v0", "sim/CombinationLock-v0", "sim/TailedLength-v0"]


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("observe_time", [False, True])
def test_gymnasiums_checker_finds_nothing(env_id, observe_time):
    """Warnings are errors in this suite."""
    env = gymnasium.make(env_id, observe_time=observe_time)
    check_env(env.unwrapped)
    env.close()


def test_every_family_is_registered_and_the_module_prefix_works():
    assert len(FAMILIES) == len(IDS)
    env = gymnasium.make("sim.mdp.env:sim/TailedLength-v0", tail=2.0, max_demand=5)
    assert env.unwrapped.mdp.num_states == 6
    before = dict(gymnasium.registry)
    sim.mdp.env.register()
    assert dict(gymnasium.registry) == before


@pytest.mark.parametrize(("cap_terminates", "expected"), [(False, (False, True)), (True, (True, False))])
def test_a_stop_terminates_and_the_horizon_truncates_unless_told_otherwise(cap_terminates, expected):
    env = TokenEnv(combination_lock(2, 3, 3, seed=0), observe_time=True, cap_terminates=cap_terminates)
    assert env.reset(seed=0)[0].tolist() == [0, 0]
    right = [int(np.flatnonzero(env.mdp.next_SAK[i, :, 0] == i + 1)[0]) for i in range(2)]
    ends = []
    for token in (*right, 1):
        obs, reward, terminated, truncated, info = env.step(token)
        ends.append((terminated, truncated))
    assert ends == [(False, False), (False, False), expected]
    assert (obs.tolist(), reward, info) == ([0, 3], 0.0, {"time": 3})
    with pytest.raises(RuntimeError, match=r"over; .* call reset\(\) first"):
        env.step(0)
    env.reset()
    for token in right:
        env.step(token)
    # A stop as the very last token terminates: the response ended itself.
    obs, reward, terminated, truncated, _ = env.step(0)
    assert (obs.tolist(), reward, terminated, truncated) == ([2, 3], 1.0, True, False)


def test_step_before_reset_is_refused():
    for env in (TokenEnv("garnet"), TokenVectorEnv("garnet", 1)):
        with pytest.raises(RuntimeError, match=r"reset\(\) first"):
            env.step(env.action_space.sample())


def test_rendering():
    env = gymnasium.make("sim/CombinationLock-v0", render_mode="ansi")
    env.reset(seed=0)
    assert env.render() == "combination lock: 0 of 16 tokens, state 0"


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("observe_time", [False, True])
@pytest.mark.parametrize("cap_terminates", [False, True])
def test_vector_environment_does_what_gymnasiums_sync_vector_does(mode, observe_time, cap_terminates):
    """A table without chance, so that equality holds item for item, infos included."""
    options = {"observe_time": observe_time, "cap_terminates": cap_terminates}
    lock = combination_lock(2, 3, 4, seed=1)
    single = [lambda: TokenEnv(lock, **options)] * 5
    theirs, ours = SyncVectorEnv(single, autoreset_mode=mode), TokenVectorEnv(lock, 5, autoreset_mode=mode, **options)
    for space in ("single_observation_space", "single_action_space", "observation_space", "action_space"):
        assert getattr(ours, space) == getattr(theirs, space)
    assert ours.metadata["autoreset_mode"] is mode

    def same(first, second):
        assert len(first) == len(second)
        assert all(data_equivalence(a, b, exact=True) for a, b in zip(first, second, strict=True)), (first, second)

    same(theirs.reset(seed=0), ours.reset(seed=0))
    rng, ends = np.random.default_rng(0), 0
    for _ in range(60):
        actions = rng.choice(3, size=5, p=[0.2, 0.4, 0.4])
        expected, found = theirs.step(actions), ours.step(actions)
        same(expected, found)
        assert found[0] in ours.observation_space
        over = found[2] | found[3]
        ends += over.sum()
        if mode is AutoresetMode.DISABLED and over.any():
            with pytest.raises(RuntimeError, match="over in environments"):
                ours.step(actions)
            reset = theirs.reset(options={"reset_mask": over.copy()})
            same(reset, ours.reset(options={"reset_mask": over}))
    assert ends > 30


def test_returned_observations_are_not_overwritten_later():
    env = TokenVectorEnv("tailed_length", 4)
    first, infos = env.reset(seed=0)
    kept, kept_time = first.copy(), infos["time"].copy()
    for _ in range(10):
        env.step(np.array([1, 2, 3, 1]))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(infos["time"], kept_time)


def test_a_seed_fixes_the_responses_of_a_vector_environment():
    env = gymnasium.make_vec("sim/Garnet-v0", num_envs=6, num_states=7, branching=3)
    assert isinstance(env, TokenVectorEnv)
    runs = []
    for seed in (3, 3, 4):
        observations = [env.reset(seed=seed)[0]]
        for _ in range(20):
            observations.append(env.step(np.zeros(6, np.int64))[0])
        runs.append(np.stack(observations))
    np.testing.assert_array_equal(runs[0], runs[1])
    assert (runs[0] != runs[2]).any()


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_mean_return_of_the_vector_environment_is_the_exact_one(mode):
    """Returns lie in [0, 1]; false-alarm probability 1e-6 by Hoeffding's inequality over a fixed number of responses.

    Each environment contributes its first 20 responses: taking all that ended by some step would favour short ones.
    """
    mdp = tailed_length(1.0, 6, 3, horizon=12, seed=0)
    policy = noisy_policy(mdp, 0.5)
    env, rng, per_env = TokenVectorEnv(mdp, 500, autoreset_mode=mode), np.random.default_rng(1), 20
    obs, _ = env.reset(seed=5)
    returns = [[0.0] for _ in range(500)]
    while min(map(len, returns)) <= per_env:
        tokens = np.minimum((rng.random(500)[:, None] >= np.cumsum(policy[obs], axis=-1)).sum(-1), 2)
        obs, rewards, terminated, truncated, _ = env.step(tokens)
        for i in range(500):
            returns[i][-1] += rewards[i]
            if terminated[i] or truncated[i]:
                returns[i].append(0.0)
    mean = np.mean([row[:per_env] for row in returns])
    assert abs(mean - evaluate(mdp, policy).J) <= np.sqrt(np.log(2 / 1e-6) / (2 * 500 * per_env))


def test_single_environment_samples_the_table():
    """The environment draws start and outcomes from the same generator stream that a direct use of the table would."""
    mdp = garnet(5, 3, 3, 6, seed=2, end_prob=0.2)
    env, rng = TokenEnv(mdp), np.random.default_rng(0)
    for _ in range(30):
        seed = int(rng.integers(1 << 30))
        state, _ = env.reset(seed=seed)
        stream = np.random.Generator(np.random.PCG64(seed))
        assert state == mdp.start(stream.random())
        over = False
        while not over:
            token = int(rng.integers(3))
            expected = mdp.step(state, token, stream.random())
            obs, reward, terminated, truncated, _ = env.step(token)
            assert (reward, terminated) == (expected.reward, expected.terminated)
            assert obs == (state if terminated else expected.next_state)
            state, over = obs, terminated or truncated


def test_impossible_choices_are_refused():
    with pytest.raises(ValueError, match="mdp: found 'maze'; expected a table or one of"):
        TokenEnv("maze")
    with pytest.raises(TypeError, match=r"found \['rungs'\] beside a finished table"):
        TokenEnv(brute.SMALL["garnet"](), rungs=2)
    with pytest.raises(ValueError, match="num_envs: found 0"):
        TokenVectorEnv("garnet", 0)
    with pytest.raises(ValueError, match="reset_mask: found"):
        TokenVectorEnv("garnet", 2).reset(options={"reset_mask": np.ones(3, bool)})
