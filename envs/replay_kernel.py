"""The engine's step, compiled: who is admitted, what is prefilled, what a round gains and what it costs.

`begin` runs until some requests decode and a decision is due; `finish_round` carries a decision out. The rules are
those of ``engine/scheduler.py`` and ``engine/engine.py``, the seconds those of `CostSurface.round_cost` and its
overhead.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..controllers.acceptance_history import LOWEST_RATE
from ..controllers.compiled import (
    compiled,
    gain_of,
    interpolate,
    new_history,
    next_rate,
    plain_round_seconds,
    plan_lengths,
    request_weights,
    update_history,
    verify_curve,
    write_features,
)
from ..controllers.cost_table import CHUNK_STEP, CostTable
from ..controllers.round_kernel import go_on, starting_lengths, verified_lengths
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule


@compiled
def _count_arrival(fleet: Fleet, e: int, time: float) -> None:
    meter = fleet.meter[e]
    elapsed = max(time - meter[2], 0.0)
    meter[0] = meter[0] * np.exp(-elapsed) + 1.0
    meter[1] = meter[1] * np.exp(-elapsed / 10) + 0.1
    meter[2] = max(time, meter[2])


@compiled
def _receive(schedule: Schedule, fleet: Fleet, e: int) -> None:
    """Let requests arrive that are due."""
    if schedule.concurrency[e] > 0:
        due = min(schedule.count[e], fleet.finished[e] + schedule.concurrency[e])
        while fleet.arrived[e] < due:
            _count_arrival(fleet, e, fleet.clock[e])
            fleet.arrived[e] += 1
        return
    while fleet.arrived[e] < schedule.count[e] and schedule.arrival[e, fleet.arrived[e]] <= fleet.clock[e]:
        _count_arrival(fleet, e, schedule.arrival[e, fleet.arrived[e]])
        fleet.arrived[e] += 1


@compiled
def _admit(recording: Recording, schedule: Schedule, fleet: Fleet, e: int) -> None:
    while fleet.running[e] < fleet.request.shape[1] and fleet.admitted[e] < fleet.arrived[e]:
        slot, request = fleet.running[e], fleet.admitted[e]
        prompt = recording.prompt[schedule.record[e, request]]
        fleet.request[e, slot] = request
        fleet.prefilled[e, slot] = 0
        fleet.decoding[e, slot] = prompt == 1
        fleet.generated[e, slot] = 0
        fleet.lag[e, slot] = prompt - 1
        fleet.rate[e, slot] = np.nan
        fleet.last_drafted[e, slot] = -1
        fleet.last_accepted[e, slot] = -1
        fleet.running[e] += 1
        fleet.admitted[e] += 1


@compiled
def _prefill(
    recording: Recording, schedule: Schedule, fleet: Fleet, costs: CostTable, prefill_chunk: int, e: int
) -> float:
    """Prefill a bounded chunk; returns its seconds."""
    budget, count, total, longest = prefill_chunk, 0, 0, 0
    for slot in range(fleet.running[e]):
        if fleet.decoding[e, slot] or budget == 0:
            continue
        wanted = recording.prompt[schedule.record[e, fleet.request[e, slot]]] - 1
        tokens = min(budget, wanted - fleet.prefilled[e, slot])
        longest = max(longest, fleet.prefilled[e, slot])
        fleet.prefilled[e, slot] += tokens
        fleet.decoding[e, slot] = fleet.prefilled[e, slot] == wanted
        budget -= tokens
        count += 1
        total += tokens
    if count == 0:
        return 0.0
    return interpolate(costs.prefill, count, max(total / count / CHUNK_STEP, 1.0), float(longest))


@compiled
def _pass_time(schedule: Schedule, fleet: Fleet, e: int, seconds: float) -> None:
    """Let busy time pass."""
    fleet.clock[e] += seconds
    fleet.seconds[e] += seconds
    if schedule.concurrency[e] > 0:
        fleet.weight[e] += seconds * schedule.concurrency[e]
    else:
        fleet.weight[e] += seconds * (fleet.running[e] + fleet.arrived[e] - fleet.admitted[e])


@compiled
def begin(recording: Recording, schedule: Schedule, fleet: Fleet, costs: CostTable, prefill_chunk: int, e: int) -> bool:
    """Go on until requests decode; False when the schedule is served."""
    while True:
        _receive(schedule, fleet, e)
        _admit(recording, schedule, fleet, e)
        if fleet.running[e] == 0:
            if fleet.arrived[e] >= schedule.count[e]:
                return False
            fleet.clock[e] = schedule.arrival[e, fleet.arrived[e]]
            continue
        fleet.prefill_seconds[e] = _prefill(recording, schedule, fleet, costs, prefill_chunk, e)
        for slot in range(fleet.running[e]):
            if fleet.decoding[e, slot]:
                return True
        _pass_time(schedule, fleet, e, fleet.prefill_seconds[e] + costs.overhead[0])


@compiled
def gather(fleet: Fleet, e: int) -> IntArray:
    """Slots that decode, in order."""
    slots = np.empty(fleet.running[e], dtype=np.int64)
    count = 0
    for slot in range(fleet.running[e]):
        if fleet.decoding[e, slot]:
            slots[count] = slot
            count += 1
    return slots[:count]


@compiled
def positions(recording: Recording, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` position in the recording of each slot's request."""
    found = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        record = schedule.record[e, fleet.request[e, slots[row]]]
        found[row] = recording.first[record] + fleet.generated[e, slots[row]]
    return found


@compiled
def contexts(recording: Recording, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` tokens committed, prompt included."""
    found = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        record = schedule.record[e, fleet.request[e, slots[row]]]
        found[row] = recording.prompt[record] + fleet.generated[e, slots[row]]
    return found


@compiled
def allowed_lengths(schedule: Schedule, fleet: Fleet, e: int, slots: IntArray, longest: int) -> IntArray:
    """``[B]`` largest speculation length of each request."""
    found = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        left = schedule.limit[e, fleet.request[e, slots[row]]] - fleet.generated[e, slots[row]] - 1
        found[row] = min(left, longest)
    return found


@compiled
def temperatures(recording: Recording, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> FloatArray:
    """``[B]``."""
    found = np.empty(len(slots))
    for row in range(len(slots)):
        found[row] = recording.temperature[schedule.record[e, fleet.request[e, slots[row]]]]
    return found


@compiled
def whole_drafts(fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` 1 where the last round drafted and every token was accepted."""
    found = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        drafted = fleet.last_drafted[e, slots[row]]
        found[row] = drafted > 0 and fleet.last_accepted[e, slots[row]] == drafted
    return found


@compiled
def history_chances(recording: Recording, rate: FloatArray, whole: IntArray, temperature: FloatArray) -> FloatArray:
    """``[B, 8]`` by depth, as `HistoryLogistics.chances`."""
    numbers = recording.history_numbers
    found = np.empty((len(rate), len(numbers)))
    for row in range(len(rate)):
        known = not np.isnan(rate[row])
        inside = min(max(rate[row], LOWEST_RATE), 1.0 - LOWEST_RATE) if known else 0.5
        log_odds = np.log(inside / (1.0 - inside))
        for depth in range(len(numbers)):
            own = numbers[depth]
            score = own[0] * log_odds + own[2] * whole[row] + own[3] * temperature[row] + own[5]
            if not known:
                score += own[1]
            if temperature[row] == 0:
                score += own[4]
            found[row, depth] = 1.0 / (1.0 + np.exp(-score))
    return found


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
) -> tuple[float, float, float, float]:
    """Seconds of catch-up, draft, verification and everything else of a round; arrays are ``[B]``.

    ``lengths`` were decided (noise is drawn for the longest), ``drafted`` became of them.
    """
    batch = len(context)
    cached = context - 1
    verify = interpolate(costs.verify, batch, 1.0 + verified.sum() / batch, float(cached.max()))
    deepest = int(drafted.max())
    draft = catch_up = 0.0
    for depth in range(1, deepest + 1):
        count, longest, unseen = 0, 0, 0
        for row in range(batch):
            if drafted[row] >= depth:
                count += 1
                longest = max(longest, cached[row] + depth - 1)
                unseen += lag[row] == 1
        draft += interpolate(costs.draft, count, 1.0 + (unseen / count if depth == 1 else 0.0), float(longest))
    behind, tokens, seen = 0, 0, 0
    for row in range(batch):
        if drafted[row] > 0 and lag[row] > 1:
            behind += 1
            tokens += lag[row]
            seen = max(seen, cached[row] - lag[row])
    if behind > 0:
        catch_up = interpolate(costs.catch_up, behind, max(tokens / behind / CHUNK_STEP, 1.0), float(seen))
    work = costs.overhead
    other = work[0] + work[1] * batch + work[2] * deepest + work[3] * drafted.sum() + work[4] * verified.sum()
    other += work[5] * asked_levels + work[6] * asked + work[8] * (deepest > 0)
    other += work[7] * np.sum((temperature > 0) * (drafted + 1))
    return catch_up, draft, verify, other


@compiled
def _release(fleet: Fleet, e: int, slot: int) -> None:
    """Free a slot; the last one moves into the hole."""
    last = fleet.running[e] - 1
    for table in (fleet.request, fleet.prefilled, fleet.generated, fleet.lag, fleet.last_drafted, fleet.last_accepted):
        table[e, slot] = table[e, last]
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
    price: float,
) -> tuple[IntArray, IntArray, FloatArray]:
    """Commit a round. Returns accepted and committed tokens ``[B]`` and its seconds by part ``[4]``.

    ``price`` is only remembered (`observation`). Requests that are done leave.
    """
    context = contexts(recording, schedule, fleet, e, slots)
    at = positions(recording, schedule, fleet, e, slots)
    temperature = temperatures(recording, schedule, fleet, e, slots)
    parts = round_seconds(
        costs, context, fleet.lag[e][slots], temperature, lengths, drafted, verified, asked_levels, asked
    )
    batch = len(slots)
    seconds = fleet.prefill_seconds[e] + parts[0] + parts[1] + parts[2] + parts[3]
    _pass_time(schedule, fleet, e, seconds)
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
    plain = plain_round_seconds(costs, batch, float(context.max()))
    spent = parts[0] + parts[1] + parts[2] + parts[3]
    update_history(
        fleet.history[e], drafted, verified, accepted, tokens, batch * spent / plain, float(lengths.max()), price
    )
    return accepted, committed, np.array(parts)


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
    left: IntArray,
    allowed: IntArray,
    gain: float,
    max_length: int,
    price: float,
    asks: bool,
) -> tuple[IntArray, IntArray, IntArray, int, int]:
    """Play a round by the price rule: lengths, drafted and verified tokens ``[B]``, levels asked, answers asked for.

    The lines of `controllers.priced.PricedController`, with the recording in the drafter's place. ``left`` ``[B]``:
    tokens each request may still generate; ``whole`` ``[B]`` as of `whole_drafts`.
    """
    batch = len(at)
    lengths = np.zeros(batch, dtype=np.int64)
    drafted = np.zeros(batch, dtype=np.int64)
    longest = float(context.max())
    plain = plain_round_seconds(costs, batch, longest)
    worth = price * gain * batch / plain
    chances = history_chances(recording, rate, whole, temperature)
    able = np.flatnonzero((allowed > 0) & (max_length > 0))
    if len(able) == 0:
        return lengths, drafted, drafted.copy(), 0, 0
    if price == 0.0:  # A constant length, without questions.
        for own in able:
            lengths[own] = min(allowed[own], max_length)
        return lengths, lengths.copy(), lengths.copy(), 0, 0
    draft = np.empty(batch + 1)
    verify = np.empty(costs.verify.shape[1])
    for count in range(batch + 1):
        draft[count] = interpolate(costs.draft, count, 1.0, longest)
    for tokens in range(len(verify)):
        verify[tokens] = interpolate(costs.verify, batch, float(tokens), longest)
    work = costs.overhead
    curve = verify_curve(verify, batch, batch * max_length) + work[4] * np.arange(batch * max_length + 1)
    if not asks:
        noisy = temperature > 0
        draft += work[3] * np.arange(batch + 1)
        draft[0] = 0.0
        base = plain + work[7] * np.sum(noisy)
        stop = interpolate(costs.catch_up, 1, 1.0, longest)
        lengths = plan_lengths(
            chances, allowed, lag <= 1, noisy, draft, curve, base, work[8], work[2], work[7], stop, max_length, price
        )
        return lengths, lengths.copy(), lengths.copy(), 0, 0
    draft += (work[3] + work[6]) * np.arange(batch + 1)
    draft[0] = 0.0
    per_level, weight, behind = work[2] + work[5], request_weights(chances, max_length), np.zeros(batch)
    for row in range(batch):
        if lag[row] > 1:
            seconds = interpolate(costs.catch_up, 1, max(lag[row] / CHUNK_STEP, 1.0), longest)
            behind[row] = seconds / max(left[row] / gain, 1.0)
    first = chances[:, 0].copy()
    lengths = starting_lengths(first, weight, behind, allowed, draft, curve, work[8], per_level, max_length, worth)
    active, survival, promised = np.flatnonzero(lengths), np.ones(batch), np.zeros((batch, max_length))
    told = np.empty((batch, 2), dtype=np.float32)
    depth = asked = 0
    while len(active) > 0:
        depth += 1
        asked += len(active)
        for number in range(len(active)):
            drafted[active[number]] = depth
            told[number, 0] = recording.chance[at[active[number]], depth - 1]
            told[number, 1] = recording.following[at[active[number]], depth - 1]
        going = go_on(active, depth, told, survival, promised, weight, lengths, draft, curve, per_level, worth)
        active = active[going]
    return lengths, drafted, verified_lengths(promised, drafted, curve, worth), depth, asked


@compiled
def price_round(
    recording: Recording,
    schedule: Schedule,
    fleet: Fleet,
    costs: CostTable,
    e: int,
    max_length: int,
    price: float,
    asks: bool,
) -> None:
    """Decide by the price rule and carry the round out."""
    slots = gather(fleet, e)
    left = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        left[row] = schedule.limit[e, fleet.request[e, slots[row]]] - fleet.generated[e, slots[row]]
    lengths, drafted, verified, asked_levels, asked = priced_lengths(
        recording,
        costs,
        positions(recording, schedule, fleet, e, slots),
        contexts(recording, schedule, fleet, e, slots),
        fleet.lag[e][slots],
        temperatures(recording, schedule, fleet, e, slots),
        fleet.rate[e][slots],
        whole_drafts(fleet, e, slots),
        left,
        np.minimum(left - 1, recording.chance.shape[1]),
        gain_of(fleet.history[e]),
        max_length,
        price,
        asks,
    )
    finish_round(recording, schedule, fleet, costs, e, slots, lengths, drafted, verified, asked_levels, asked, price)


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
        history_chances(recording, rate, whole_drafts(fleet, e, slots), temperature)[:, 0].copy(),
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
    for whole in (fleet.arrived, fleet.admitted, fleet.finished, fleet.running, fleet.tokens):
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
    asks: NDArray[np.bool_],
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
        price_round(recording, schedule, fleet, costs, e, max_length[e], price[e], asks[e])
        alive[e] = begin(recording, schedule, fleet, costs, prefill_chunk, e)
        gained[e, 0] = fleet.tokens[e]
        gained[e, 1] = fleet.seconds[e]
        gained[e, 2] = fleet.weight[e]
        gained[e, 4] = fleet.worth[e]
        if alive[e]:
            observe(recording, schedule, fleet, costs, kv_tokens, e, out[e])
