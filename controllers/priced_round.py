"""One round under the price rule: who starts, who goes on, what is verified. For one request without arrays.

The rules are those of `price_rule`, and the choices are equal to theirs; only the arithmetic is arranged for a process
in which a call of NumPy takes longer than the numbers of a small batch.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .acceptance import AcceptancePredictor
from .action import MissingFeatureError
from .controller import LEVEL_FEATURES, BoolArray, DraftLevel, FloatArray, IntArray, RoundState
from .price_rule import choose_going, choose_verified, descending, request_weights
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
            _complain(level, predictor)
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


class BatchRound:
    """A round of several requests."""

    def __init__(self, costs: RoundCosts, max_length: int, worth: float, predictor: AcceptancePredictor) -> None:
        """``worth``: price of a second in tokens."""
        self._costs, self._max_length, self._worth, self._predictor = costs, max_length, worth, predictor
        self._draft, self._curve, self._plans = costs.rows(max_length)
        self._survival = np.ones(costs.requests)
        self._survivals = np.zeros((costs.requests, max_length))
        self._planned = 0

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray, gain: float) -> IntArray:
        """See `PricedRound.start`."""
        self._temperature = state.temperature
        table = self._predictor.table
        self._rows = None if table is None else table.rows(state.temperature)
        everyone = min(allowed.tolist()) > 0
        able, behind = np.arange(len(chances)) if everyone else np.flatnonzero(allowed > 0), None
        self._weight = request_weights(chances, self._max_length)
        weight, own = (self._weight, chances[:, 0]) if everyone else (self._weight[able], chances[able, 0])
        promise = weight * own
        if max(state.lag.tolist()) > 1:
            behind = self._behind(state, able, gain)
            promise -= self._worth * behind
        order = descending(promise)
        count = self._count_starters(own[order], weight[order], None if behind is None else behind[order])
        self._lengths = lengths = np.zeros(len(chances), dtype=np.int64)
        if count:
            chosen = able[order[:count]]
            lengths[chosen] = np.minimum(allowed[chosen], self._max_length)
        return lengths

    def _behind(self, state: RoundState, able: IntArray, gain: float) -> FloatArray:
        """Seconds that lag costs each of the ``able`` requests, spread over the rounds it has left."""
        lag, behind = state.lag[able], np.zeros(len(able))
        lagging = lag > 1
        rounds = np.maximum(state.tokens_left[able] / gain, 1.0)
        behind[lagging] = self._costs.catch_up(lag[lagging]) / rounds[lagging]
        return behind

    def _count_starters(self, chance: FloatArray, weight: FloatArray, behind: FloatArray | None) -> int:
        """`price_rule.choose_starters`, for all lengths at once."""
        count = len(chance)
        tokens = np.empty((self._max_length, count))
        tokens[:] = chance
        tokens[0] *= weight
        np.multiply.accumulate(tokens, axis=0, out=tokens)
        np.add.accumulate(tokens, axis=1, out=tokens)
        np.add.accumulate(tokens, axis=0, out=tokens)
        seconds = self._plans[:, :count] if behind is None else self._plans[:, :count] + np.add.accumulate(behind)
        tokens -= self._worth * seconds
        best = int(tokens.argmax())
        return best % count + 1 if tokens.item(best) > 0 else 0

    def keep(self, level: DraftLevel) -> BoolArray:
        """See `PricedRound.keep`."""
        own, depth = level.requests, level.depth
        accepted, following = self._chances(level)
        survival = self._survival[own] * accepted
        self._survival[own] = survival
        weighted = survival * self._weight[own]
        self._survivals[own, depth - 1] = weighted
        self._planned += len(own)
        hope = weighted * following
        if np.isnan(hope).any():
            _complain(level, self._predictor)
        going = np.zeros(len(own), dtype=np.bool_)
        longer = np.flatnonzero(self._lengths[own] > depth)
        if len(longer):
            hope = hope[longer]
            order = descending(hope)
            going[longer[order[: self._count_going(hope[order])]]] = True
        return going

    def _chances(self, level: DraftLevel) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`AcceptancePredictor.level` of the level's requests."""
        own, predictor = level.requests, self._predictor
        if self._rows is not None and predictor.table is not None:
            read = predictor.level_features
            margin, agreement = (getattr(level, name) if name in read else 0.0 for name in ("margin", "agreement"))
            return predictor.table.level(self._rows[own], margin, agreement, level.depth)
        told = np.empty((len(own), 4))
        told[:, 0], told[:, 1] = level.top1_probability, level.entropy
        told[:, 2], told[:, 3] = level.margin, level.agreement
        return predictor.level(told, self._temperature[own], level.depth)

    def _count_going(self, gain: FloatArray) -> int:
        count = len(gain)
        start = min(self._planned, len(self._curve) - 1 - count)
        curve = self._curve[start : start + count + 1]
        return choose_going(gain, self._draft[: count + 1], curve, self._costs.per_level, self._worth)

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `PricedRound.verified`."""
        flat = np.sort(self._survivals, axis=None)[::-1]
        flat = flat[: np.count_nonzero(flat)]
        kept = choose_verified(flat, self._curve[: len(flat) + 1], self._worth)
        if kept == 0:
            return np.zeros_like(num_drafted)
        kept_of_each: IntArray = (self._survivals >= flat[kept - 1]).sum(axis=1)
        return np.minimum(kept_of_each, num_drafted)


def _complain(level: DraftLevel, predictor: AcceptancePredictor) -> None:
    """Raise for the first feature that is no number."""
    for name in predictor.level_features:
        if np.isnan(getattr(level, name)).any():
            raise MissingFeatureError(f"feature {name!r} of a draft level is NaN; the backend must provide it")
    raise MissingFeatureError("a chance of acceptance is NaN; fit the predictor again")
