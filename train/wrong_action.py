"""What a wrong action costs in a state: every action is tried from there in the replay."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers.priced import Action
from specpilot.envs.fleet import ReplayFleet


class WrongActionCost:
    """Tries out actions in a fleet's present states and puts everything back."""

    def __init__(self, fleet: ReplayFleet, tiers: Sequence[Action], tries: int, seed: int) -> None:
        """``tries``: other actions that are drawn for a comparison."""
        self.fleet, self.tiers, self._tries = fleet, tuple(tiers), tries
        self._rng = np.random.default_rng(seed)

    def of(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        """``[E]`` reward of one round under tier ``chosen[e]``, less the mean under others; may be negative."""
        others = self._rng.integers(0, len(self.tiers), size=(self._tries, len(chosen)))
        gained: NDArray[np.float64] = self._reward(chosen) - np.mean([self._reward(own) for own in others], axis=0)
        return gained

    def _reward(self, tiers: NDArray[np.int64]) -> NDArray[np.float64]:
        with self.fleet.trial():
            return self.fleet.step([self.tiers[number] for number in tiers.tolist()])[0]
