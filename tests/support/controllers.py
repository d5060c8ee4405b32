"""Controllers that try everything: random lengths, scripted lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers import EVERY_LEVEL, Controller, Decision, DraftLevel, RoundState


class RandomController(Controller):
    """A random length per request and round, and a coin after every level."""

    def __init__(self, seed: int, max_length: int = 8, stop_probability: float = 0.15) -> None:
        self.asked_levels = EVERY_LEVEL if stop_probability > 0 else 0
        self._rng = np.random.default_rng(seed)
        self._max_length = max_length
        self._stop_probability = stop_probability

    def decide(self, state: RoundState) -> Decision:
        return Decision(self._rng.integers(0, self._max_length + 1, size=len(state.request_ids)))

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        return level.going_on(self._rng.random(len(level.requests)) >= self._stop_probability)


class TrimmingController(RandomController):
    """A random controller that also verifies a random part of what was drafted. It checks when it is asked."""

    trims = True

    def __init__(self, seed: int, max_length: int = 8, stop_probability: float = 0.15) -> None:
        super().__init__(seed, max_length, stop_probability)
        self.num_trimmed = 0
        self._lengths: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._drafted: NDArray[np.int64] = self._lengths

    def decide(self, state: RoundState) -> Decision:
        decision = super().decide(state)
        self._lengths = np.minimum(decision.num_speculative_tokens, state.max_num_speculative_tokens)
        self._drafted = np.zeros(len(self._lengths), dtype=np.int64)
        return decision

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        assert (self._drafted[level.requests] == level.depth - 1).all() and (level.requests >= 0).all()
        assert (level.depth <= self._lengths[level.requests]).all()
        self._drafted[level.requests] = level.depth
        return super().new_lengths(level)

    def verify_lengths(self, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
        if self.asked_levels:  # every level of every request was shown, the last ones included
            assert num_drafted.tolist() == self._drafted.tolist()
        lengths = self._rng.integers(0, num_drafted + 1)
        self.num_trimmed += int((num_drafted - lengths).sum())
        return lengths


class ScriptedController(Controller):
    """Reads each request's lengths, one per round of that request, from a script; the last one repeats."""

    def __init__(self, script: Mapping[str, Sequence[int]]) -> None:
        self._script = script
        self._round: dict[str, int] = {}

    def decide(self, state: RoundState) -> Decision:
        lengths = []
        for request_id in state.request_ids:
            index = self._round.get(request_id, 0)
            self._round[request_id] = index + 1
            script = self._script[request_id]
            lengths.append(script[min(index, len(script) - 1)])
        return Decision(np.asarray(lengths, dtype=np.int64))
