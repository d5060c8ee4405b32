"""The luck of a round: what a fixed action would have gained in it, beyond what its state lets expect.

A round's tokens vary far more with what the target happens to say than with the action, which is what PPO has to see
through. Replay can play the same round with another action: the two share the luck. Taking the reference's gain itself
out of the reward would change the objective, since later states count too; taking out its deviation from the expected
does not, and leaves a fraction of the noise (a control variate).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers.priced import Action
from specpilot.envs.fleet import ReplayFleet

WARM_UP = 4096
"""Rounds before the expectation is used."""
FORGETTING = 0.9999
"""Per round: the policy changes the states, and the price in the rewards."""
RIDGE = 1e-3
SOLVE_EVERY = 16
"""Steps."""


class ReferenceReward:
    """Plays each round of a fleet with ``action`` too, and regresses what it gains on the features."""

    def __init__(self, fleet: ReplayFleet, action: Action, num_features: int) -> None:
        self.fleet, self.action = fleet, action
        self._moments = np.zeros((num_features + 1, num_features + 1))
        self._products = np.zeros(num_features + 1)
        self._weights = np.zeros(num_features + 1)
        self._rounds = self._steps = 0

    def luck(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """``[E]`` reward of the round that is due under the reference, less its expectation; 0 at first.

        ``features`` ``[E, F]``: normalised observations of that round.
        """
        with self.fleet.trial():
            gained = self.fleet.step([self.action] * self.fleet.num_envs)[0]
        inputs = np.column_stack([np.ones(len(features)), features]).astype(np.float64)
        luck = gained - inputs @ self._weights if self._rounds >= WARM_UP else np.zeros(len(gained))
        self._learn(inputs, gained)
        return luck

    def _learn(self, inputs: NDArray[np.float64], gained: NDArray[np.float64]) -> None:
        decay = FORGETTING ** len(gained)
        self._moments = decay * self._moments + inputs.T @ inputs
        self._products = decay * self._products + inputs.T @ gained
        self._rounds += len(gained)
        self._steps += 1
        if self._steps % SOLVE_EVERY == 0:
            ridge = RIDGE * self._moments[0, 0] * np.eye(len(self._products))
            self._weights = np.linalg.solve(self._moments + ridge, self._products)
