"""Many replayed engines as one Gymnasium vector environment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import MultiDiscrete
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ..controllers import AcceptancePredictor, CostSurface
from ..controllers.action import Action
from ..controllers.observation import FEATURES
from .feature_space import FeatureSpace
from .fleet import ReplayFleet
from .replay import ReplayConfig
from .scenario import DEFAULT_TRAFFIC, ScenarioError, TrafficLike, load_scenario
from .speculation_length import LOOKS, PRICES, Observation, tiers
from .trace import Trace


class SpeculationLengthVectorEnv(VectorEnv[Observation, NDArray[np.int64], NDArray[np.float64]]):
    """`SpeculationLengthEnv` on replay, ``num_envs`` times in one compiled step.

    Arguments, spaces and rewards are those of the single environment, which see; all environments share the running
    price of a second. An episode that ends begins again in the same step (``AutoresetMode.SAME_STEP``): the observation
    is the new episode's first, the old one's last is in ``info["final_obs"]`` where ``info["_final_obs"]`` is true.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        trace: str | Path | Trace | None = None,
        cost_surface: str | Path | CostSurface | None = None,
        predictor: str | Path | AcceptancePredictor | None = None,
        traffic: TrafficLike | Sequence[TrafficLike] = DEFAULT_TRAFFIC,
        backend: str = "replay",
        reward: str = "gain",
        max_rounds: int = 256,
        max_num_seqs: int = 32,
        max_model_len: int = 1024,
        prefill_chunk: int = 1024,
        lengths: Sequence[int] | None = None,
        prices: Sequence[float] = PRICES,
        looks: Sequence[int] = LOOKS,
        render_mode: str | None = None,
    ) -> None:
        """Raises `ScenarioError` and the errors of the files' readers, all of them `ValueError`."""
        if backend != "replay" or render_mode is not None:
            raise ScenarioError(
                "the vector environment only replays and draws nothing; use gymnasium.make for the rest"
            )
        engine = ReplayConfig(max_num_seqs, max_model_len, prefill_chunk)
        scenario = load_scenario(trace, cost_surface, predictor, traffic, engine, max_rounds, reward)
        self.lengths, self.prices, self.looks = tiers(scenario, lengths, prices, looks)
        self.num_envs, self.render_mode = num_envs, None
        self._space = FeatureSpace(FEATURES)
        self.single_observation_space = self._space.box()
        self.single_action_space = MultiDiscrete([len(self.lengths), len(self.prices), len(self.looks)])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.fleet = ReplayFleet(
            scenario.trace, scenario.surface, scenario.predictor, scenario.fleet, engine, num_envs, seed=0
        )
        self._started = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode everywhere. ``options``: ``{"scenario": number}`` chooses one of several traffics.

        ``seed``: one number for all engines, or a list that is used as a whole.
        """
        if isinstance(seed, list):
            seeds = [number for number in seed if number is not None]
            if seeds:
                self.fleet.seed(seeds)
        else:
            super().reset(seed=seed)
            if seed is not None:
                self.fleet.seed(self.np_random)
            elif not self._started:
                self.fleet.rng = self.np_random
        self._started = True
        for e in range(self.num_envs):
            self.fleet.reset(e, (options or {}).get("scenario"))
        return self._space.observation(self.fleet.observations), {}

    def step(  # type: ignore[override] # Gymnasium types flags like rewards.
        self, actions: NDArray[np.int64]
    ) -> tuple[Observation, NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Play a round everywhere; ``actions`` ``[num_envs, 3]``."""
        if not self._started:
            raise ResetNeeded("no episode is running; call reset()")
        chosen = [
            Action(self.lengths[length], self.prices[price], self.looks[look])
            for length, price, look in np.asarray(actions).tolist()
        ]
        rewards, served, late = self.fleet.step(chosen)
        terminated, truncated = served.astype(np.bool_), late.astype(np.bool_)
        gained = self.fleet.gained
        info: dict[str, Any] = {"tokens": gained[:, 0].astype(np.int64), "seconds": gained[:, 1].copy()}
        ended = terminated | truncated
        if ended.any():
            info |= self._begin_again(ended)
        return self._space.observation(self.fleet.observations), rewards, terminated, truncated, info

    def _begin_again(self, ended: NDArray[np.bool_]) -> dict[str, Any]:
        """Reset the engines whose episode has ``ended`` ``[E]``; returns their last observations."""
        last = np.full(self.num_envs, None, dtype=object)
        for e in np.flatnonzero(ended).tolist():
            last[e] = self._space.observation(self.fleet.observations[e])
            self.fleet.reset(e)
        return {"final_obs": last, "_final_obs": ended}

    def close_extras(self, **kwargs: Any) -> None:
        """Nothing is held."""
