"""The benchmark's contenders on vLLM, in turns (`train.turns`), with what the plugin takes."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specpilot.engine import SamplingParams
from specpilot.engine.vllm.engine import VllmEngine
from specpilot.envs.replay_state import Schedule
from specpilot.envs.trace import Trace
from specpilot.train.turns import Run, Service, take_turns

FULL_TOKENS = 24
"""Of each request in `decode_seconds`."""


@dataclass(frozen=True)
class VllmRun(Run):
    """`Run` of a contender."""

    plugin_seconds: float
    """Of all steps: what the plugin took, decisions included; 0 without it."""

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


class VllmService(Service):
    """`Service` by vLLM."""

    def __init__(self, engine: VllmEngine, trace: Trace, schedule: Schedule) -> None:
        super().__init__(engine, trace, schedule)
        self._own, self._plugin_before = engine, engine.plugin_seconds

    def run(self) -> VllmRun:
        """See `Service.run`."""
        taken, run = self._own.plugin_seconds - self._plugin_before, super().run()
        return VllmRun(**vars(run), plugin_seconds=taken)


def serve_in_turns(contenders: Mapping[str, VllmEngine], trace: Trace, schedule: Schedule) -> dict[str, VllmRun]:
    """Every contender serves ``schedule``, with the controller that it has."""
    services = {name: VllmService(own, trace, schedule) for name, own in contenders.items()}
    take_turns(services)
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
