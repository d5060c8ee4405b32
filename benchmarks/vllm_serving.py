"""Serve recorded requests on engines in turn and time every request."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from specpilot.controllers import Controller
from specpilot.engine import SamplingParams
from specpilot.engine.vllm.engine import VllmEngine
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace

WARM_UP_TOKENS = 24


@dataclass(frozen=True)
class Run:
    """One contender's service of a schedule."""

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


def serve(contender: Contender, trace: Trace, schedule: Schedule) -> Run:
    """Serve ``schedule`` (of one engine) to its end: in closed loop, or as its requests arrive by the clock."""
    engine = contender.engine
    if contender.make is not None:
        engine.controller = contender.make()
    before, steps = _plugin_seconds(engine), 0
    concurrency, count = int(schedule.concurrency[0]), int(schedule.count[0])
    arrival, ended, names, running = [0.0] * count, dict[str, float](), list[str](), 0
    start = time.perf_counter()
    while len(names) < count or engine.has_work:
        now = time.perf_counter() - start
        while len(names) < count and (running < concurrency if concurrency else schedule.arrival[0, len(names)] <= now):
            arrival[len(names)] = now if concurrency else float(schedule.arrival[0, len(names)])
            names.append(_add(engine, trace, int(schedule.record[0, len(names)])))
            running += 1
        if not engine.has_work:
            time.sleep(max(0.0, float(schedule.arrival[0, len(names)]) - (time.perf_counter() - start)))
            continue
        steps += 1
        for chunk in engine.step():
            if chunk.finish_reason is not None:
                running -= 1
                ended[chunk.request_id] = time.perf_counter() - start
    outputs = tuple(tuple(engine.take_result(name).token_ids) for name in names)
    latency = sum(ended[name] - own for name, own in zip(names, arrival, strict=True))
    seconds = max(ended.values()) - min(arrival)
    return Run(seconds, latency, steps, _plugin_seconds(engine) - before, outputs)


def warm_up(engines: Sequence[VllmEngine], trace: Trace) -> None:
    """A first batch for each engine, of all that it will hold."""
    for engine in engines:
        for record in range(min(engine.config.max_num_seqs, len(trace))):
            engine.add_request(trace.prompt(record), SamplingParams(max_tokens=WARM_UP_TOKENS, ignore_eos=True))
        finished = list[str]()
        while engine.has_work:
            finished += [chunk.request_id for chunk in engine.step() if chunk.finish_reason is not None]
        for name in finished:
            engine.take_result(name)


def _add(engine: VllmEngine, trace: Trace, record: int) -> str:
    params = SamplingParams(temperature=0.0, max_tokens=int(trace.token_limit[record]))
    return engine.add_request(trace.prompt(record), params)


def _plugin_seconds(engine: VllmEngine) -> float:
    counts: Any = getattr(getattr(engine.scheduler, "steering", None), "counts", None)
    return 0.0 if counts is None else float(counts.seconds)
