"""Tokens per second of a policy over fixed scenarios, by replay: what training is judged by."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers import CostSurface
from specpilot.controllers.acceptance import AcceptancePredictor
from specpilot.controllers.priced import Action, Policy
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import Traffic

Act = Callable[[NDArray[np.float64]], Sequence[Action]]
"""Features ``[E, F]`` to one action each."""


class HeldOut:
    """The same requests in the same order for every policy: one engine per scenario and seed, side by side."""

    def __init__(
        self,
        trace: Trace,
        surface: CostSurface,
        predictor: AcceptancePredictor,
        traffic: Sequence[Traffic],
        engine: ReplayConfig,
        requests: int,
        seeds: int,
        seed: int,
        hold: int = 1,
    ) -> None:
        """Every scenario serves ``requests`` requests to the end, or five times its concurrency if that is more."""
        self.traffic, self.seeds, self._seed = tuple(traffic), seeds, seed
        config = FleetConfig(tuple(traffic), max_rounds=10**9, max_requests=requests, hold=hold)
        self.fleet = ReplayFleet(trace, surface, predictor, config, engine, len(traffic) * seeds, seed)

    def speeds(self, act: Act) -> NDArray[np.float64]:
        """``[scenarios, seeds]`` tokens per request-second."""
        fleet = self.fleet
        fleet.seed(self._seed)
        for e in range(fleet.num_envs):
            fleet.reset(e, scenario=e // self.seeds)
        tokens, seconds, going = np.zeros(fleet.num_envs), np.zeros(fleet.num_envs), np.ones(fleet.num_envs, bool)
        while going.any():
            _, served, _ = fleet.step(act(fleet.observations))
            gained = fleet.gained
            tokens[going] += gained[going, 0]
            seconds[going] += gained[going, 2]
            for e in np.flatnonzero(served).tolist():  # Keeps the others company; no longer counted.
                fleet.reset(e, scenario=e // self.seeds)
            going &= ~served.astype(bool)
        return (tokens / seconds).reshape(len(self.traffic), self.seeds)

    def of_policy(self, policy: Policy) -> NDArray[np.float64]:
        """`speeds` of a policy that looks at one observation at a time."""
        return self.speeds(lambda features: [policy.act(row) for row in features])

    def fixed(self, action: Action) -> NDArray[np.float64]:
        """`speeds` of one action always; price 0 is a constant speculation length."""
        return self.speeds(lambda features: [action] * len(features))


def split(trace: Trace, share: float, seed: int) -> tuple[Trace, Trace]:
    """Requests to learn from and requests to be judged by."""
    order = np.random.default_rng((seed, 7)).permutation(len(trace))
    cut = max(1, min(len(trace) - 1, round(share * len(trace))))
    return trace.select(np.sort(order[cut:])), trace.select(np.sort(order[:cut]))
