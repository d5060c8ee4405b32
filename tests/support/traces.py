"""Recordings without a pair, and a cost surface in which everything costs something."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specpilot.controllers import CostSurface
from specpilot.controllers.cost_table import CostTable
from specpilot.controllers.pass_costs import PassCosts
from specpilot.controllers.round_overhead import RoundOverhead
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace

from .rounds import FIELDS

LONGEST, MAX_BATCH, MAX_CONTEXT = 6, 8, 256


def random_trace(num_requests: int = 24, seed: int = 0, confidence: bool = True) -> Trace:
    """Requests that differ in everything: prompts of 1 … 60 tokens, outputs of 1 … 40, three temperatures."""
    rng = np.random.default_rng(seed)
    output = rng.integers(1, 41, num_requests).astype(np.int32)
    output[0] = 1
    prompt = rng.integers(1, 61, num_requests).astype(np.int32)
    left = np.concatenate([np.arange(count, 0, -1) for count in output])
    accepted = np.minimum(np.minimum(rng.geometric(0.3, left.size) - 1, LONGEST), left).astype(np.uint8)
    told = None
    if confidence:
        top1 = rng.uniform(0.05, 0.99, (left.size, LONGEST))
        agreement = rng.integers(-1, 2, top1.shape)
        told = np.stack([top1, 2 * (1 - top1), 8 * top1, agreement], axis=-1).astype(np.float32)
    return Trace(
        max_num_speculative_tokens=LONGEST,
        prompt_tokens=prompt,
        output_tokens=output,
        accepted_length=accepted,
        temperature=np.resize(np.asarray([0.0, 0.6, 1.0], dtype=np.float32), num_requests),
        category=np.zeros(num_requests, dtype=np.uint8),
        confidence=told,
        max_tokens=output + rng.integers(0, 5, num_requests).astype(np.int32),
    )


def rich_surface(whole_batch: bool = False) -> CostSurface:
    """Seconds that grow with batch, tokens and context, and every kind of overhead."""
    batches, contexts = tuple(range(1, MAX_BATCH + 1)), (32, 128, 256)

    def costs(fixed: float, each: float, tokens: Sequence[int]) -> PassCosts:
        seconds = [[[[fixed + each * b * t * (1 + c / 512)] for c in contexts] for t in tokens] for b in batches]
        return PassCosts((batches, tuple(tokens), contexts), np.asarray(seconds))

    kinds = {
        "draft": costs(1e-3, 1e-4, (1, 2)),
        "verify": costs(8e-3, 6e-4, range(1, LONGEST + 3)),
        "catch_up": costs(1e-3, 5e-5, (16, 64, 256)),
        "prefill": costs(4e-3, 2e-4, (16, 64, 256)),
    }
    overhead = RoundOverhead(
        1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5, 7e-5, 8e-5, 9e-5, 1e-4, 2e-5, 3e-5, 1.1e-4, 2e-5, 4e-5, 1.1, 1.05, 1.2, 0.9
    )
    return CostSurface(kinds, FIELDS, "2026-01-01T00:00:00+00:00", overhead, whole_batch)


def rich_costs(whole_batch: bool = False) -> CostTable:
    """`rich_surface` as a table."""
    return CostTable.bake(rich_surface(whole_batch), MAX_BATCH, LONGEST, MAX_CONTEXT)


def all_at_once(trace: Trace) -> Schedule:
    """Every request of ``trace`` in order, all there at the start."""
    count = len(trace)
    return Schedule(
        np.zeros((1, count)),
        np.arange(count)[None],
        trace.output_tokens.astype(np.int64)[None],
        trace.token_limit.astype(np.int64)[None],
        np.asarray([count]),
        np.asarray([count]),
    )
