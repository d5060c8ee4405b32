"""A round carried out, compiled: what it costs and what it gains.

The rules are those of ``engine/engine.py``, the seconds those of `CostSurface.round_cost` and its overhead.
"""

from __future__ import annotations

import numpy as np

from ..controllers.compiled import (
    compiled,
    idle_requests,
    interpolate,
    next_rate,
    padded_tokens,
    plain_round_seconds,
    update_history,
)
from ..controllers.cost_table import CHUNK_STEP, CostTable
from ..controllers.price_rule import (
    ANSWER,
    ASKED,
    ASKING,
    DRAFTING,
    IDLE,
    LEVEL,
    NOISE,
    NOISY_DRAFTING,
    PADDED,
    PLANNED_REQUEST,
    PLANNING,
    REQUEST_LEVEL,
    VERIFIED,
)
from .replay_queue import pass_time
from .replay_requests import contexts, positions, temperatures
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule


@compiled
def round_seconds(
    costs: CostTable,
    context: IntArray,
    lag: IntArray,
    temperature: FloatArray,
    lengths: IntArray,
    drafted: IntArray,
    verified: IntArray,
    asked_levels: int,
    asked: int,
    planned: bool,
) -> tuple[float, float, float, float]:
    """Seconds of catch-up, draft, verification and everything else of a round; arrays are ``[B]``.

    ``lengths`` were decided, ``drafted`` became of them; ``planned``: as of `Controller.plans`.
    """
    batch = len(context)
    cached = context - 1
    verify = interpolate(costs.verify, batch, 1.0 + verified.sum() / batch, float(cached.max()))
    deepest = int(drafted.max())
    draft = catch_up = 0.0
    idle = 0
    for depth in range(1, deepest + 1):
        count, longest, unseen = 0, 0, 0
        for row in range(batch):
            if drafted[row] >= depth:
                count += 1
                longest = max(longest, cached[row] + depth - 1)
                unseen += lag[row] == 1
        idle += idle_requests(count, batch)
        drafting = batch if costs.drafts_whole_batch else count
        draft += interpolate(costs.draft, drafting, 1.0 + (unseen / count if depth == 1 else 0.0), float(longest))
    behind, tokens, seen = 0, 0, 0
    for row in range(batch):
        if drafted[row] > 0 and lag[row] > 1:
            behind += 1
            tokens += lag[row]
            seen = max(seen, cached[row] - lag[row])
    if behind > 0:
        catch_up = interpolate(costs.catch_up, behind, max(tokens / behind / CHUNK_STEP, 1.0), float(seen))
    work = costs.overhead
    other = work[0] + work[1] * batch + work[LEVEL] * deepest + work[REQUEST_LEVEL] * drafted.sum()
    other += work[VERIFIED] * verified.sum() + work[DRAFTING] * (deepest > 0)
    other += work[ASKING] * (asked_levels > 0) + work[ASKED] * asked_levels + work[ANSWER] * asked
    other += planned * (work[PLANNING] + work[PLANNED_REQUEST] * batch)
    other += work[IDLE] * idle + work[PADDED] * padded_tokens(batch * verified.max() - verified.sum(), batch)
    noisy = temperature > 0
    other += work[NOISE] * np.sum(noisy * (drafted + 1)) + work[NOISY_DRAFTING] * (deepest > 0 and noisy.any())
    return catch_up, draft, verify, other


@compiled
def _release(fleet: Fleet, e: int, slot: int) -> None:
    """Free a slot; the last one moves into the hole."""
    last = fleet.running[e] - 1
    for table in (fleet.request, fleet.prefilled, fleet.generated, fleet.lag, fleet.last_drafted, fleet.last_accepted):
        table[e, slot] = table[e, last]
    fleet.held[e, slot] = fleet.held[e, last]
    fleet.decoding[e, slot] = fleet.decoding[e, last]
    fleet.rate[e, slot] = fleet.rate[e, last]
    fleet.running[e] = last


@compiled
def finish_round(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    e: int,
    slots: IntArray,
    lengths: IntArray,
    drafted: IntArray,
    verified: IntArray,
    asked_levels: int,
    asked: int,
    planned: bool,
    noted: bool,
    price: float,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Commit a round. Returns accepted and committed tokens ``[B]`` and its seconds by part ``[4]``.

    ``planned``: as of `round_seconds`; ``noted``: the round enters the history, with ``price``. Requests that are done
    leave.
    """
    context = contexts(recording, schedule, fleet, e, slots)
    at = positions(recording, schedule, fleet, e, slots)
    temperature = temperatures(recording, schedule, fleet, e, slots)
    parts = round_seconds(
        costs, context, fleet.lag[e][slots], temperature, lengths, drafted, verified, asked_levels, asked, planned
    )
    batch = len(slots)
    seconds = fleet.prefill_seconds[e] + parts[0] + parts[1] + parts[2] + parts[3]
    pass_time(schedule, fleet, e, seconds)
    accepted = np.minimum(verified, recording.accepted[at])
    committed = np.empty(batch, dtype=np.int64)
    done = np.empty(batch, dtype=np.int64)
    num_done = 0
    for row in range(batch):
        slot = slots[row]
        request = fleet.request[e, slot]
        committed[row] = min(accepted[row] + 1, schedule.length[e, request] - fleet.generated[e, slot])
        if fleet.generated[e, slot] == 0:
            fleet.start[e, request] = fleet.clock[e]
        fleet.generated[e, slot] += committed[row]
        fleet.worth[e] += committed[row] * recording.weight[schedule.record[e, request]]
        if drafted[row] > 0:
            fleet.lag[e, slot] = 1 if accepted[row] == drafted[row] else 0
        else:
            fleet.lag[e, slot] += 1
        fleet.last_drafted[e, slot] = drafted[row]
        fleet.last_accepted[e, slot] = accepted[row]
        fleet.rate[e, slot] = next_rate(fleet.rate[e, slot], accepted[row], verified[row])
        if fleet.generated[e, slot] == schedule.length[e, request]:
            fleet.finish[e, request] = fleet.clock[e]
            done[num_done] = request
            num_done += 1
    for number in range(num_done):
        for slot in range(fleet.running[e]):
            if fleet.request[e, slot] == done[number]:
                _release(fleet, e, slot)
                break
    fleet.finished[e] += num_done
    tokens = committed.sum()
    fleet.tokens[e] += tokens
    if not noted:
        return accepted, committed, np.array(parts)
    plain = plain_round_seconds(costs, batch, float(context.max()))
    spent = parts[0] + parts[1] + parts[2] + parts[3]
    update_history(
        fleet.history[e], drafted, verified, accepted, tokens, batch * spent / plain, float(lengths.max()), price
    )
    return accepted, committed, np.array(parts)
