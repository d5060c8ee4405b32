"""How far each request drafts and what is verified, given what a round costs: the lengths that promise most speed.

Requests pass through an engine's slots: with r_i expected tokens of request i per round of S seconds they do so at a
rate of 1 / (S * mean(length_i / r_i)), so that mean(log r_i) - log S is what to maximise round by round. Tokens per
second of the batch as such are not: it would fill with the requests that promise little, who then hold their slots for
longer.

Written on whole arrays with what NumPy and Numba both know, so that a controller and the compiled replay run the same
lines.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .controller import BoolArray, FloatArray, IntArray

LEVEL, REQUEST_LEVEL, VERIFIED, ASKED, ANSWER, NOISE, DRAFTING, PLANNING, PLANNED_REQUEST = range(2, 11)
"""Places of `RoundOverhead`'s coefficients after the constant and the one per request."""


class RoundSeconds(NamedTuple):
    """What a round of ``B`` requests that may draft ``L`` tokens each can cost: seconds, the host's part included."""

    plain: float
    """Without drafts and without noise."""
    draft: FloatArray
    """``[B + 1]`` the pass of a draft level by requests; 0 for none."""
    curve: FloatArray
    """``[B * L + 1]`` verifying that many drafted tokens: `verify_curve`."""
    fixed: float
    """Drafting at all."""
    per_level: float
    """A draft level, beside its pass."""
    noise: float
    """One token of a request that samples."""
    stop: float
    """Letting a drafter fall behind: what the shortest catch-up will cost."""
    look: float
    """Asking the controller after a level."""
    answer: float
    """The same, for each request that it is asked about."""


def verify_curve(verify: FloatArray, batch: int, count: int) -> FloatArray:
    """``[count + 1]`` seconds of verifying 0 … ``count`` drafted tokens for ``batch`` requests.

    ``verify`` is ``[K + 3]``: seconds by tokens per request at that batch and context.
    """
    tokens = 1.0 + np.arange(count + 1) / batch
    low = np.minimum(tokens.astype(np.int64), len(verify) - 2)
    return np.asarray(verify[low] + (tokens - low) * (verify[low + 1] - verify[low]))


def descending(values: FloatArray) -> IntArray:
    """Indices that sort ``values`` from large to small; ties in order of index."""
    return np.argsort(-values, kind="mergesort")


def plan_lengths(
    chance: FloatArray,
    allowed: IntArray,
    drafted: IntArray,
    warm: BoolArray,
    noisy: BoolArray,
    seconds: RoundSeconds,
    spent: float,
    max_length: int,
    price: float,
    depth: int,
) -> IntArray:
    """``[B]`` tokens of each request to verify, and to draft as far as they are not ``drafted`` yet.

    Those that promise most speed for the requests, in geometric mean. ``chance`` ``[B, D]``: that a draft is accepted
    at each depth if all before it are (the last column also beyond); ``allowed`` ``[B]``: most tokens; ``drafted``
    ``[B]``: tokens that are there already; ``warm`` ``[B]``: whose drafter would fall behind by sitting out; ``noisy``
    ``[B]``: who samples. ``spent``: seconds of the round if nothing more is drafted and nothing verified. ``depth``:
    levels drafted so far. ``price``: factor on all seconds beyond ``spent``.

    For every depth that the deepest draft may have, tokens are taken in descending order of what they add.
    """
    batch = len(allowed)
    survival, expected = np.ones(batch), np.ones(batch)
    added = np.zeros(max_length * batch)  # By depth, then request: of equals the shallower comes first.
    for level in range(max_length):
        survival = survival * chance[:, min(level, chance.shape[1] - 1)]
        more = expected + survival
        added[level * batch : (level + 1) * batch] = np.where(allowed > level, np.log(more / expected), 0.0)
        expected = more
    order = descending(added)[: np.count_nonzero(added)]
    depths, own = order // batch, order % batch
    seconds_of = seconds.noise * (noisy[own] & (depths >= drafted[own]))
    for level in range(depth, max_length):
        at_level = np.flatnonzero(depths == level)
        if len(at_level) > 0:
            seconds_of[at_level] += seconds.draft[1 : len(at_level) + 1] - seconds.draft[: len(at_level)]
            seconds_of[at_level[0]] += seconds.per_level
    started, to_start = np.cumsum((depths == 0) & warm[own]), np.sum(warm)
    first = (seconds.fixed if depth == 0 else 0.0) - seconds.curve[0]
    best = -np.log(spent + price * seconds.stop * (to_start > 0))
    taken = own[:0]
    for length in range(1, max_length + 1):
        chosen = np.flatnonzero(depths < length)
        if len(chosen) == 0:
            break
        costs = np.cumsum(seconds_of[chosen]) + seconds.curve[1 : len(chosen) + 1] + first
        costs += seconds.stop * (started[chosen] < to_start)
        speed = np.cumsum(added[order[chosen]]) / batch - np.log(spent + price * costs)
        at = int(np.argmax(speed))
        if speed[at] > best:
            best, taken = speed[at], own[chosen[: at + 1]]
    return np.bincount(taken, minlength=batch)
