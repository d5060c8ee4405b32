"""A replayed engine that is asked for one action a round."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from ..controllers.action import Action
from ..controllers.observation import HISTORY_SIZE, RATE_DECAY
from .fleet import ReplayFleet
from .rendering import RoundView
from .replay_state import FloatArray
from .scenario import Scenario

_ACCEPTED, _DRAFTED = HISTORY_SIZE - 5, HISTORY_SIZE - 3


class LengthTurn(NamedTuple):
    """What came of an action."""

    observation: FloatArray
    """``[F]`` features of the decision that is due next; of the last one where all is served."""
    reward: float
    served: bool
    """All requests of the schedule are served."""
    tokens: int
    """Committed in the round."""
    weighted_tokens: float
    """The same, each times its request's `Recording.weight`."""
    seconds: float
    """From this decision to the next, idle time left out."""
    view: RoundView


class LengthBackend(Protocol):
    """Where rounds are played."""

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> FloatArray:
        """Begin an episode and return its first features ``[F]``. ``seeded``: forget what was learnt of prices."""

    def play(self, action: Action) -> LengthTurn:
        """Play a round."""

    def close(self) -> None:
        """Free what is held; may be called again."""


class ReplayLengths:
    """See `LengthBackend`; one engine of a `ReplayFleet`."""

    def __init__(self, scenario: Scenario) -> None:
        self.fleet = ReplayFleet(
            scenario.trace, scenario.surface, scenario.predictor, scenario.fleet, scenario.engine, num_envs=1, seed=0
        )

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> FloatArray:
        """See `LengthBackend.begin`."""
        if seeded:
            self.fleet.seed(rng)
        self.fleet.rng = rng
        self.fleet.reset(0, scenario)
        first: FloatArray = self.fleet.observations[0]
        return first

    def play(self, action: Action) -> LengthTurn:
        """See `LengthBackend.play`."""
        state = self.fleet.fleet
        before = state.history[0].copy()
        running, waiting = int(state.running[0]), int(state.arrived[0] - state.admitted[0])
        rewards, served, _ = self.fleet.step([action])
        counts = np.rint(state.history[0] - RATE_DECAY * before)
        tokens, seconds, _, requests, worth = self.fleet.gained[0]
        drafted, accepted = int(counts[_DRAFTED]), int(counts[_ACCEPTED])
        view = RoundView(int(requests), action.max_length, drafted, accepted, running, waiting)
        return LengthTurn(
            self.fleet.observations[0],
            float(rewards[0]),
            bool(served[0]),
            int(tokens),
            float(worth),
            float(seconds),
            view,
        )

    def close(self) -> None:
        """Nothing is held."""
