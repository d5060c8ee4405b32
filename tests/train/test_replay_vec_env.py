"""An action that holds for some rounds is played in each of them and paid their mean, and nothing after an episode."""

from __future__ import annotations

import numpy as np

from specpilot.controllers.observation import NUM_FEATURES
from specpilot.controllers.priced import Action
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.traffic import Traffic
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import random_trace, rich_surface
from specpilot.train.normaliser import Normaliser
from specpilot.train.replay_vec_env import ReplayVecEnv

ENGINES, TIERS = 4, (Action(0, 0.0), Action(3, 0.0), Action(4, 1.0))


def environment(hold: int, max_rounds: int) -> ReplayVecEnv:
    config = FleetConfig((Traffic(concurrency=2),), max_rounds)
    fleet = ReplayFleet(random_trace(48), rich_surface(), random_predictor(), config, ReplayConfig(4), ENGINES, 3)
    made = ReplayVecEnv(fleet, TIERS, Normaliser(np.zeros(NUM_FEATURES), np.ones(NUM_FEATURES)), hold)
    made.seed(5)
    made.reset()
    return made


def test_an_action_that_holds_is_the_same_as_repeating_it() -> None:
    held, single, rng = environment(3, 10**6), environment(1, 10**6), np.random.default_rng(0)
    for _ in range(8):
        actions = rng.integers(len(TIERS), size=ENGINES)
        seen, reward, _, _ = held.step(actions)
        singles = [single.step(actions) for _ in range(3)]
        np.testing.assert_allclose(reward, np.mean([own[1] for own in singles], axis=0), rtol=1e-5)
        np.testing.assert_array_equal(seen, singles[-1][0])


def test_an_episode_that_ends_while_an_action_holds_is_paid_until_then() -> None:
    held, single = environment(4, 6), environment(1, 6)  # Ends in the second round of the second action.
    actions = np.ones(ENGINES, dtype=np.int64)
    held.step(actions)
    _, reward, done, infos = held.step(actions)
    rounds = [single.step(actions) for _ in range(6)]
    assert done.all() and rounds[-1][2].all() and all(info["episode"]["l"] == 6 for info in infos)
    np.testing.assert_allclose(reward, (rounds[4][1] + rounds[5][1]) / 4, rtol=1e-5)
    returns = [info["episode"]["r"] for info in infos]
    np.testing.assert_allclose(returns, np.sum([own[1] for own in rounds], axis=0), rtol=1e-5)
    terminal = [own["terminal_observation"] for own in rounds[-1][3]]
    np.testing.assert_array_equal(np.stack([info["terminal_observation"] for info in infos]), np.stack(terminal))
