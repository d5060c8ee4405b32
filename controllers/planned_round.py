"""Lengths planned before a round: what `price_rule.plan_lengths` says, in fewer steps.

The choices are equal; the arithmetic is arranged for a process in which a call of NumPy outlasts the numbers.
"""

from __future__ import annotations

import math

import numpy as np

from .action import Action
from .controller import FloatArray, IntArray, RoundState
from .round_costs import RoundCosts

_NUMBERS = np.arange(256)
_ROWS = _NUMBERS[:, None]


def planned_lengths(
    costs: RoundCosts, state: RoundState, chances: FloatArray, allowed: IntArray, action: Action
) -> IntArray:
    """``[B]``. ``costs`` has been told of the round; ``chances`` ``[B, D]`` by depth; ``allowed`` ``[B]``."""
    most = min(max(allowed.tolist()), action.max_length)
    if most <= 0:
        return np.zeros(len(allowed), dtype=np.int64)
    if len(allowed) == 1:
        return np.asarray([_length_of_one(costs, state, chances[0].tolist(), most, action.price)])
    return _lengths_of_batch(costs, state, chances, allowed, action)


def _lengths_of_batch(
    costs: RoundCosts, state: RoundState, chances: FloatArray, allowed: IntArray, action: Action
) -> IntArray:
    """All depths that the deepest draft may have at once: arrays ``[L, N]`` for N tokens worth a thought."""
    batch, longest, price = len(allowed), action.max_length, action.price
    level = _ROWS[:longest]
    step, beyond, stop = costs.plan_rows(longest)
    expected = np.ones((longest + 1, batch))
    expected[1:] += np.add.accumulate(np.multiply.accumulate(_by_depth(chances, longest), axis=0), axis=0)
    added = np.log(expected[1:] / expected[:-1])
    added *= allowed > level
    flat = added.ravel()
    order = (-flat).argsort(kind="stable")[: np.count_nonzero(flat)]
    depths, own = np.divmod(order, batch)
    counts = np.add.accumulate(depths == level, axis=1)  # Tokens taken of each depth.
    seconds_of = step[counts[depths, np.arange(len(order))]]
    plain, noise = costs.plain, costs.noise
    if noise:
        noisy = state.temperature > 0
        seconds_of += noise * noisy[own]
        plain += noise * np.count_nonzero(noisy)
    inside = depths <= level
    seconds = np.add.accumulate(inside * seconds_of, axis=1)
    seconds += beyond[np.add.accumulate(counts, axis=0)]
    warm = state.lag <= 1
    to_start = np.count_nonzero(warm)
    if to_start:
        seconds += stop * (np.add.accumulate((depths == 0) & warm[own]) < to_start)
    speed = np.add.accumulate(inside * flat[order], axis=1)
    speed /= batch
    speed -= np.log(plain + price * seconds)
    best = int(speed.argmax())
    if not speed.item(best) > -math.log(plain + price * stop * (to_start > 0)):
        return np.zeros(batch, dtype=np.int64)
    length, last = divmod(best, len(order))
    return np.bincount(own[: last + 1][inside[length, : last + 1]], minlength=batch)


def _by_depth(chances: FloatArray, longest: int) -> FloatArray:
    """``[L, B]``; beyond the last depth that has a chance of its own, that one again."""
    known = chances.shape[1]
    if longest <= known:
        return chances.T[:longest]
    return np.concatenate([chances.T, np.repeat(chances.T[-1:], longest - known, axis=0)])


def _length_of_one(costs: RoundCosts, state: RoundState, chances: list[float], longest: int, price: float) -> int:
    """The same choice; between lengths that promise as much the shorter one."""
    curve, noise = costs.curve_of_one(longest), costs.noise if state.temperature.item() > 0 else 0.0
    stop = costs.plan_rows(longest).stop if state.lag.item() <= 1 else 0.0
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
