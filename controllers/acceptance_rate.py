"""A request's running acceptance rate, the same in every engine: `RoundState.acceptance_rate`."""

from __future__ import annotations

import math

ACCEPTANCE_WEIGHT = 0.06
"""Of the newest drafted token whose fate was seen."""
START_RATE = 0.7
"""What the average starts from at a request's first draft, so that one token does not decide it."""


def next_rate(rate: float, accepted: int, verified: int) -> float:
    """``rate`` (NaN before the first draft) after a round; a round that verified nothing leaves it.

    Seen are the accepted tokens and the first rejected one: what follows a rejection says nothing, and a share of
    all that was verified would fall with the length that was chosen.
    """
    if verified == 0:
        return rate
    known = START_RATE if math.isnan(rate) else rate
    known = 1.0 - (1.0 - known) * (1.0 - ACCEPTANCE_WEIGHT) ** accepted
    return known if accepted == verified else known * (1.0 - ACCEPTANCE_WEIGHT)
