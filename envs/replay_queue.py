"""The compiled engine between rounds: who arrives, who is admitted, what is prefilled, until a decision is due.

The rules are those of ``engine/scheduler.py``.
"""

from __future__ import annotations

import numpy as np

from ..controllers.compiled import compiled, interpolate
from ..controllers.cost_table import CHUNK_STEP, CostTable
from .replay_state import Fleet, Recording, Schedule


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
        fleet.held[e, slot] = -1
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
def pass_time(schedule: Schedule, fleet: Fleet, e: int, seconds: float) -> None:
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
        pass_time(schedule, fleet, e, fleet.prefill_seconds[e] + costs.overhead[0])
