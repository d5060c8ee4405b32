"""One round under the price rule: lengths planned before it, and again after each look. Here for one request.

The rule is `price_rule.plan_lengths`, written out on plain numbers, which takes less time than handing over arrays;
`batch_round` has the rounds of several requests. The choices are equal.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from .acceptance import AcceptancePredictor
from .acceptance_history import LOWEST_RATE
from .action import Action, MissingFeatureError
from .controller import LEVEL_FEATURES, DraftLevel, FloatArray, IntArray, RoundState
from .round_costs import RoundCosts


class PlannedRound(Protocol):
    """A round that may draft."""

    trims: bool
    """Whether fewer tokens shall be verified than are drafted."""

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray) -> IntArray:
        """``[B]`` lengths. ``chances`` ``[B, D]`` by depth; ``allowed`` ``[B]``: most tokens.

        In a round with looks those that draft are given all that is allowed: the looks say when to stop.
        """

    def look(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""


class SingleRound:
    """A round of one request."""

    def __init__(self, costs: RoundCosts, action: Action, predictor: AcceptancePredictor, looks: int) -> None:
        """``costs`` has been told of the round."""
        self._costs, self._action, self._predictor, self._looks = costs, action, predictor, looks
        self._bound = self._planned = 0
        self._row = -1  # Of the predictor's table; looked up when first needed.
        self.trims = False

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray) -> IntArray:
        """See `PlannedRound.start`."""
        costs = self._costs
        self._temperature = state.temperature
        self._noise = costs.noise if state.temperature.item() > 0 else 0.0
        self._level = costs.level_of_one + self._noise
        self._chances: list[float] = chances[0].tolist()
        self._prior = self._chances.copy()
        self._spent = costs.plain + self._noise
        longest = min(allowed.item(), self._action.max_length)
        self._curve = costs.curve_of_one(longest)
        stop = costs.stop if state.lag.item() <= 1 else 0.0
        self._planned = self._plan(longest, 0, costs.fixed, stop)
        self._spent += costs.fixed
        self._bound = longest if self._planned and self._looks else self._planned
        return np.asarray([self._bound])

    def _plan(self, longest: int, depth: int, fixed: float, stop: float) -> int:
        """Tokens to verify, with ``depth`` drafted; between lengths that promise as much the shorter one."""
        curve, chances, price, spent, level = self._curve, self._chances, self._action.price, self._spent, self._level
        best, found = 1.0 / (spent + price * stop), 0
        survival = tokens = 1.0
        fixed -= curve[0]
        for length in range(1, longest + 1):
            survival *= chances[min(length, len(chances)) - 1]
            tokens += survival
            more = (length - depth) * level if length > depth else 0.0
            speed = tokens / (spent + price * (more + curve[length] + fixed))
            if speed > best:
                best, found = speed, length
        return found

    def look(self, level: DraftLevel) -> IntArray:
        """See `PlannedRound.look`."""
        costs, depth, prior, chances = self._costs, level.depth, self._prior, self._chances
        accepted, following = self._told(level)
        depths = len(chances)
        chances[min(depth, depths) - 1] = accepted
        if depth < depths:
            chances[depth] = following
            news = _log_odds(following) - _log_odds(prior[depth])
            for further in range(depth + 1, depths):
                news *= self._predictor.carry
                chances[further] = 1 / (1 + math.exp(-_log_odds(prior[further]) - news))
        self._spent += self._level + costs.look + costs.answer
        self._planned = self._plan(self._bound, depth, 0.0, 0.0)
        self.trims = self._planned < depth
        return np.asarray([max(self._planned, depth)])

    def _told(self, level: DraftLevel) -> tuple[float, float]:
        """`AcceptancePredictor.level` of the one request."""
        predictor, read = self._predictor, self._predictor.level_features
        if predictor.table is None:
            told = [float(getattr(level, name)[0]) for name in LEVEL_FEATURES]
            if any(math.isnan(own) for name, own in zip(LEVEL_FEATURES, told, strict=True) if name in read):
                complain(level, predictor)
            accepted, following = predictor.level([told], self._temperature, level.depth)
            return float(accepted[0]), float(following[0])
        margin = level.margin.item() if "margin" in read else 0.0
        agreement = level.agreement.item() if "agreement" in read else 0.0
        if math.isnan(margin + agreement):
            complain(level, predictor)
        if self._row < 0:
            self._row = int(predictor.table.rows(self._temperature)[0])
        return predictor.table.level_of_one(self._row, margin, agreement, level.depth)

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `PlannedRound.verified`."""
        return np.minimum(self._planned, num_drafted)


def _log_odds(chance: float) -> float:
    """`round_kernel.log_odds`."""
    inside = min(max(chance, LOWEST_RATE), 1 - LOWEST_RATE)
    return math.log(inside / (1 - inside))


def complain(level: DraftLevel, predictor: AcceptancePredictor) -> None:
    """Raise for the first feature that is no number."""
    for name in predictor.level_features:
        if np.isnan(getattr(level, name)).any():
            raise MissingFeatureError(f"feature {name!r} of a draft level is NaN; the backend must provide it")
    raise MissingFeatureError("a chance of acceptance is NaN; fit the predictor again")
