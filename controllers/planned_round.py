"""A round under the price rule: lengths planned before it, and again after each look; `price_rule`, compiled.

Imported when a controller has such rounds: constant lengths need no compiler.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .acceptance import AcceptancePredictor
from .acceptance_history import HistoryLogistics
from .acceptance_table import DEPTHS, MARGINS
from .action import Action, MissingFeatureError
from .compiled import write_features
from .controller import LEVEL_FEATURES, DraftLevel, FloatArray, IntArray, RoundState
from .cost_table import CostTable
from .observation import HISTORY_SIZE, NUM_FEATURES
from .price_rule import RoundSeconds
from .round_kernel import Drafting, look, look_by_table, open_round, plan_round, state_chances
from .round_overhead import COEFFICIENTS


@functools.cache
def warm_up() -> None:
    """Compile what rounds call, or read it where it has been compiled, before there is one."""
    whole, numbers, row = np.ones(2, dtype=np.int64), np.ones(2), np.zeros(3)
    chances, sure = np.full((2, 8), 0.5), np.ones(2, dtype=np.bool_)
    table = np.ones((1, DEPTHS, 3, MARGINS, 2), dtype=np.float32)
    told = np.ones((2, 2), dtype=np.float32)
    nothing = dict.fromkeys(RoundSeconds._fields[3:], 0.0)
    seconds = RoundSeconds(1.0, row, row, **nothing)
    state_chances(np.zeros((8, 6)), numbers, whole, whole, numbers)
    features = np.empty(NUM_FEATURES)
    passes = np.ones((3, 4, 3))
    costs = CostTable(passes, passes, passes, passes, np.ones(len(COEFFICIENTS)))
    write_features(features, whole, whole, numbers, numbers, numbers, 2, 0, 1.0, 0.0, 0.0, np.ones(HISTORY_SIZE), costs)
    own = (np.zeros((8, 6)), numbers, whole, whole, numbers, whole, whole, whole)
    open_round(costs, *own, 1, 1.0, 1, True)
    one_by_one: tuple[Any, ...] = (*costs, *own, 1, 1.0)
    plan_round(*one_by_one)
    drafting = Drafting(chances, chances.copy(), sure, whole, whole.copy(), whole.copy(), np.ones(1), sure[:1].copy())
    look(drafting, whole - 1, told, 1, 0.5, seconds, 1, 1.0)
    told_once: tuple[Any, ...] = (table, 0 * whole, 0.5, 1, 1.0, *drafting, *seconds)
    look_by_table(1, whole - 1, numbers, numbers, *told_once)


def first_chances(logistics: HistoryLogistics, state: RoundState) -> FloatArray:
    """``[B]`` of each request's first draft: `HistoryLogistics.of_state`, quicker."""
    drafted, accepted, first = state.last_num_speculative_tokens, state.last_accepted_length, logistics.numbers[:1]
    found: FloatArray = state_chances(first, state.acceptance_rate, drafted, accepted, state.temperature)
    return found[:, 0]


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


def _requests(
    logistics: HistoryLogistics, state: RoundState
) -> tuple[FloatArray, FloatArray, IntArray, IntArray, FloatArray, IntArray, IntArray]:
    """What `open_round` and `plan_round` are told of the requests, in their order."""
    return (
        logistics.numbers,
        state.acceptance_rate,
        state.last_num_speculative_tokens,
        state.last_accepted_length,
        state.temperature,
        state.lag,
        state.context_length,
    )


def planned_lengths(
    costs: CostTable, action: Action, logistics: HistoryLogistics, state: RoundState, allowed: IntArray
) -> IntArray:
    """``[B]`` lengths of a round without looks; ``allowed`` ``[B]``: most tokens."""
    told = *_requests(logistics, state), allowed, int(action.max_length), float(action.price)
    one_by_one: tuple[Any, ...] = (*costs, *told)
    found: IntArray = plan_round(*one_by_one)
    return found


class PlannedRound:
    """A round with looks in which each request gets its own length: the engine's `Looks`."""

    def __init__(self, costs: CostTable, action: Action, predictor: AcceptancePredictor, looks: int) -> None:
        """``looks``: levels after which the lengths are planned anew, 1 or more."""
        self.levels, self.trims = looks, False
        self._costs, self._predictor = costs, predictor
        self._max_length, self._price = int(action.max_length), float(action.price)

    def plan(self, state: RoundState, allowed: IntArray) -> IntArray:
        """``[B]`` lengths; ``allowed`` ``[B]``: most tokens.

        Those that draft are given all that is allowed: the looks say when to stop.
        """
        return self._open(state, allowed, plans=True)

    def begin(self, state: RoundState, bound: IntArray) -> None:
        """A round with looks in which ``bound`` ``[B]`` is given: most tokens of those that draft, 0 of the others."""
        self._open(state, bound, plans=False)

    def _open(self, state: RoundState, allowed: IntArray, plans: bool) -> IntArray:
        predictor, table = self._predictor, self._predictor.table
        self._drafting, self._seconds = open_round(
            self._costs,
            *_requests(predictor.history, state),
            allowed,
            self._max_length,
            self._price,
            self.levels,
            plans,
        )
        self._temperature = state.temperature
        if table is not None:
            rows = table.rows(state.temperature)  # May replace the table's chances.
            rule = table.chances, rows, predictor.carry, self._max_length, self._price
            self._told_once: tuple[Any, ...] = (*rule, *self._drafting, *self._seconds)
        return self._drafting.bound

    def after(self, depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> IntArray:
        """See `Looks.after`; for a predictor with a table."""
        predictor = self._predictor
        read = margin if predictor.reads_margin else np.zeros(len(requests))
        agreed = agreement if predictor.reads_agreement else np.zeros(len(requests))
        found: IntArray = look_by_table(depth, requests, read, agreed, *self._told_once)
        if len(found) < len(requests):
            _complain({"margin": margin, "agreement": agreement}, predictor)
        self.trims = self._drafting.trims.item()
        return found

    def look(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        predictor = self._predictor
        if predictor.table is not None:
            return self.after(level.depth, level.requests, level.margin, level.agreement)
        every = {name: getattr(level, name) for name in LEVEL_FEATURES}
        told = predictor.level(np.stack([*every.values()], axis=1), self._temperature[level.requests], level.depth)
        if any(np.isnan(every[name]).any() for name in predictor.level_features):
            _complain(every, predictor)
        rule = level.depth, predictor.carry, self._seconds, self._max_length, self._price
        found: IntArray = look(self._drafting, level.requests, np.stack(told, axis=1), *rule)
        self.trims = self._drafting.trims.item()
        return found

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Looks.verified`."""
        return np.minimum(self._drafting.planned, num_drafted)


def _complain(told: dict[str, FloatArray], predictor: AcceptancePredictor) -> None:
    """Raise for the first feature that is no number."""
    for name in predictor.level_features:
        if np.isnan(told[name]).any():
            raise MissingFeatureError(f"feature {name!r} of a draft level is NaN; the backend must provide it")
    raise MissingFeatureError("a chance of acceptance is NaN; fit the predictor again")
