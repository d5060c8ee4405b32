"""Serve recorded requests on several engines, which take turns, and time every request.

A machine's speed changes from one second to the next by more than contenders differ. So none serves to the end before
the next begins: they take short turns, each with an engine of its own, and a contender's clock runs in its own turns
alone. What the machine does then meets all of them alike.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass

from specpilot.envs.live import ServingEngine, recorded_params
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace

TURN_SECONDS = 0.03
"""Of a contender's clock, where requests arrive by it: about a step. The machine's speed changes within a second, and
all contenders shall have had their turn before it does."""
TURNS = 200
"""Of a contender in closed loop, where each turn has as many tokens."""


@dataclass(frozen=True)
class Run:
    """One contender's service of a schedule. Seconds are of its own clock."""

    seconds: float
    """From the first arrival to the last end, prefill included."""
    request_seconds: float
    """From arrival to end, summed over requests."""
    steps: int
    outputs: tuple[tuple[int, ...], ...]
    """Generated tokens, per request of the schedule."""

    @property
    def tokens_per_second(self) -> float:
        """Generated tokens over seconds."""
        return sum(map(len, self.outputs)) / self.seconds


class Service:
    """One contender's service of a schedule (of one engine): in closed loop, or as requests arrive by its clock."""

    def __init__(self, engine: ServingEngine, trace: Trace, schedule: Schedule) -> None:
        self._engine, self._trace, self._schedule = engine, trace, schedule
        self._whole = int(trace.output_tokens[schedule.record[0]].sum())
        self._concurrency, self._count = int(schedule.concurrency[0]), int(schedule.count[0])
        self._names, self._arrival, self._ended = list[str](), list[float](), dict[str, float]()
        self._clock, self._since = 0.0, 0.0
        self._tokens = self._steps = 0
        engine.measure_arrivals(self.now)  # Nobody arrives in the turns of others.

    def now(self) -> float:
        """Seconds of turns so far; to be asked within a turn."""
        return self._clock + self._time() - self._since

    def _time(self) -> float:
        return time.perf_counter() - self._engine.instrument_seconds

    @property
    def is_over(self) -> bool:
        """Every request has ended."""
        return len(self._ended) == self._count

    def turn(self, number: int) -> None:
        """Go on until the end of turn ``number`` (from 1), or of the schedule."""
        self._since = self._time()
        whole = self._whole
        while not self.is_over:
            if (self._tokens >= number * whole / TURNS) if self._concurrency else (self.now() >= number * TURN_SECONDS):
                break
            self._admit()
            if self._engine.has_work:
                self._step()
            else:  # Nobody is there: the clock goes to the next arrival, and nobody has to wait for it.
                self._clock += max(0.0, float(self._schedule.arrival[0, len(self._names)]) - self.now())
        self._clock = self.now()

    def _admit(self) -> None:
        """Add those whose time has come. Raises `TraceError` where the recording holds no prompts."""
        while len(self._names) < self._count:
            place, now = len(self._names), self.now()
            planned = now if self._concurrency else float(self._schedule.arrival[0, place])
            if planned > now or 0 < self._concurrency <= place - len(self._ended):
                return
            self._arrival.append(planned)
            record = int(self._schedule.record[0, place])
            self._names.append(
                self._engine.add_request(self._trace.prompt(record), recorded_params(self._trace, record))
            )

    def _step(self) -> None:
        self._steps += 1
        for chunk in self._engine.step():
            self._tokens += len(chunk.token_ids)
            if chunk.finish_reason is not None:
                self._ended[chunk.request_id] = self.now()

    def run(self) -> Run:
        """What it was; to be called once, when it is over."""
        outputs = tuple(tuple(self._engine.take_result(name).token_ids) for name in self._names)
        latency = sum(self._ended[name] - own for name, own in zip(self._names, self._arrival, strict=True))
        return Run(max(self._ended.values()) - min(self._arrival), latency, self._steps, outputs)


def take_turns(services: Mapping[str, Service]) -> None:
    """Until all are over, each turn in a new order: a contender that runs behind one with the same code finds it in the
    caches and is some percent faster. They must not share an engine."""
    names, number, order = list(services), 0, random.Random(0)
    # A full collection takes a tenth of a second, and would fall to whose controller was loaded from the most objects.
    gc.collect()
    gc.freeze()
    try:
        while not all(own.is_over for own in services.values()):
            number += 1
            order.shuffle(names)
            for name in names:
                services[name].turn(number)
    finally:
        gc.unfreeze()
