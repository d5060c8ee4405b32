"""Replayed engines under the price rule, compiled: decide, carry out, observe, many at once."""

from __future__ import annotations

import numpy as np

from ..controllers.compiled import compiled, new_history, write_features
from ..controllers.cost_table import CostTable
from ..controllers.round_kernel import history_chances, look, open_round
from .replay_queue import begin
from .replay_requests import contexts, gather, positions, temperatures, whole_drafts
from .replay_round import finish_round
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule


@compiled
def priced_lengths(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    e: int,
    slots: IntArray,
    allowed: IntArray,
    max_length: int,
    price: float,
    looks: int,
    plans: bool,
) -> tuple[IntArray, IntArray, IntArray, int, int]:
    """Play a round by the price rule: lengths, drafted and verified tokens ``[B]``, levels asked, answers asked for.

    The lines of `controllers.priced.PricedController`, with the recording in the drafter's place. ``plans``: False
    where a decision holds, and ``allowed`` ``[B]`` is what it gave.
    """
    lengths, levels = np.minimum(np.maximum(allowed, 0), max_length), looks if recording.tells else 0
    if price == 0.0 or np.sum(lengths) == 0 or (levels == 0 and not plans):  # Nothing to plan and nothing to look at.
        return lengths, lengths.copy(), lengths.copy(), 0, 0
    drafting, seconds = open_round(
        costs,
        recording.history_numbers,
        fleet.rate[e][slots],
        fleet.last_drafted[e][slots],
        fleet.last_accepted[e][slots],
        temperatures(recording, schedule, fleet, e, slots),
        fleet.lag[e][slots],
        contexts(recording, schedule, fleet, e, slots),
        allowed,
        max_length,
        price,
        levels,
        plans,
    )
    at, lengths = positions(recording, schedule, fleet, e, slots), drafting.bound
    active, told = np.flatnonzero(lengths), np.empty((len(slots), 2), dtype=np.float32)
    depth = asked = 0
    while len(active) > 0 and depth < levels:
        active = active[lengths[active] > depth + 1]
        if len(active) == 0:
            break
        depth += 1
        asked += len(active)
        for number in range(len(active)):
            told[number, 0] = recording.chance[at[active[number]], depth - 1]
            told[number, 1] = recording.following[at[active[number]], depth - 1]
        found = look(drafting, active, told, depth, recording.carry, seconds, max_length, price)
        active = active[found > depth]
    return lengths, drafting.length, np.minimum(drafting.planned, drafting.length), depth, asked


@compiled
def held_lengths(held: IntArray, allowed: IntArray) -> IntArray:
    """``[B]`` lengths by the last decision, of which ``held`` ``[B]`` tells; empty where too many have come since.

    As `controllers.held_lengths.HeldLengths`: who has come since gets what the others have, in the mean.
    """
    total = known = 0
    for length in held:
        if length >= 0:
            total += length
            known += 1
    if 4 * (len(held) - known) > len(held):
        return held[:0]
    usual = int(total / known + 0.5)
    for row in range(len(held)):
        if held[row] < 0:
            held[row] = usual
    return np.minimum(held, np.maximum(allowed, 0))


@compiled
def price_round(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    e: int,
    max_length: int,
    price: float,
    looks: int,
    hold: int,
) -> None:
    """Decide by the price rule, or hold what was decided less than ``hold`` rounds ago, and carry the round out."""
    slots = gather(fleet, e)
    left = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        left[row] = schedule.limit[e, fleet.request[e, slots[row]]] - fleet.generated[e, slots[row]]
    allowed = np.minimum(left - 1, recording.chance.shape[1])
    phase = fleet.phase[e]
    fleet.phase[e] = (phase + 1) % hold
    held = fleet.held[e][slots]
    own = held_lengths(held, allowed) if phase > 0 else slots[:0]
    decides = len(own) == 0
    if decides:
        own = allowed
        fleet.action[e, 0], fleet.action[e, 1], fleet.action[e, 2] = max_length, price, looks
    longest, rate, levels = int(fleet.action[e, 0]), fleet.action[e, 1], int(fleet.action[e, 2])
    lengths, drafted, verified, asked_levels, asked = priced_lengths(
        recording, schedule, fleet, costs, e, slots, own, longest, rate, levels, decides
    )
    for row in range(len(slots)):
        if decides:
            uncut = price == 0.0 or (looks > 0 and recording.tells and lengths[row] > 0)
            held[row] = max_length if uncut else lengths[row]
        fleet.held[e, slots[row]] = held[row]
    planned = decides and price > 0
    finish_round(
        recording,
        schedule,
        fleet,
        costs,
        e,
        slots,
        lengths,
        drafted,
        verified,
        asked_levels,
        asked,
        planned,
        decides,
        price,
    )


@compiled
def observe(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    kv_tokens: int,
    e: int,
    out: FloatArray,
) -> None:
    """Fill ``out`` with the features of the decision that is due."""
    slots = gather(fleet, e)
    temperature = temperatures(recording, schedule, fleet, e, slots)
    rate = fleet.rate[e][slots]
    elapsed = max(fleet.clock[e] - fleet.meter[e, 2], 0.0)
    used = 0
    for slot in range(fleet.running[e]):
        used += fleet.prefilled[e, slot] + fleet.generated[e, slot]
    write_features(
        out,
        contexts(recording, schedule, fleet, e, slots),
        fleet.lag[e][slots],
        temperature,
        rate,
        history_chances(recording.history_numbers[:1], rate, whole_drafts(fleet, e, slots), temperature)[:, 0].copy(),
        fleet.running[e],
        fleet.arrived[e] - fleet.admitted[e],
        1.0 - used / kv_tokens,
        fleet.meter[e, 0] * np.exp(-elapsed),
        fleet.meter[e, 1] * np.exp(-elapsed / 10),
        fleet.history[e],
        costs,
    )


@compiled
def reset_engine(schedule: Schedule, fleet: Fleet, fresh: Schedule, e: int) -> None:
    """Empty engine ``e`` and give it the schedule ``fresh`` (of one engine)."""
    count = fresh.arrival.shape[1]
    schedule.arrival[e, :count] = fresh.arrival[0]
    schedule.record[e, :count] = fresh.record[0]
    schedule.length[e, :count] = fresh.length[0]
    schedule.limit[e, :count] = fresh.limit[0]
    schedule.count[e] = fresh.count[0]
    schedule.concurrency[e] = fresh.concurrency[0]
    for number in (fleet.clock, fleet.prefill_seconds, fleet.weight, fleet.seconds, fleet.worth):
        number[e] = 0.0
    for whole in (fleet.arrived, fleet.admitted, fleet.finished, fleet.running, fleet.tokens, fleet.phase):
        whole[e] = 0
    fleet.meter[e] = 0.0
    fleet.decoding[e] = False
    fleet.start[e] = np.nan
    fleet.finish[e] = np.nan
    fleet.history[e] = new_history()


@compiled
def step_all(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    prefill_chunk: int,
    kv_tokens: int,
    max_length: IntArray,
    price: FloatArray,
    looks: IntArray,
    hold: int,
    out: FloatArray,
    gained: FloatArray,
    alive: IntArray,
) -> None:
    """One decision of every engine: play the round, go on to the next, observe it.

    ``out`` ``[E, F]`` features; ``gained`` ``[E, 5]``: tokens, busy seconds, request-seconds and requests of the round,
    weighted tokens; ``alive`` ``[E]`` 0 where the schedule is served.
    """
    for e in range(len(max_length)):
        count = 0
        for slot in range(fleet.running[e]):
            count += fleet.decoding[e, slot]
        gained[e, 3] = count
        fleet.tokens[e] = 0
        fleet.worth[e] = 0.0
        fleet.seconds[e] = 0.0
        fleet.weight[e] = 0.0
        price_round(recording, schedule, fleet, costs, e, max_length[e], price[e], looks[e], hold)
        alive[e] = begin(recording, schedule, fleet, costs, prefill_chunk, e)
        gained[e, 0] = fleet.tokens[e]
        gained[e, 1] = fleet.seconds[e]
        gained[e, 2] = fleet.weight[e]
        gained[e, 4] = fleet.worth[e]
        if alive[e]:
            observe(recording, schedule, fleet, costs, kv_tokens, e, out[e])
