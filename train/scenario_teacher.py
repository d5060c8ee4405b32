"""Who teaches where: PPO's policy, but in scenarios that one and the same action serves faster it is that action.

A policy that turns speculation off for a moment sees only what coming back costs, so PPO rarely learns to leave it off
where that pays by a few percent. Which action is best in a scenario, if it is always the same, can simply be measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers.priced import Action, Policy
from specpilot.envs.fleet import ReplayFleet
from specpilot.envs.trace import Trace
from specpilot.train.held_out import HeldOut
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig

REQUESTS = 3
"""Times as many as an evaluation during training serves."""
MARGIN = 0.003
"""By which an action must beat the policy to take its place, and on three quarters of the schedules at all."""


class ScenarioTeacher:
    """Labels the states of a training fleet, whose scenarios are those of the run."""

    def __init__(self, policy: Policy, tiers: Sequence[Action], material: Material, config: PpoConfig, seed: int):
        """Serves recorded requests with the policy and with each of ``tiers`` alone."""
        self.policy, self.tiers = policy, tuple(tiers)
        self.number = {action: number for number, action in enumerate(self.tiers)}
        """Of each tier."""
        self.fixed = self._fixed(material, config, seed)
        """``[scenarios]`` number of the tier that teaches there; -1 where the policy does."""

    def labels(self, fleet: ReplayFleet) -> NDArray[np.int64]:
        """``[E]`` what to do in the fleet's present states."""
        tier = np.asarray([self.number[self.policy.act(row)] for row in fleet.observations])
        fixed = self.fixed[fleet.scenario]
        return np.where(fixed >= 0, fixed, tier)

    def action(self, scenario: int) -> Action | None:
        """What teaches in ``scenario``; None where the policy does."""
        number = int(self.fixed[scenario])
        return None if number < 0 else self.tiers[number]

    def _fixed(self, material: Material, config: PpoConfig, seed: int) -> NDArray[np.int64]:
        # All requests of the recording: fixed actions were not fitted to any, and more of them say more.
        judge = HeldOut(
            Trace.load(Path(config.record) / "train.npz"),
            material.surface,
            material.predictor,
            config.scenarios,
            material.engine,
            REQUESTS * config.evaluation_requests,
            config.evaluation_seeds + 1,
            seed,
            config.hold,
        )
        policy = judge.speeds(lambda rows: [self.policy.act(row) for row in rows])
        gained = np.stack([judge.fixed(action) for action in self.tiers]) / policy  # The same requests.
        median, low = np.median(gained, axis=2), np.quantile(gained, 0.25, axis=2)
        best = median.argmax(axis=0)
        beats = (median.max(axis=0) > 1 + MARGIN) & (low[best, np.arange(len(best))] > 1)
        return np.where(beats, best, -1)
