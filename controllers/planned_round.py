"""Lengths planned before a round: `price_rule.plan_lengths`, for one request without arrays."""

from __future__ import annotations

import numpy as np

from .action import Action
from .controller import FloatArray, IntArray, RoundState
from .round_costs import RoundCosts


def planned_lengths(
    costs: RoundCosts, state: RoundState, chances: FloatArray, allowed: IntArray, action: Action
) -> IntArray:
    """``[B]``. ``costs`` has been told of the round; ``chances`` ``[B, D]`` by depth; ``allowed`` ``[B]``."""
    most = min(max(allowed.tolist()), action.max_length)
    if most <= 0:
        return np.zeros(len(allowed), dtype=np.int64)
    if len(allowed) == 1:
        return np.asarray([_length_of_one(costs, state, chances[0].tolist(), most, action.price)])
    from . import batch_round  # Here, because constant lengths need no compiler.

    return batch_round.planned_lengths(costs, state, chances, allowed, action)


def _length_of_one(costs: RoundCosts, state: RoundState, chances: list[float], longest: int, price: float) -> int:
    """The same choice; between lengths that promise as much the shorter one."""
    curve, noise = costs.curve_of_one(longest), costs.noise if state.temperature.item() > 0 else 0.0
    stop = costs.rows(longest).stop if state.lag.item() <= 1 else 0.0
    level = costs.draft_of(1) + costs.unasked_draft + costs.unasked_level + noise
    plain = costs.plain + noise
    best, found = 1.0 / (plain + price * stop), 0
    survival = tokens = 1.0
    for length in range(1, longest + 1):
        survival *= chances[min(length, len(chances)) - 1]
        tokens += survival
        speed = tokens / (plain + price * (length * level + curve[length] + (costs.fixed - curve[0])))
        if speed > best:
            best, found = speed, length
    return found
