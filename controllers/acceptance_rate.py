"""A request's running acceptance rate, the same in every engine: `RoundState.acceptance_rate`."""

from __future__ import annotations

import math

ACCEPTANCE_WEIGHT = 0.2
"""Of the newest round."""


def next_rate(rate: float, accepted: int, verified: int) -> float:
    """``rate`` (NaN before the first draft) after a round; a round that verified nothing leaves it."""
    if not verified:
        return rate
    share = accepted / verified
    return share if math.isnan(rate) else rate + ACCEPTANCE_WEIGHT * (share - rate)
