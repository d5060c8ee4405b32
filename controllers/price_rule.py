"""Which requests draft, which go on, and what is verified, given a price of time in tokens per second.

Maximising tokens per second in the long run is maximising ``tokens - price * seconds`` round by round at the right
price (Dinkelbach 1967). Every choice here is the best subset of requests under that rule, found by sorting: requests
are alike in what they cost, so the best m are those that promise most. Written on whole arrays with what NumPy and
Numba both know, so that a controller and the compiled replay run the same lines.
"""

from __future__ import annotations

import numpy as np

from .controller import FloatArray, IntArray

LEVEL, REQUEST_LEVEL, VERIFIED, ASKED, ANSWER, NOISE, DRAFTING = range(2, 9)
"""Places of `RoundOverhead`'s coefficients after the constant and the one per request."""


def verify_curve(verify: FloatArray, batch: int, count: int) -> FloatArray:
    """``[count + 1]`` seconds of verifying 0 … ``count`` drafted tokens for ``batch`` requests.

    ``verify`` is ``[K + 3]``: seconds by tokens per request at that batch and context.
    """
    tokens = 1.0 + np.arange(count + 1) / batch
    low = np.minimum(tokens.astype(np.int64), len(verify) - 2)
    return np.asarray(verify[low] + (tokens - low) * (verify[low + 1] - verify[low]))


def choose_starters(
    chance: FloatArray,
    catch_up: FloatArray,
    draft: FloatArray,
    curve: FloatArray,
    fixed: float,
    per_level: float,
    max_length: int,
    price: float,
) -> int:
    """How many of the requests should draft at all: the first m in the order given.

    ``chance`` ``[A]``: each one's chance that its first draft is accepted, descending; further drafts are expected to
    do as well. ``catch_up`` ``[A]``: seconds its drafter's lag costs, already spread over the rounds it will be of use.
    ``draft`` ``[A + 1]``: seconds of a draft level by requests. ``curve``: `verify_curve` up to ``A * max_length``
    tokens. ``fixed`` and ``per_level``: seconds for drafting at all, and for every level beside its pass.
    """
    count = len(chance)
    best, best_value = 0, 0.0
    power = chance.copy()
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

    ``gain`` ``[A]``: each one's chance that the next draft is accepted with all before it, descending. ``draft``
    ``[A + 1]``: seconds of a level by requests. ``curve`` ``[A + 1]``: seconds of verifying that many tokens more.
    """
    value = np.cumsum(gain) - price * (draft[1:] + per_level + curve[1:] - curve[0])
    at = int(np.argmax(value))
    return at + 1 if value[at] > 0 else 0


def choose_verified(survival: FloatArray, curve: FloatArray, price: float) -> int:
    """How many drafted tokens to verify: the first n in the order given (descending chance of being accepted).

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
