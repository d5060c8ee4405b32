"""What a controller is shown before a round, and the per-request history behind it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..controllers import RoundState
from ..controllers.acceptance_rate import next_rate
from .config import EngineConfig
from .drafter import Drafter
from .request import Request
from .scheduler import Scheduler
from .speculation import RoundResult


def round_state(
    requests: Sequence[Request],
    scheduler: Scheduler,
    drafter: Drafter | None,
    config: EngineConfig,
    kv_free: float,
    arrival_rates: tuple[float, float],
) -> RoundState:
    """Gather the state of the requests that decode."""

    def limit(request: Request) -> int:
        if drafter is None:
            return 0
        cap = request.params.num_speculative_tokens
        # A round gains one token more than it accepts, so the last token needs no draft.
        left = request.params.max_tokens - request.num_generated - 1
        return min(left, config.max_num_speculative_tokens if cap is None else cap)

    return RoundState(
        request_ids=tuple(request.request_id for request in requests),
        context_length=np.asarray([len(request.token_ids) for request in requests]),
        num_generated=np.asarray([request.num_generated for request in requests]),
        lag=np.asarray([0 if drafter is None else drafter.lag(request) for request in requests]),
        max_num_speculative_tokens=np.asarray([limit(request) for request in requests]),
        last_num_speculative_tokens=np.asarray([request.last_length for request in requests]),
        last_accepted_length=np.asarray([request.last_accepted for request in requests]),
        acceptance_rate=np.asarray([request.acceptance_rate for request in requests]),
        temperature=np.asarray([float(request.params.temperature) for request in requests]),
        tokens_left=np.asarray([request.params.max_tokens - request.num_generated for request in requests]),
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        kv_free=kv_free,
        arrival_rates=arrival_rates,
    )


def update_history(requests: Sequence[Request], result: RoundResult) -> int:
    """Enter a round into each request's history; returns how many went from off to on or back."""
    switches = 0
    counts = zip(requests, result.num_drafted, result.num_verified, result.accepted_length, strict=True)
    for request, drafted, verified, accepted in counts:
        switched = request.last_length >= 0 and (request.last_length > 0) != (drafted > 0)
        switches += switched
        request.stats.num_rounds += 1
        request.stats.count(drafted, verified, accepted)
        request.stats.num_switches += switched
        request.last_length, request.last_accepted = drafted, accepted
        request.acceptance_rate = next_rate(request.acceptance_rate, accepted, verified)
    return switches
