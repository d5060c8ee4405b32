"""Rounds without an engine: states, outcomes, and cost surfaces with known seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from specpilot.controllers import CostSurface, RoundOutcome, RoundState
from specpilot.controllers.pass_costs import PassCosts

FIELDS = {"hardware": "abacus", "dtype": "float32", "versions": "abacus 1"}
Seconds = Callable[[int, int], float]


def surface(draft: Seconds, verify: Seconds, catch_up: Seconds = lambda batch, tokens: 1e-4 * batch * tokens) -> Any:
    """Seconds of batch and tokens per request, exact for batches 1 … 8 and 1 … 9 tokens; contexts cost nothing."""
    batches, tokens = tuple(range(1, 9)), tuple(range(1, 10))

    def costs(cost: Seconds, own: tuple[int, ...]) -> PassCosts:
        return PassCosts(
            (batches, own, (64,)), np.asarray([[[[cost(batch, count)]] for count in own] for batch in batches])
        )

    kinds = {"verify": costs(verify, tokens), "draft": costs(draft, (1, 2)), "prefill": costs(catch_up, (1, 64))}
    return CostSurface({**kinds, "catch_up": costs(catch_up, (1, 64))}, FIELDS, "2026-01-01T00:00:00+00:00")


def moderate() -> CostSurface:
    """Verification costs something, drafting is not free: choices differ between requests."""
    costs: CostSurface = surface(
        lambda batch, tokens: 1e-3 + 2e-4 * batch, lambda batch, tokens: 8e-3 + 6e-4 * batch * tokens
    )
    return costs


def memory_bound() -> CostSurface:
    """A verified token costs next to nothing."""
    return surface(lambda batch, tokens: 1e-3, lambda batch, tokens: 10e-3 + 1e-6 * batch * tokens)


def compute_bound() -> CostSurface:
    """A verified token costs as much as a decoded one."""
    return surface(lambda batch, tokens: 1e-3, lambda batch, tokens: 10e-3 * batch * tokens)


def round_state(batch: int, **values: Any) -> RoundState:
    """A state of ``batch`` requests with context 64, no lag and room for drafts of 8, but for ``values``."""
    whole: dict[str, Any] = {
        "context_length": 64,
        "num_generated": 8,
        "lag": 0,
        "max_num_speculative_tokens": 8,
        "last_num_speculative_tokens": -1,
        "last_accepted_length": -1,
        "tokens_left": 1,
    }
    fraction: dict[str, Any] = {"acceptance_rate": np.nan, "temperature": 0.0}
    arrays = {name: np.broadcast_to(values.pop(name, value), batch).astype(np.int64) for name, value in whole.items()}
    arrays |= {name: np.broadcast_to(values.pop(name, value), batch).astype(float) for name, value in fraction.items()}
    ids = tuple(values.pop("request_ids", (f"r{number}" for number in range(batch))))
    return RoundState(ids, **arrays, **{"running": batch, "waiting": 0, "kv_free": 1.0, **values})


def outcome(drafted: Sequence[int], accepted: Sequence[int], verified: Sequence[int] | None = None) -> RoundOutcome:
    """What a round of those lengths gives; it took a second."""
    kept = np.asarray(accepted)
    verified = drafted if verified is None else verified
    return RoundOutcome(np.asarray(drafted), np.asarray(verified), kept, kept + 1, 0.25, 0.5, 0.25, 0.0)


def seen_rate(rate: float | None, accepted: int, verified: int) -> float:
    """A request's acceptance rate after a round with drafts, token by token; ``rate`` None: its first."""
    found = 0.7 if rate is None else rate
    for fate in [1.0] * accepted + [0.0] * (accepted < verified):
        found += 0.06 * (fate - found)
    return found
