"""What a round's requests are like, read from a replayed engine; compiled."""

from __future__ import annotations

import numpy as np

from ..controllers.compiled import compiled
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule


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
def _plus_generated(start: IntArray, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` tokens generated so far, counted from ``start`` ``[N]`` of each slot's recorded request."""
    found = np.empty(len(slots), dtype=np.int64)
    for row in range(len(slots)):
        record = schedule.record[e, fleet.request[e, slots[row]]]
        found[row] = start[record] + fleet.generated[e, slots[row]]
    return found


@compiled
def positions(recording: Recording, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` position in the recording of each slot's request."""
    return _plus_generated(recording.first, schedule, fleet, e, slots)


@compiled
def contexts(recording: Recording, schedule: Schedule, fleet: Fleet, e: int, slots: IntArray) -> IntArray:
    """``[B]`` tokens committed, prompt included."""
    return _plus_generated(recording.prompt, schedule, fleet, e, slots)


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
