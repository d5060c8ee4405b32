"""A round of several requests under the price rule: `price_rule` and `round_kernel`, compiled.

Imported when a controller has such rounds: constant lengths need no compiler.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.typing import NDArray

from .acceptance import AcceptancePredictor
from .acceptance_table import DEPTHS, MARGINS
from .action import Action
from .compiled import plan_lengths, request_weights
from .controller import LEVEL_FEATURES, BoolArray, DraftLevel, FloatArray, IntArray, RoundState
from .priced_round import complain
from .round_costs import RoundCosts
from .round_kernel import go_on, look_up, starting_lengths, verified_lengths


@functools.cache
def warm_up() -> None:
    """Compile what rounds of several requests call, or read it where it has been compiled, before there is one."""
    whole, numbers, row = np.ones(2, dtype=np.int64), np.ones(2), np.zeros(3)
    chances, sure, square = np.ones((2, 8)), np.ones(2, dtype=np.bool_), np.zeros((2, 1))
    weight = request_weights(chances, 1)
    starting_lengths(numbers, weight, numbers, whole, row, row, 0.0, 0.0, 1, 1.0)
    table = np.ones((1, DEPTHS, 3, MARGINS, 2), dtype=np.float32)
    told = look_up(table, 0 * whole, numbers, numbers, 1)
    go_on(whole - 1, 1, told, numbers, square, weight, whole, row, row, 0.0, 1.0)
    verified_lengths(square, whole, row, 1.0)
    plan_lengths(chances, whole, sure, sure, row, row, 1.0, 0.0, 0.0, 0.0, 0.0, 1, 1.0)


class BatchRound:
    """A round of several requests."""

    def __init__(self, costs: RoundCosts, max_length: int, worth: float, predictor: AcceptancePredictor) -> None:
        """``worth``: price of a second in tokens."""
        self._costs, self._predictor = costs, predictor
        self._max_length, self._price = int(max_length), float(worth)
        self._rows = costs.rows(max_length)
        self._survival = np.ones(costs.requests)
        self._worth = np.zeros((costs.requests, max_length))

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray, gain: float) -> IntArray:
        """See `PricedRound.start`."""
        self._temperature = state.temperature
        table = self._predictor.table
        self._table_rows = None if table is None else table.rows(state.temperature)
        self._weight = request_weights(chances, self._max_length)
        costs, rows = self._costs, self._rows
        self._lengths: IntArray = starting_lengths(
            np.ascontiguousarray(chances[:, 0]),
            self._weight,
            self._behind(state, gain),
            allowed,
            rows.asked,
            rows.curve,
            costs.fixed,
            costs.per_level,
            self._max_length,
            self._price,
        )
        return self._lengths

    def _behind(self, state: RoundState, gain: float) -> FloatArray:
        """``[B]`` seconds that lag costs each request, spread over the rounds it has left."""
        behind, lagging = np.zeros(len(state.lag)), state.lag > 1
        if lagging.any():
            rounds = np.maximum(state.tokens_left[lagging] / gain, 1.0)
            behind[lagging] = self._costs.catch_up(state.lag[lagging]) / rounds
        return behind

    def keep(self, level: DraftLevel) -> BoolArray:
        """See `PricedRound.keep`."""
        rows, survival = self._rows, self._survival
        going: BoolArray = go_on(
            level.requests,
            level.depth,
            self._chances(level),
            survival,
            self._worth,
            self._weight,
            self._lengths,
            rows.asked,
            rows.curve,
            self._costs.per_level,
            self._price,
        )
        if math.isnan(survival.sum()):
            complain(level, self._predictor)
        return going

    def _chances(self, level: DraftLevel) -> NDArray[np.float32]:
        """``[A, 2]`` what `AcceptancePredictor.level` says of the level's requests."""
        own, predictor = level.requests, self._predictor
        if self._table_rows is not None and predictor.table is not None:
            read, none = predictor.level_features, np.zeros(len(own))
            margin, agreement = (getattr(level, name) if name in read else none for name in ("margin", "agreement"))
            found: NDArray[np.float32] = look_up(
                predictor.table.chances, self._table_rows[own], margin, agreement, level.depth
            )
            return found
        told = np.stack([getattr(level, name) for name in LEVEL_FEATURES], axis=1)
        return np.stack(predictor.level(told, self._temperature[own], level.depth), axis=1)

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `PricedRound.verified`."""
        verified: IntArray = verified_lengths(self._worth, num_drafted, self._rows.curve, self._price)
        return verified


def planned_lengths(
    costs: RoundCosts, state: RoundState, chances: FloatArray, allowed: IntArray, action: Action
) -> IntArray:
    """``[B]`` `price_rule.plan_lengths`; arguments as of `planned_round.planned_lengths`."""
    rows, noisy = costs.rows(action.max_length), state.temperature > 0
    lengths: IntArray = plan_lengths(
        chances,
        allowed,
        state.lag <= 1,
        noisy,
        rows.unasked,
        rows.curve,
        costs.plain + costs.noise * int(np.count_nonzero(noisy)),
        costs.fixed,
        costs.unasked_level,
        costs.noise,
        rows.stop,
        int(action.max_length),
        float(action.price),
    )
    return lengths
