"""A fleet of replayed engines as a stable-baselines3 vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from specpilot.controllers.observation import NUM_FEATURES
from specpilot.controllers.priced import Action
from specpilot.envs.fleet import ReplayFleet
from specpilot.train.normaliser import Normaliser


class ReplayVecEnv(VecEnv):
    """Every engine of the fleet is one environment; observations are normalised, ``[E, NUM_FEATURES]`` float32."""

    def __init__(self, fleet: ReplayFleet, tiers: Sequence[Action], normaliser: Normaliser, hold: int = 1):
        """An action is an index into ``tiers`` and holds for ``hold`` rounds, whose mean reward it earns.

        Turning speculation off for one round never pays, since the drafter then has to catch up; for some rounds it
        may. And the more rounds an action holds, the less its reward is luck.
        """
        self.fleet, self.normaliser, self.tiers, self.hold = fleet, normaliser, tuple(tiers), hold
        space = gymnasium.spaces.Box(-normaliser.clip, normaliser.clip, (NUM_FEATURES,), np.float32)
        super().__init__(fleet.num_envs, space, gymnasium.spaces.Discrete(len(self.tiers)))
        self._actions: list[Action] = []
        self.returns = np.zeros(fleet.num_envs)

    def reset(self) -> VecEnvObs:
        """Begin an episode everywhere."""
        if self._seeds[0] is not None:
            self.fleet.seed(self._seeds[0])
        self._reset_seeds()
        for e in range(self.num_envs):
            self.fleet.reset(e)
        self.returns[:] = 0
        return self.normaliser(self.fleet.observations)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions ``[E]``."""
        self._actions = [self.tiers[tier] for tier in actions.tolist()]

    def step_wait(self) -> VecEnvStepReturn:
        """Play ``hold`` rounds everywhere; episodes that end begin again at once."""
        earned, done = np.zeros(self.num_envs), np.zeros(self.num_envs, dtype=bool)
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        self.fleet.decide_now()
        for _ in range(self.hold):
            rewards, served, late = self.fleet.step(self._actions)
            earned += np.where(done, 0.0, rewards)  # What a new episode gains under an old action counts for nothing.
            ended = (served | late).astype(bool)
            self.returns += np.where(done, 0.0, rewards)
            self._end(ended, infos)
            done |= ended
        return self.normaliser(self.fleet.observations), (earned / self.hold).astype(np.float32), done, infos

    def _end(self, ended: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        """Note the episodes that ended, and begin new ones."""
        for e in np.flatnonzero(ended).tolist():
            infos[e] = {
                "terminal_observation": self.normaliser(self.fleet.observations[e]),
                "TimeLimit.truncated": True,  # Traffic goes on when an episode ends: its value is not zero.
                "episode": {"r": float(self.returns[e]), "l": int(self.fleet.rounds[e]), "t": 0.0},
            }
            self.returns[e] = 0
            self.fleet.reset(e)

    def close(self) -> None:
        """Nothing to close."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """See `VecEnv.get_attr`: all engines share one fleet."""
        return [getattr(self, attr_name, None) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """See `VecEnv.set_attr`."""
        raise AttributeError(f"environments of a fleet share their attributes; set {attr_name!r} when it is made")

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """See `VecEnv.env_method`."""
        raise AttributeError(f"environments of a fleet have no methods of their own, asked for {method_name!r}")

    def env_is_wrapped(self, wrapper_class: type[gymnasium.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """See `VecEnv.env_is_wrapped`."""
        return [False for _ in self._get_indices(indices)]
