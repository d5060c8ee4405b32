"""Rounds of random loads under a random controller: what predictions of seconds are checked on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specpilot.controllers import Controller, Decision, DraftLevel, RoundState
from specpilot.controllers.controller import EVERY_LEVEL, IntArray
from specpilot.engine import SamplingParams
from specpilot.envs.live import drop_requests
from specpilot.train.live_rounds import LiveRound, RoundMeter, WatchedController

EPISODE_ROUNDS = 25
TEMPERATURES = (0.0, 0.6, 1.0)


class RandomLoads(Controller):
    """Random lengths, uniform or per request; in some episodes it stops or trims at random."""

    level_features = ("margin", "agreement")

    def __init__(self, rng: np.random.Generator, max_length: int) -> None:
        self._rng = rng
        self._max_length = max_length
        self.asked_levels = int(rng.choice([0, 1, 2, EVERY_LEVEL], p=[0.55, 0.2, 0.1, 0.15]))
        self.trims = bool(rng.random() < 0.3)
        self._stop_probability = float(rng.choice([0.0, 0.1, 0.3]))
        self._fixed = int(rng.integers(0, max_length + 1)) if rng.random() < 0.5 else None
        self._off_share = float(rng.choice([0.0, 0.0, 0.5]))

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        count = len(state.request_ids)
        if self._fixed is not None:
            return Decision(np.full(count, self._fixed, dtype=np.int64))
        lengths = self._rng.integers(0, self._max_length + 1, size=count)
        lengths[self._rng.random(count) < self._off_share] = 0
        return Decision(lengths)

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        return level.going_on(self._rng.random(len(level.requests)) >= self._stop_probability)

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        kept: IntArray = np.maximum(num_drafted - self._rng.integers(0, 3, size=len(num_drafted)), 0)
        return kept


class RandomRounds:
    """Episodes of a few rounds on one idle engine: each draws its batch, temperatures and controller."""

    def __init__(self, meter: RoundMeter, prompts: Sequence[Sequence[int]], seed: int) -> None:
        self.meter, self.engine, self.prompts = meter, meter.engine, prompts
        self.rng = np.random.default_rng((seed, 5))

    def episode(self) -> list[LiveRound]:
        """Serve for some rounds, requests coming and going, then cancel what is left."""
        batch = int(2 ** self.rng.uniform(0, np.log2(self.engine.cache.num_slots + 0.999)))
        temperatures = TEMPERATURES if self.rng.random() < 0.4 else (float(self.rng.choice(TEMPERATURES)),)
        controller = RandomLoads(self.rng, self.engine.config.max_num_speculative_tokens)
        names = [self._add(temperatures) for _ in range(batch)]
        rounds = []
        for _ in range(EPISODE_ROUNDS):
            if len(self.engine.scheduler.running) < batch and self.rng.random() < 0.5:
                names.append(self._add(temperatures))
            own = self.meter.step(WatchedController(controller)) if self.engine.has_work else None
            if own is not None:
                rounds.append(own)
        drop_requests(self.engine, names)
        return rounds

    def _add(self, temperatures: Sequence[float]) -> str:
        prompt = self.prompts[int(self.rng.integers(len(self.prompts)))]
        params = SamplingParams(
            temperature=float(self.rng.choice(temperatures)),
            seed=int(self.rng.integers(2**62)),
            max_tokens=int(self.rng.integers(24, 129)),
        )
        return self.engine.add_request(prompt, params)
