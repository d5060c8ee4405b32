"""Replayed engines under the price rule, compiled: decide, carry out, observe, many at once."""

from __future__ import annotations

import numpy as np

from ..controllers.compiled import (
    compiled,
    interpolate,
    new_history,
    plain_round_seconds,
    plan_lengths,
    verify_curve,
    write_features,
)
from ..controllers.controller import BoolArray
from ..controllers.cost_table import CostTable
from ..controllers.price_rule import RoundSeconds
from ..controllers.round_kernel import Drafting, history_chances, look
from .replay_queue import begin
from .replay_requests import contexts, gather, positions, temperatures, whole_drafts
from .replay_round import finish_round
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule


@compiled
def round_prices(costs: CostTable, batch: int, longest: float, max_length: int) -> RoundSeconds:
    """What a round can cost: `controllers.round_costs.RoundCosts.seconds`."""
    draft, work = np.zeros(batch + 1), costs.overhead
    verify = np.empty(costs.verify.shape[1])
    for count in range(1, batch + 1):
        drafting = batch if costs.drafts_whole_batch else count
        draft[count] = interpolate(costs.draft, drafting, 1.0, longest) + work[3] * count
    for tokens in range(len(verify)):
        verify[tokens] = interpolate(costs.verify, batch, float(tokens), longest)
    curve = verify_curve(verify, batch, batch * max_length) + work[4] * np.arange(batch * max_length + 1)
    stop = interpolate(costs.catch_up, 1, 1.0, longest)
    plain = plain_round_seconds(costs, batch, longest)
    return RoundSeconds(plain, draft, curve, work[8], work[2], work[7], stop, work[5], work[6])


@compiled
def priced_lengths(
    recording: Recording,
    costs: CostTable,
    at: IntArray,
    context: IntArray,
    lag: IntArray,
    temperature: FloatArray,
    rate: FloatArray,
    whole: IntArray,
    allowed: IntArray,
    max_length: int,
    price: float,
    looks: int,
) -> tuple[IntArray, IntArray, IntArray, int, int]:
    """Play a round by the price rule: lengths, drafted and verified tokens ``[B]``, levels asked, answers asked for.

    The lines of `controllers.priced.PricedController`, with the recording in the drafter's place. ``whole`` ``[B]`` as
    of `whole_drafts`.
    """
    batch = len(at)
    lengths = np.minimum(np.maximum(allowed, 0), max_length)
    if price == 0.0 or np.sum(lengths) == 0:  # A constant length.
        return lengths, lengths.copy(), lengths.copy(), 0, 0
    seconds = round_prices(costs, batch, float(context.max()), max_length)
    prior, noisy = history_chances(recording.history_numbers, rate, whole, temperature), temperature > 0
    drafted, spent = np.zeros(batch, dtype=np.int64), seconds.plain + seconds.noise * np.sum(noisy)
    planned = plan_lengths(prior, allowed, drafted, lag <= 1, noisy, seconds, spent, max_length, price, 0)
    if looks == 0 or not recording.tells:
        return planned, planned.copy(), planned.copy(), 0, 0
    lengths[planned == 0] = 0
    spent += seconds.fixed
    return looked_at(recording, at, prior, noisy, lengths, planned, seconds, spent, max_length, price, looks)


@compiled
def looked_at(
    recording: Recording,
    at: IntArray,
    prior: FloatArray,
    noisy: BoolArray,
    lengths: IntArray,
    planned: IntArray,
    seconds: RoundSeconds,
    spent: float,
    max_length: int,
    price: float,
    looks: int,
) -> tuple[IntArray, IntArray, IntArray, int, int]:
    """`priced_lengths` of a round with looks, from its first level on; ``lengths``: at most, ``planned``: so far."""
    begun, trims = np.array([spent]), np.zeros(1, dtype=np.bool_)
    drafting = Drafting(prior, prior.copy(), noisy, lengths, lengths.copy(), planned, begun, trims)
    active, told = np.flatnonzero(lengths), np.empty((len(at), 2), dtype=np.float32)
    depth = asked = 0
    while len(active) > 0 and depth < looks:
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
def held_round(
    recording: Recording,
    costs: CostTable,
    at: IntArray,
    context: IntArray,
    temperature: FloatArray,
    rate: FloatArray,
    whole: IntArray,
    lengths: IntArray,
    action: FloatArray,
) -> tuple[IntArray, IntArray, IntArray, int, int]:
    """`priced_lengths` where the last decision holds: its ``lengths``, at most where it looks, which it does anew.

    ``action``: a row of `Fleet.action`.
    """
    max_length, price, looks = int(action[0]), action[1], int(action[2])
    if looks == 0 or not recording.tells or np.sum(lengths) == 0:
        return lengths, lengths.copy(), lengths.copy(), 0, 0
    seconds = round_prices(costs, len(at), float(context.max()), max_length)
    prior, noisy = history_chances(recording.history_numbers, rate, whole, temperature), temperature > 0
    spent = seconds.plain + seconds.noise * np.sum(noisy) + seconds.fixed
    return looked_at(recording, at, prior, noisy, lengths, lengths.copy(), seconds, spent, max_length, price, looks)


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
    if phase > 0:
        held = fleet.held[e][slots]
        own = held_lengths(held, allowed)
        if len(own) > 0:
            for row in range(len(slots)):
                fleet.held[e, slots[row]] = held[row]
            lengths, drafted, verified, asked_levels, asked = held_round(
                recording,
                costs,
                positions(recording, schedule, fleet, e, slots),
                contexts(recording, schedule, fleet, e, slots),
                temperatures(recording, schedule, fleet, e, slots),
                fleet.rate[e][slots],
                whole_drafts(fleet, e, slots),
                own,
                fleet.action[e],
            )
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
                False,
                False,
                price,
            )
            return
    lengths, drafted, verified, asked_levels, asked = priced_lengths(
        recording,
        costs,
        positions(recording, schedule, fleet, e, slots),
        contexts(recording, schedule, fleet, e, slots),
        fleet.lag[e][slots],
        temperatures(recording, schedule, fleet, e, slots),
        fleet.rate[e][slots],
        whole_drafts(fleet, e, slots),
        allowed,
        max_length,
        price,
        looks,
    )
    for row in range(len(slots)):
        uncut = price == 0.0 or (looks > 0 and recording.tells and lengths[row] > 0)
        fleet.held[e, slots[row]] = max_length if uncut else lengths[row]
    fleet.action[e, 0], fleet.action[e, 1], fleet.action[e, 2] = max_length, price, looks
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
        price > 0,
        True,
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
        history_chances(recording.history_numbers, rate, whole_drafts(fleet, e, slots), temperature)[:, 0].copy(),
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
