"""Which requests draft, which go on, and what is verified, given a price of time in tokens per second.

Maximising a ratio in the long run is maximising ``gain - price * seconds`` round by round at the right price
(Dinkelbach 1967). What is gained is not tokens as such. A batch in which the promising requests get everything fills
with the others, who then hold their slots for longer. With r_i expected tokens of request i per round of S seconds,
requests pass through the slots at a rate of 1 / (S * mean(length_i / r_i)); a change of r_i counts by d r_i / r_i in
every round that i is there, so mean(log r_i) - log S is what to maximise: a token counts as one over its request's r_i.

Every choice here is the best subset of requests under that rule, found by sorting: requests are alike in what they
cost, so the best m are those that promise most. Written on whole arrays with what NumPy and Numba both know, so that a
controller and the compiled replay run the same lines.
"""

from __future__ import annotations

import numpy as np

from .controller import BoolArray, FloatArray, IntArray

LEVEL, REQUEST_LEVEL, VERIFIED, ASKED, ANSWER, NOISE, DRAFTING = range(2, 9)
"""Places of `RoundOverhead`'s coefficients after the constant and the one per request."""


def verify_curve(verify: FloatArray, batch: int, count: int) -> FloatArray:
    """``[count + 1]`` seconds of verifying 0 … ``count`` drafted tokens for ``batch`` requests.

    ``verify`` is ``[K + 3]``: seconds by tokens per request at that batch and context.
    """
    tokens = 1.0 + np.arange(count + 1) / batch
    low = np.minimum(tokens.astype(np.int64), len(verify) - 2)
    return np.asarray(verify[low] + (tokens - low) * (verify[low + 1] - verify[low]))


def request_weights(chance: FloatArray, max_length: int) -> FloatArray:
    """``[B]`` what a token of each request counts: the mean request's expected tokens per round over its own.

    ``chance`` ``[B, D]`` as of `plan_lengths`; ``max_length``: of the drafts that are thought of.
    """
    survival, expected = np.ones(len(chance)), np.ones(len(chance))
    for depth in range(max_length):
        survival = survival * chance[:, min(depth, chance.shape[1] - 1)]
        expected = expected + survival
    return np.asarray(np.mean(expected) / expected)


def choose_starters(
    chance: FloatArray,
    weight: FloatArray,
    catch_up: FloatArray,
    draft: FloatArray,
    curve: FloatArray,
    fixed: float,
    per_level: float,
    max_length: int,
    price: float,
) -> int:
    """How many of the requests should draft at all: the first m in the order given.

    ``chance`` ``[A]``: each one's chance that its first draft is accepted; further drafts are expected to do as well.
    ``weight`` ``[A]``: `request_weights`. ``catch_up`` ``[A]``: seconds its drafter's lag costs, already spread over
    the rounds it will be of use. ``draft`` ``[A + 1]``: seconds of a draft level by requests. ``curve``: `verify_curve`
    up to ``A * max_length`` tokens. ``fixed`` and ``per_level``: seconds for drafting at all, and for every level
    beside its pass.
    """
    count = len(chance)
    best, best_value = 0, 0.0
    power = weight * chance
    tokens = np.cumsum(power)  # Expected gain of the first m requests.
    behind = np.cumsum(catch_up)
    members = np.arange(1, count + 1)
    for length in range(1, max_length + 1):
        seconds = fixed + behind + length * (draft[1:] + per_level) + curve[members * length] - curve[0]
        value = tokens - price * seconds
        at = int(np.argmax(value))
        if value[at] > best_value:
            best, best_value = at + 1, value[at]
        power = power * chance
        tokens = tokens + np.cumsum(power)
    return best


def choose_going(gain: FloatArray, draft: FloatArray, curve: FloatArray, per_level: float, price: float) -> int:
    """How many requests should draft one level more: the first m in the order given.

    ``gain`` ``[A]``: each one's chance that the next draft is accepted with all before it, weighted, descending.
    ``draft`` ``[A + 1]``: seconds of a level by requests. ``curve`` ``[A + 1]``: seconds of verifying that many tokens
    more.
    """
    value = np.cumsum(gain) - price * (draft[1:] + per_level + curve[1:] - curve[0])
    at = int(np.argmax(value))
    return at + 1 if value[at] > 0 else 0


def choose_verified(survival: FloatArray, curve: FloatArray, price: float) -> int:
    """How many drafted tokens to verify: the first n in the order given (descending weighted chance of acceptance).

    ``survival`` ``[N]``, ``curve`` ``[N + 1]`` seconds. Survival never rises along a draft, so the best n of all
    tokens are a prefix of every request's draft.
    """
    value = np.empty(len(curve))
    value[0] = 0.0
    value[1:] = np.cumsum(survival)
    return int(np.argmax(value - price * curve))


def descending(values: FloatArray) -> IntArray:
    """Indices that sort ``values`` from large to small; ties in order of index."""
    return np.argsort(-values, kind="mergesort")


def plan_lengths(
    chance: FloatArray,
    allowed: IntArray,
    warm: BoolArray,
    noisy: BoolArray,
    draft: FloatArray,
    curve: FloatArray,
    plain: float,
    fixed: float,
    per_level: float,
    noise: float,
    stop: float,
    max_length: int,
    price: float,
) -> IntArray:
    """``[B]`` lengths planned before the round: those that promise most speed for its requests, in geometric mean.

    ``chance`` ``[B, D]``: that a draft is accepted at each depth if all before it are (the last column also beyond);
    ``allowed`` ``[B]``: most tokens; ``warm`` ``[B]``: whose drafter is up to date; ``noisy`` ``[B]``: who samples.
    ``draft`` ``[B + 1]``, ``fixed``, ``per_level`` as of `choose_starters`, ``draft[0]`` 0; ``curve``: `verify_curve`
    up to ``B * max_length`` tokens; ``plain``: seconds of a round without drafts; ``noise``: of one drafted token of
    who samples; ``stop``: of letting drafters fall behind, once. ``price``: factor on all seconds beyond ``plain``.

    For every depth that the deepest draft may have, tokens are taken in descending order of what they add.
    """
    batch = len(allowed)
    survival, expected = np.ones(batch), np.ones(batch)
    added = np.zeros(max_length * batch)  # By depth, then request: of equals the shallower comes first.
    for depth in range(max_length):
        survival = survival * chance[:, min(depth, chance.shape[1] - 1)]
        more = expected + survival
        added[depth * batch : (depth + 1) * batch] = np.where(allowed > depth, np.log(more / expected), 0.0)
        expected = more
    order = descending(added)[: np.count_nonzero(added)]
    depths, own = order // batch, order % batch
    seconds_of = noise * noisy[own]
    for depth in range(max_length):
        level = np.flatnonzero(depths == depth)
        if len(level) > 0:
            seconds_of[level] += draft[1 : len(level) + 1] - draft[: len(level)]
            seconds_of[level[0]] += per_level
    started, to_start = np.cumsum((depths == 0) & warm[own]), np.sum(warm)
    best = -np.log(plain + price * stop * (to_start > 0))
    taken = own[:0]
    for length in range(1, max_length + 1):
        chosen = np.flatnonzero(depths < length)
        if len(chosen) == 0:
            break
        seconds = np.cumsum(seconds_of[chosen]) + curve[1 : len(chosen) + 1] + (fixed - curve[0])
        seconds += stop * (started[chosen] < to_start)
        speed = np.cumsum(added[order[chosen]]) / batch - np.log(plain + price * seconds)
        at = int(np.argmax(speed))
        if speed[at] > best:
            best, taken = speed[at], own[chosen[: at + 1]]
    return np.bincount(taken, minlength=batch)
