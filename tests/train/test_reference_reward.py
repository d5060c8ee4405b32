"""The luck that is taken out of PPO's rewards: it explains much of them, is zero on average, and changes no state."""

from __future__ import annotations

import numpy as np

from specpilot.controllers.observation import NUM_FEATURES
from specpilot.controllers.priced import Action
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.traffic import Traffic
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import random_trace, rich_surface
from specpilot.train.reference_reward import WARM_UP, ReferenceReward

ENGINES = 16


def fleet() -> ReplayFleet:
    config = FleetConfig((Traffic(concurrency=2), Traffic(concurrency=4)), max_rounds=10**6, max_requests=4000)
    made = ReplayFleet(random_trace(64), rich_surface(), random_predictor(), config, ReplayConfig(4), ENGINES, 3)
    for e in range(ENGINES):
        made.reset(e, scenario=e % 2)
    return made


def test_playing_the_reference_changes_nothing() -> None:
    watched, alone = fleet(), fleet()
    reference = ReferenceReward(watched, Action(4, 0.0), NUM_FEATURES)
    for _ in range(20):
        reference.luck(watched.observations.astype(np.float32))
        action = [Action(2, 0.0)] * ENGINES
        np.testing.assert_array_equal(watched.step(action)[0], alone.step(action)[0])
        np.testing.assert_array_equal(watched.observations, alone.observations)


def test_luck_is_zero_on_average_and_takes_noise_out_of_rewards() -> None:
    own, rng = fleet(), np.random.default_rng(0)
    reference = ReferenceReward(own, Action(4, 0.0), NUM_FEATURES)
    scale = np.maximum(np.abs(own.observations).max(axis=0), 1.0)
    lucks, rewards = [], []
    for step in range(3 * WARM_UP // ENGINES):
        luck = reference.luck((own.observations / scale).astype(np.float32))
        gained = own.step([Action(int(length), 0.0) for length in rng.integers(3, 6, ENGINES)])[0]
        if step * ENGINES > 1.5 * WARM_UP:
            lucks.append(luck)
            rewards.append(gained)
    luck, reward = np.concatenate(lucks), np.concatenate(rewards)
    assert abs(luck.mean()) < 4 * luck.std() / np.sqrt(len(luck))
    assert np.var(reward - luck) < 0.7 * np.var(reward)


def test_there_is_no_luck_before_anything_can_be_expected() -> None:
    own = fleet()
    reference = ReferenceReward(own, Action(4, 0.0), NUM_FEATURES)
    for _ in range(WARM_UP // ENGINES):
        assert not reference.luck(own.observations.astype(np.float32)).any()
        own.step([Action(3, 0.0)] * ENGINES)
