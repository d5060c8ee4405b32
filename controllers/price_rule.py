"""How far each request drafts and what is verified, given what a round costs: the lengths that promise most speed.

Requests pass through an engine's slots: with r_i expected tokens of request i per round of S seconds they do so at a
rate of 1 / (S * mean(length_i / r_i)), so that mean(log r_i) - log S is what to maximise round by round. Tokens per
second of the batch as such are not: it would fill with the requests that promise little, who then hold their slots for
longer.

Written with what Python and Numba both know, so that a controller and the compiled replay run the same lines; number by
number, because for few requests the arrays in between would take longer than the rule.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from .controller import BoolArray, FloatArray, IntArray

LEVEL, REQUEST_LEVEL, VERIFIED, ASKED, ANSWER, NOISE, DRAFTING = range(2, 9)
PLANNING, PLANNED_REQUEST, PADDED, ASKING, IDLE, NOISY_DRAFTING = range(9, 15)
"""Places of `RoundOverhead`'s coefficients after the constant and the one per request."""


class RoundSeconds(NamedTuple):
    """What a round of ``B`` requests that may draft ``L`` tokens each can cost: seconds, the host's part included."""

    plain: float
    """Without drafts and without noise."""
    draft: FloatArray
    """``[B + 1]`` a draft level by requests, those that sit it out included; 0 for none."""
    curve: FloatArray
    """``[B * L + 1]`` verifying that many drafted tokens: `verify_curve`."""
    fixed: float
    """Drafting at all, also where somebody samples, and asking at all in a round with looks."""
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
    padded: float
    """A token of padding, as `padded_tokens` counts them."""


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


def padded_tokens(missing: Any, batch: int) -> Any:
    """Tokens of padding where ``batch`` requests verify ``missing`` fewer than if all did what the longest does.

    One more for each request where any is missing: every query is moved to its place and back, which takes about as
    long. Numbers or arrays.
    """
    return missing + batch * (missing > 0)


def idle_requests(drafting: Any, batch: int) -> Any:
    """Requests of a ``batch`` whose cache a draft level reads for nothing where so many are ``drafting``.

    One that drafts alone reads its own. Numbers or arrays.
    """
    return (batch - drafting) * (drafting > 1)


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
    batch, depths = len(allowed), chance.shape[1]
    added = np.zeros(max_length * batch)  # By depth, then request: of equals the shallower comes first.
    count, longest = 0, 0
    for row in range(batch):
        survival = expected = 1.0
        for level in range(min(allowed[row], max_length)):
            survival *= chance[row, min(level, depths - 1)]
            added[level * batch + row] = math.log1p(survival / expected)
            expected += survival
            count += survival > 0.0
            longest = max(longest, level + 1)
    order = descending(added)
    seconds_of, at_level = np.empty(count), np.zeros(max_length, dtype=np.int64)
    for place in range(count):
        level, row = order[place] // batch, order[place] % batch
        seconds_of[place] = seconds.noise if noisy[row] and level >= drafted[row] else 0.0
        if level >= depth:
            others = at_level[level]
            seconds_of[place] += seconds.draft[others + 1] - seconds.draft[others]
            if others == 0:
                seconds_of[place] += seconds.per_level
            at_level[level] += 1
    to_start = np.sum(warm)
    first = (seconds.fixed if depth == 0 else 0.0) - seconds.curve[0]
    plain = math.log(spent)
    best = -math.log(spent + price * seconds.stop * (to_start > 0))
    best_length = best_place = 0
    for length in range(1, longest + 1):
        costs, gain, taken, started = first, 0.0, 0, 0
        for place in range(count):
            level, row = order[place] // batch, order[place] % batch
            if level >= length:
                continue
            taken += 1
            costs += seconds_of[place]
            gain += added[order[place]]
            started += level == 0 and warm[row]
            total = costs + seconds.curve[taken] + seconds.padded * padded_tokens(batch * length - taken, batch)
            total += seconds.stop if started < to_start else 0.0
            more, ahead = price * total / spent, gain / batch - plain - best
            if more >= 0.0 and ahead * (2.0 + more) < 2.0 * more:  # log(1 + x) is at least 2 x / (2 + x).
                continue
            speed = gain / batch - math.log(spent + price * total)
            if speed > best:
                best, best_length, best_place = speed, length, place + 1
    planned = np.zeros(batch, dtype=np.int64)
    for place in range(best_place):
        planned[order[place] % batch] += order[place] // batch < best_length
    return planned
