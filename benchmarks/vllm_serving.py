"""Serve recorded requests on several engines, which take turns, and time every request.

A machine's speed changes from one minute to the next by more than the contenders differ. So none serves to the end
before the next begins: they take short turns, each with an engine of its own, and a contender's clock runs in its own
turns alone. What the machine does then meets all of them alike.
"""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from specpilot.controllers import Controller
from specpilot.engine import SamplingParams
from specpilot.engine.vllm.engine import VllmEngine
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace

FULL_TOKENS = 24
"""Of each request in `decode_seconds`."""
TURN_SECONDS = 0.25
"""Of a contender's clock, where requests arrive by it: long against a step, short against the machine's changes."""
TURNS = 24
"""Of a contender in closed loop, where each turn has as many tokens."""


@dataclass(frozen=True)
class Run:
    """One contender's service of a schedule. Seconds are of its own clock."""

    seconds: float
    """From the first arrival to the last end."""
    request_seconds: float
    """From arrival to end, summed over requests."""
    steps: int
    plugin_seconds: float
    """Of all steps: what the plugin took, decisions included; 0 without it."""
    outputs: tuple[tuple[int, ...], ...]
    """Generated tokens, per request of the schedule."""

    def document(self) -> dict[str, Any]:
        """As it is stored; ``texts`` is the same where the outputs are."""
        return {
            "tokens": sum(map(len, self.outputs)),
            "seconds": self.seconds,
            "request_seconds": self.request_seconds,
            "steps": self.steps,
            "plugin_seconds": self.plugin_seconds,
            "texts": hashlib.sha256(repr(self.outputs).encode()).hexdigest()[:16],
        }


@dataclass(frozen=True)
class Contender:
    """An engine, and what decides in it."""

    engine: VllmEngine
    make: Callable[[], Controller] | None = None
    """None: nothing of ours; vLLM does what it was started with."""


class Service:
    """One contender's service of a schedule (of one engine): in closed loop, or as requests arrive by its clock."""

    def __init__(self, contender: Contender, trace: Trace, schedule: Schedule) -> None:
        self._engine, self._trace, self._schedule = contender.engine, trace, schedule
        self._concurrency, self._count = int(schedule.concurrency[0]), int(schedule.count[0])
        self._names, self._arrival, self._ended = list[str](), list[float](), dict[str, float]()
        self._clock, self._since = 0.0, 0.0
        self._tokens = self._steps = 0
        if contender.make is not None:
            self._engine.controller = contender.make()
            self._engine.steering.measure_arrivals(self.now)
        self._plugin_before = _plugin_seconds(self._engine)

    def now(self) -> float:
        """Seconds of turns so far; to be asked within a turn."""
        return self._clock + time.perf_counter() - self._since

    @property
    def is_over(self) -> bool:
        """Every request has ended."""
        return len(self._ended) == self._count

    def turn(self, number: int) -> None:
        """Go on until the end of turn ``number`` (from 1), or of the schedule."""
        self._since = time.perf_counter()
        whole = int(self._schedule.length.sum())
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
        """Add those whose time has come."""
        while len(self._names) < self._count:
            place, now = len(self._names), self.now()
            planned = now if self._concurrency else float(self._schedule.arrival[0, place])
            if planned > now or 0 < self._concurrency <= place - len(self._ended):
                return
            self._arrival.append(planned)
            self._names.append(_add(self._engine, self._trace, int(self._schedule.record[0, place])))

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
        seconds = max(self._ended.values()) - min(self._arrival)
        return Run(seconds, latency, self._steps, _plugin_seconds(self._engine) - self._plugin_before, outputs)


def serve_in_turns(contenders: Mapping[str, Contender], trace: Trace, schedule: Schedule) -> dict[str, Run]:
    """Every contender serves ``schedule``; each turn another one goes first. They must not share an engine."""
    services = {name: Service(own, trace, schedule) for name, own in contenders.items()}
    names, number = list(services), 0
    while not all(own.is_over for own in services.values()):
        first = number % len(names)
        number += 1
        for name in names[first:] + names[:first]:
            services[name].turn(number)
    return {name: own.run() for name, own in services.items()}


def decode_seconds(engine: VllmEngine, trace: Trace) -> tuple[float, float]:
    """Median seconds of a step in which all slots decode, and the mean context in tokens that they have."""
    slots = min(engine.config.max_num_seqs, len(trace))
    for record in range(slots):
        engine.add_request(trace.prompt(record), SamplingParams(max_tokens=FULL_TOKENS, ignore_eos=True))
    finished, seconds = list[str](), list[float]()
    while engine.has_work:
        start = time.perf_counter()
        chunks = engine.step()
        if len(chunks) == slots:
            seconds.append(time.perf_counter() - start)
        finished += [chunk.request_id for chunk in chunks if chunk.finish_reason is not None]
    for name in finished:
        engine.take_result(name)
    return statistics.median(seconds), float(trace.prompt_tokens[:slots].mean()) + FULL_TOKENS / 2


def _add(engine: VllmEngine, trace: Trace, record: int) -> str:
    params = SamplingParams(temperature=0.0, max_tokens=int(trace.token_limit[record]))
    return engine.add_request(trace.prompt(record), params)


def _plugin_seconds(engine: VllmEngine) -> float:
    counts: Any = getattr(getattr(engine.scheduler, "steering", None), "counts", None)
    return 0.0 if counts is None else float(counts.seconds)
