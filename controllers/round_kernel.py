"""A round with questions, compiled: who starts, who goes on, what is verified. For controllers and replay alike.

In a process in which passes of models have emptied the caches, a call of NumPy takes several microseconds; a round of
questions would take a hundred of them. Arrays are over the round's ``B`` requests, or over the ``A`` that are asked.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .acceptance_table import DEPTHS
from .compiled import choose_going, choose_starters, choose_verified, compiled, descending, step_of
from .controller import BoolArray, FloatArray, IntArray


@compiled
def starting_lengths(
    chance: FloatArray,
    weight: FloatArray,
    catch_up: FloatArray,
    allowed: IntArray,
    draft: FloatArray,
    curve: FloatArray,
    fixed: float,
    per_level: float,
    max_length: int,
    price: float,
) -> IntArray:
    """``[B]`` how far each request may draft: 0, or as much as allowed. As of `price_rule.choose_starters`."""
    lengths = np.zeros(len(chance), dtype=np.int64)
    able = np.flatnonzero(allowed > 0)
    if len(able) > 0 and max_length > 0:
        able = able[descending(weight[able] * chance[able] - price * catch_up[able])]
        levels = draft[: len(able) + 1]
        count = choose_starters(
            chance[able], weight[able], catch_up[able], levels, curve, fixed, per_level, max_length, price
        )
        for own in able[:count]:
            lengths[own] = min(allowed[own], max_length)
    return lengths


@compiled
def look_up(
    chances: NDArray[np.float32], rows: IntArray, margin: FloatArray, agreement: FloatArray, depth: int
) -> NDArray[np.float32]:
    """``[A, 2]`` as `AcceptanceTable.level`; ``rows`` ``[A]``. NaN where margin or agreement is."""
    found = np.empty((len(rows), 2), dtype=np.float32)
    for at in range(len(rows)):
        if np.isnan(margin[at]) or np.isnan(agreement[at]):
            found[at] = np.nan
        else:
            found[at] = chances[rows[at], min(depth, DEPTHS) - 1, int(agreement[at] + 1.5), step_of(margin[at])]
    return found


@compiled
def go_on(
    asked: IntArray,
    depth: int,
    chances: NDArray[np.float32],
    survival: FloatArray,
    worth: FloatArray,
    weight: FloatArray,
    lengths: IntArray,
    draft: FloatArray,
    curve: FloatArray,
    per_level: float,
    price: float,
) -> BoolArray:
    """``[A]`` which of the ``asked`` requests, which have drafted ``depth`` tokens, draft one more.

    ``chances`` ``[A, 2]``: that the token is accepted if those before it are, and the next one then. Updates
    ``survival`` ``[B]`` and ``worth`` ``[B, K]``, the weighted survival of every drafted token. ``lengths`` ``[B]``: as
    far as each may draft. The others as of `price_rule.choose_going`.
    """
    hope = np.empty(len(asked))
    candidates: int = 0
    for at in range(len(asked)):
        own = asked[at]
        survival[own] *= chances[at, 0]
        worth[own, depth - 1] = survival[own] * weight[own]
        hope[at] = worth[own, depth - 1] * chances[at, 1] if lengths[own] > depth else -1.0
        candidates += int(hope[at] >= 0)
    going = np.zeros(len(asked), dtype=np.bool_)
    if candidates > 0:
        order = descending(hope)[:candidates]
        start = min(int(np.count_nonzero(worth)), len(curve) - 1 - candidates)
        more = curve[start : start + candidates + 1]
        going[order[: choose_going(hope[order], draft[: candidates + 1], more, per_level, price)]] = True
    return going


@compiled
def verified_lengths(worth: FloatArray, drafted: IntArray, curve: FloatArray, price: float) -> IntArray:
    """``[B]`` how many ``drafted`` tokens to verify, as of `price_rule.choose_verified`; ``worth`` as of `go_on`."""
    flat = worth.ravel()
    flat = np.sort(flat[flat > 0])[::-1]
    kept = choose_verified(flat, curve[: len(flat) + 1], price)
    verified = np.zeros(len(drafted), dtype=np.int64)
    if kept > 0:
        least = flat[kept - 1]
        for own in range(len(drafted)):
            for depth in range(drafted[own]):
                if worth[own, depth] >= least:
                    verified[own] = depth + 1
    return verified
