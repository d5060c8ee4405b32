"""What a fleet's engines see on machines that are slower or faster than the cost surface says."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers.observation import FEATURE_NAMES
from specpilot.controllers.priced import Action
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.traffic import Traffic
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import random_trace, rich_surface

BY_THE_CLOCK = ("gain", "arrivals_1s", "arrivals_10s")


def fleet(spread: float, num_envs: int = 1) -> ReplayFleet:
    config = FleetConfig((Traffic(concurrency=3),), max_rounds=64, slowness_spread=spread)
    made = ReplayFleet(random_trace(48), rich_surface(), random_predictor(), config, ReplayConfig(4), num_envs, 3)
    for e in range(num_envs):
        made.reset(e)
    return made


def test_a_slow_machine_shows_in_what_depends_on_its_clock_and_in_nothing_else() -> None:
    usual, slow = fleet(0.0), fleet(0.5)
    at = {name: FEATURE_NAMES.index(name) for name in FEATURE_NAMES}
    ratios = []
    for step in range(24):
        before, seen = usual.observations[0], slow.observations[0]
        ratios.append(before[at["gain"]] / seen[at["gain"]])
        for name in BY_THE_CLOCK[1:]:
            assert np.expm1(before[at[name]]) == pytest.approx(ratios[0] * np.expm1(seen[at[name]]))
        for name in set(FEATURE_NAMES) - set(BY_THE_CLOCK):
            assert before[at[name]] == seen[at[name]], name
        actions = [Action(step % 4, 0.0)]
        rewards = [own.step(actions)[0] for own in (usual, slow)]
        assert rewards[0] == rewards[1], "gain is paid relative to plain decoding on the same machine"
    assert ratios == pytest.approx([ratios[0]] * len(ratios)) and abs(ratios[0] - 1) > 0.02


def test_every_episode_draws_a_machine_of_its_own() -> None:
    spread, own = 0.3, fleet(0.3, num_envs=200)
    gain = FEATURE_NAMES.index("gain")
    slowness = -np.log(own.observations[:, gain])  # 1 before the first round.
    assert len(np.unique(slowness)) == 200
    assert abs(slowness.mean()) < 4 * spread / np.sqrt(200) and slowness.std() == pytest.approx(spread, rel=0.2)
    own.reset(0)
    assert -np.log(own.observations[0, gain]) != slowness[0]


def test_a_spread_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match=r"slowness_spread must be a finite number of 0 or more, got -1"):
        FleetConfig(slowness_spread=-1)
