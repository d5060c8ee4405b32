"""Who teaches where: PPO's policy, but in scenarios that something simpler serves faster it is that.

A policy that turns speculation off for a moment sees only what coming back costs, so PPO rarely learns to leave it off
where that pays by a few percent. Which action is best in a scenario, if it is always the same, can simply be measured;
and so can a constant length for each batch size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers import LengthTableController
from specpilot.controllers.action import Features, FixedPolicy
from specpilot.controllers.observation import FEATURE_NAMES
from specpilot.controllers.priced import Action, Policy
from specpilot.envs.fleet import ReplayFleet
from specpilot.envs.trace import Trace
from specpilot.train.held_out import HeldOut
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig

REQUESTS = 3
"""Times as many as an evaluation during training serves."""
MARGIN = 0.003
"""By which it must beat the policy to take its place, and on three quarters of the schedules at all."""
_DECODING, _PREFILLING = FEATURE_NAMES.index("decoding"), FEATURE_NAMES.index("prefilling")


class TablePolicy:
    """The constant length that a table gives to as many requests as run."""

    feature_names = ("decoding", "prefilling")

    def __init__(self, table: LengthTableController) -> None:
        self._table = table

    @property
    def tiers(self) -> tuple[Action, ...]:
        """See `Policy`."""
        return tuple(dict.fromkeys(Action(length, 0.0) for _, _, length in self._table.table))

    def act(self, features: Features, /) -> Action:
        """See `Policy`."""
        return Action(self._table.length_of(int(features[_DECODING] + features[_PREFILLING])), 0.0)

    def __str__(self) -> str:
        return f"table {[list(row) for row in self._table.table]}"


class ScenarioTeacher:
    """Labels the states of a training fleet, whose scenarios are those of the run."""

    def __init__(
        self,
        policy: Policy,
        tiers: Sequence[Action],
        material: Material,
        config: PpoConfig,
        seed: int,
        table: LengthTableController | None = None,
    ):
        """Serves recorded requests with the policy, with each of ``tiers`` alone, and with ``table``."""
        self.policy, self.tiers = policy, tuple(tiers)
        self.number = {action: number for number, action in enumerate(self.tiers)}
        """Of each tier."""
        self.simple: list[Policy] = [FixedPolicy(action) for action in self.tiers]
        """What may teach in place of the policy."""
        by_batch = None if table is None else TablePolicy(table)
        if by_batch is not None and set(by_batch.tiers) <= set(self.tiers):
            self.simple.append(by_batch)
        self.chosen = self._chosen(material, config, seed)
        """``[scenarios]`` number of what teaches there, of `simple`; -1 where the policy does."""

    def labels(self, fleet: ReplayFleet) -> NDArray[np.int64]:
        """``[E]`` what to do in the fleet's present states."""
        teachers = [self.teacher(scenario) or self.policy for scenario in fleet.scenario.tolist()]
        taught = [own.act(row) for own, row in zip(teachers, fleet.observations, strict=True)]
        return np.asarray([self.number[action] for action in taught])

    def teacher(self, scenario: int) -> Policy | None:
        """What teaches in ``scenario``; None where the policy does."""
        number = int(self.chosen[scenario])
        return None if number < 0 else self.simple[number]

    def _chosen(self, material: Material, config: PpoConfig, seed: int) -> NDArray[np.int64]:
        # All requests of the recording: what is simple was hardly fitted to any, and more of them say more.
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
        policy = judge.of_policy(self.policy)
        gained = np.stack([judge.of_policy(own) for own in self.simple]) / policy  # The same requests.
        median, low = np.median(gained, axis=2), np.quantile(gained, 0.25, axis=2)
        best = median.argmax(axis=0)
        beats = (median.max(axis=0) > 1 + MARGIN) & (low[best, np.arange(len(best))] > 1)
        return np.where(beats, best, -1)
