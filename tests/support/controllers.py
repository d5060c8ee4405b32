"""Controllers that try everything: random lengths, scripted lengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from specpilot.controllers import Controller, Decision, DraftLevel, RoundState


class RandomController(Controller):
    """A random length per request and round, and a coin after every level."""

    def __init__(self, seed: int, max_length: int = 8, stop_probability: float = 0.15) -> None:
        self.asks_every_level = stop_probability > 0
        self._rng = np.random.default_rng(seed)
        self._max_length = max_length
        self._stop_probability = stop_probability

    def decide(self, state: RoundState) -> Decision:
        return Decision(self._rng.integers(0, self._max_length + 1, size=len(state.request_ids)))

    def keep_drafting(self, level: DraftLevel) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = self._rng.random(len(level.requests)) >= self._stop_probability
        return keep


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
