"""The vector environment: the single one many times over, episodes that begin again in the same step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from specpilot.envs import SPECULATION_LENGTH
from specpilot.envs.scenario import ScenarioError
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import MAX_BATCH, MAX_CONTEXT, random_trace, rich_surface


def make(num_envs: int, **values: Any) -> Any:
    own = {"trace": random_trace(), "cost_surface": rich_surface(), "predictor": random_predictor()}
    own |= {"max_num_seqs": MAX_BATCH, "max_model_len": MAX_CONTEXT, "max_rounds": 20, **values}
    return gymnasium.make_vec(SPECULATION_LENGTH, num_envs=num_envs, vectorization_mode="vector_entry_point", **own)


def test_one_engine_is_the_single_environment() -> None:
    vector = make(1)
    env = gymnasium.make(
        SPECULATION_LENGTH,
        trace=random_trace(),
        cost_surface=rich_surface(),
        predictor=random_predictor(),
        max_num_seqs=MAX_BATCH,
        max_model_len=MAX_CONTEXT,
        max_rounds=20,
    )
    one, _ = env.reset(seed=3)
    many, _ = vector.reset(seed=3)
    assert many.tolist() == [one.tolist()]
    for number in range(20):
        action = np.asarray([number % 6, number % 5, number % 2])
        one, reward, _, truncated, info = env.step(action)
        many, rewards, _, late, infos = vector.step(action[None])
        assert (rewards[0], bool(late[0]), infos["tokens"][0]) == (reward, truncated, info["tokens"])
        expected = infos["final_obs"][0] if truncated else many[0]
        assert expected.tolist() == one.tolist()
    assert truncated


def test_episodes_begin_again_in_the_same_step() -> None:
    env = make(5, traffic=({"concurrency": 2}, {"mode": "poisson", "load": 0.7}))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    env.reset(seed=0)
    env.action_space.seed(0)
    ends = np.zeros(5)
    for _ in range(70):
        observation, rewards, terminated, truncated, info = env.step(env.action_space.sample())
        ended = terminated | truncated
        assert env.observation_space.contains(observation) and np.isfinite(rewards).all()
        if ended.any():
            assert (info["_final_obs"] == ended).all()
            for e in np.flatnonzero(ended):
                assert info["final_obs"][e].shape == observation[e].shape
                assert observation[e][39] == 1.0, "a new episode knows no gain yet"
        ends += ended
    assert (ends >= 3).all()


def test_a_seed_repeats_all_engines() -> None:
    env = make(3)
    runs = []
    for seed in (1, 1, 2, [1, 2, 3], [1, 2, 3]):
        first, _ = env.reset(seed=seed)
        runs.append([first.tolist(), *(env.step(np.tile([2, 2, 1], (3, 1)))[1].tolist() for _ in range(30))])
    assert runs[0] == runs[1] != runs[2] and runs[3] == runs[4] != runs[0]


def test_the_live_engine_is_no_vector() -> None:
    with pytest.raises(ScenarioError, match=r"gymnasium\.make"):
        make(2, backend="live")
