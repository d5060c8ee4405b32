"""A round of several requests under the price rule: `price_rule` and `round_kernel`, compiled.

Imported when a controller has such rounds: constant lengths need no compiler.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from .acceptance import AcceptancePredictor
from .acceptance_history import HistoryLogistics
from .acceptance_table import DEPTHS, MARGINS
from .action import Action
from .compiled import plan_lengths, write_features
from .controller import LEVEL_FEATURES, DraftLevel, FloatArray, IntArray, RoundState
from .cost_table import CostTable
from .observation import HISTORY_SIZE, NUM_FEATURES
from .planned_round import complain
from .price_rule import RoundSeconds
from .round_costs import RoundCosts
from .round_kernel import Drafting, look, look_by_table, state_chances


@functools.cache
def warm_up() -> None:
    """Compile what rounds of several requests call, or read it where it has been compiled, before there is one."""
    whole, numbers, row = np.ones(2, dtype=np.int64), np.ones(2), np.zeros(3)
    chances, sure = np.full((2, 8), 0.5), np.ones(2, dtype=np.bool_)
    table = np.ones((1, DEPTHS, 3, MARGINS, 2), dtype=np.float32)
    told = np.ones((2, 2), dtype=np.float32)
    seconds = RoundSeconds(1.0, row, row, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    state_chances(np.zeros((8, 6)), numbers, whole, whole, numbers)
    features = np.empty(NUM_FEATURES)
    passes = np.ones((3, 4, 3))
    costs = CostTable(passes, passes, passes, passes, np.ones(11))
    write_features(features, whole, whole, numbers, numbers, numbers, 2, 0, 1.0, 0.0, 0.0, np.ones(HISTORY_SIZE), costs)
    plan_lengths(chances, whole, 0 * whole, sure, sure, seconds, 1.0, 1, 1.0, 0)
    drafting = Drafting(chances, chances.copy(), sure, whole, whole.copy(), whole.copy(), np.ones(1), sure[:1].copy())
    look(drafting, whole - 1, told, 1, 0.5, seconds, 1, 1.0)
    look_by_table(drafting, whole - 1, table, 0 * whole, numbers, numbers, 1, 0.5, seconds, 1, 1.0)


def history_chances(logistics: HistoryLogistics, state: RoundState) -> FloatArray:
    """``[B, 8]`` by depth: `HistoryLogistics.of_state`, quicker."""
    drafted, accepted = state.last_num_speculative_tokens, state.last_accepted_length
    found: FloatArray = state_chances(logistics.numbers, state.acceptance_rate, drafted, accepted, state.temperature)
    return found


def round_features(state: RoundState, chances: FloatArray, history: list[float], costs: CostTable) -> FloatArray:
    """``[NUM_FEATURES]`` of a round whose requests' first drafts have the ``chances`` ``[B]``."""
    out = np.empty(NUM_FEATURES)
    write_features(
        out,
        state.context_length,
        state.lag,
        state.temperature,
        state.acceptance_rate,
        chances,
        int(state.running),
        int(state.waiting),
        float(state.kv_free),
        float(state.arrival_rates[0]),
        float(state.arrival_rates[1]),
        np.asarray(history),
        costs,
    )
    return out


class BatchRound:
    """A round of several requests."""

    def __init__(self, costs: RoundCosts, action: Action, predictor: AcceptancePredictor, looks: int) -> None:
        """``costs`` has been told of the round."""
        self._predictor, self._looks = predictor, looks
        self._fixed, self._seconds = costs.fixed, costs.seconds(action.max_length)
        self._max_length, self._price = int(action.max_length), float(action.price)
        self._drafting: Drafting | None = None
        self.trims = False

    def start(self, state: RoundState, chances: FloatArray, allowed: IntArray) -> IntArray:
        """See `PlannedRound.start`."""
        noisy, seconds = state.temperature > 0, self._seconds
        spent = seconds.plain + seconds.noise * int(np.count_nonzero(noisy))
        drafted = np.zeros(len(allowed), dtype=np.int64)
        planned: IntArray = plan_lengths(
            chances, allowed, drafted, state.lag <= 1, noisy, seconds, spent, self._max_length, self._price, 0
        )
        if not self._looks:
            return planned
        bound = np.where(planned > 0, np.minimum(allowed, self._max_length), 0)
        begun, trims = np.asarray([spent + self._fixed]), np.zeros(1, dtype=np.bool_)
        self._drafting = Drafting(chances, chances.copy(), noisy, bound, bound.copy(), planned, begun, trims)
        self._temperature = state.temperature
        if self._predictor.table is not None:
            self._rows = self._predictor.table.rows(state.temperature)
        return bound

    def look(self, level: DraftLevel) -> IntArray:
        """See `PlannedRound.look`."""
        drafting, own, predictor = self._drafting, level.requests, self._predictor
        assert drafting is not None
        rule = level.depth, predictor.carry, self._seconds, self._max_length, self._price
        found: IntArray
        if predictor.table is not None:
            read, none = predictor.level_features, np.zeros(len(own))
            margin, agreement = (getattr(level, name) if name in read else none for name in ("margin", "agreement"))
            found = look_by_table(drafting, own, predictor.table.chances, self._rows, margin, agreement, *rule)
        else:
            every = np.stack([getattr(level, name) for name in LEVEL_FEATURES], axis=1)
            told = np.stack(predictor.level(every, self._temperature[own], level.depth), axis=1)
            found = own[:0] if math.isnan(told.sum()) else look(drafting, own, told, *rule)
        if len(found) < len(own):
            complain(level, predictor)
        self.trims = bool(drafting.trims[0])
        return found

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `PlannedRound.verified`."""
        return num_drafted if self._drafting is None else np.minimum(self._drafting.planned, num_drafted)
