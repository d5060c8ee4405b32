"""One round under the price rule: who starts, who goes on, what is verified. Here for one request.

The rules are those of `price_rule`, written out on plain numbers, which takes less time than handing over arrays;
`batch_round` has those of several requests. The choices are equal.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from .acceptance import AcceptancePredictor
from .action import MissingFeatureError
from .controller import LEVEL_FEATURES, BoolArray, DraftLevel, FloatArray, IntArray, RoundState
from .round_costs import RoundCosts


class PricedRound(Protocol):
    """A round that drafts."""

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray, gain: float) -> IntArray:
        """``[B]`` lengths. ``chances`` ``[B, D]`` by depth; ``allowed`` ``[B]``: most tokens; ``gain``: `gain_of`."""

    def keep(self, level: DraftLevel) -> BoolArray:
        """See `Controller.keep_drafting`."""

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""


class SingleRound:
    """A round of one request."""

    def __init__(self, costs: RoundCosts, max_length: int, worth: float, predictor: AcceptancePredictor) -> None:
        """``worth``: price of a second in tokens."""
        self._costs, self._max_length, self._worth, self._predictor = costs, max_length, worth, predictor
        self._curve = costs.curve_of_one(max_length)
        self._level = costs.draft_of(1) + costs.per_draft + costs.per_level
        self._survivals: list[float] = []
        self._survival = 1.0

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray, gain: float) -> IntArray:
        """See `PricedRound.start`."""
        costs, worth, curve = self._costs, self._worth, self._curve
        self._temperature = state.temperature
        table = self._predictor.table
        self._row = 0 if table is None else int(table.rows(state.temperature)[0])
        behind = costs.fixed
        if state.lag[0] > 1:
            behind += float(costs.catch_up(state.lag)[0]) / max(float(state.tokens_left[0]) / gain, 1.0)
        power = tokens = hope = float(chances[0, 0])
        self._length = 0
        for length in range(1, self._max_length + 1):
            if tokens - worth * (behind + length * self._level + curve[length] - curve[0]) > 0:
                self._length = min(int(allowed[0]), self._max_length)
                break
            power *= hope
            tokens += power
        return np.asarray([self._length])

    def keep(self, level: DraftLevel) -> BoolArray:
        """See `PricedRound.keep`."""
        accepted, following = self._chances(level)
        survival = self._survival * accepted
        self._survival = survival
        self._survivals.append(survival)
        hope = survival * following
        if self._length <= level.depth:
            return np.zeros(1, dtype=np.bool_)
        curve = self._curve
        start = min(len(self._survivals), len(curve) - 2)
        return np.asarray([hope - self._worth * (self._level + curve[start + 1] - curve[start]) > 0])

    def _chances(self, level: DraftLevel) -> tuple[float, float]:
        """`AcceptancePredictor.level` of the one request."""
        predictor = self._predictor
        told = [float(getattr(level, name)[0]) for name in predictor.level_features]
        if any(map(math.isnan, told)):
            complain(level, predictor)
        if predictor.table is None:
            every = [[float(getattr(level, name)[0]) for name in LEVEL_FEATURES]]
            accepted, following = predictor.level(every, self._temperature, level.depth)
            return float(accepted[0]), float(following[0])
        known = dict(zip(predictor.level_features, told, strict=True))
        margin, agreement = known.get("margin", 0.0), known.get("agreement", 0.0)
        return predictor.table.level_of_one(self._row, margin, agreement, level.depth)

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `PricedRound.verified`."""
        worth, curve, tokens = self._worth, self._curve, 0.0
        best, kept = -worth * curve[0], 0
        for count, survival in enumerate(self._survivals, 1):
            tokens += survival
            if survival > 0 and tokens - worth * curve[count] > best:
                best, kept = tokens - worth * curve[count], count
        # Drafts that promise exactly as much as the last one kept are kept too, as in a batch.
        while 0 < kept < len(self._survivals) and self._survivals[kept] == self._survivals[kept - 1]:
            kept += 1
        return np.minimum(kept, num_drafted)


def complain(level: DraftLevel, predictor: AcceptancePredictor) -> None:
    """Raise for the first feature that is no number."""
    for name in predictor.level_features:
        if np.isnan(getattr(level, name)).any():
            raise MissingFeatureError(f"feature {name!r} of a draft level is NaN; the backend must provide it")
    raise MissingFeatureError("a chance of acceptance is NaN; fit the predictor again")
