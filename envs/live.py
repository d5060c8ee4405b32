"""The real pair under an environment: recorded requests served by an engine, in a thread that asks for decisions."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from ..controllers import ConstantController, Controller, RoundOutcome
from ..controllers.cost_table import CostTable
from ..engine import (
    SHIPPED_PAIR,
    Engine,
    EngineConfig,
    RequestOutput,
    SamplingParams,
    StreamChunk,
    load_pair,
)
from .inversion import Inversion
from .rendering import RoundView
from .replay_state import Schedule, token_weights
from .scenario import Scenario, ScenarioError
from .trace import Trace, TraceError
from .traffic import make_schedule

Q = TypeVar("Q")
A = TypeVar("A")
MIN_ROUNDS_OF_REQUEST = 6


class Gained(NamedTuple):
    """What the engine gained between two decisions."""

    tokens: int
    """Committed."""
    worth: float
    """The same, each times its request's `Recording.weight`."""
    seconds: float
    """With requests in the system."""
    request_seconds: float
    """Requests in the system, integrated over time."""
    requests: int
    """That decoded in the last round."""
    drafted: int
    """Tokens, in the last round."""
    accepted: int
    """Of these."""
    longest: int
    """Draft of the last round, tokens."""


class ServingEngine(Protocol):
    """What is used of an engine: the embedded `Engine` has it, and `VllmEngine`."""

    controller: Controller
    scheduler: Any
    """With ``running`` and ``waiting`` of a length."""

    @property
    def has_work(self) -> bool:
        """See `Engine.has_work`."""

    @property
    def instrument_seconds(self) -> float:
        """Of all steps so far: what serves measurements alone."""

    def add_request(self, prompt: Sequence[int], params: SamplingParams | None = None, /) -> str:
        """See `Engine.add_request`."""

    def cancel(self, request_id: str, /) -> bool:
        """See `Engine.cancel`."""

    def take_result(self, request_id: str, /) -> RequestOutput:
        """See `Engine.take_result`."""

    def step(self) -> list[StreamChunk]:
        """See `Engine.step`."""

    def measure_arrivals(self, clock: Callable[[], float], /) -> None:
        """See `Engine.measure_arrivals`."""


def drop_requests(engine: ServingEngine, names: Sequence[str]) -> None:
    """Cancel these requests and forget their results; the engine is idle afterwards if it had no others."""
    for name in names:
        engine.cancel(name)
    while engine.has_work:
        engine.step()
    for name in names:
        engine.take_result(name)


class LiveEpisode:
    """Feeds a schedule to an engine and steps it. Its clock stands still while a decision is waited for."""

    def __init__(self, engine: ServingEngine, trace: Trace, schedule: Schedule) -> None:
        """``schedule``: of one engine."""
        self.engine, self.trace, self.schedule = engine, trace, schedule
        self.texts = dict[int, tuple[int, ...]]()
        """Tokens of each request that ended, by its number in the schedule."""
        self._names = dict[str, int]()
        self._submitted = 0
        self._held = 0.0
        self._start = self._last = time.perf_counter()
        self._seconds = self._weight = 0.0
        self._tokens, self._worth = 0, 0.0
        self._weights = token_weights(trace)
        self._round = (0, 0, 0, 0)

    # ------------------------------------------------------------------ the worker's side

    def run(self, wait: Callable[[float], None]) -> None:
        """Serve the schedule to its end; ``wait`` sleeps."""
        self._start = self._last = time.perf_counter()
        while True:
            self._submit()
            if self._names:
                for chunk in self.engine.step():
                    record = self.schedule.record[0, self._names[chunk.request_id]]
                    self._worth += len(chunk.token_ids) * float(self._weights[record])
                    if chunk.finish_reason is not None:
                        self._end(chunk.request_id)
            elif self._submitted == self.schedule.count[0]:
                return
            else:
                wait(max(float(self.schedule.arrival[0, self._submitted]) - self._now(), 0.0))

    def observe(self, outcome: RoundOutcome) -> None:
        """Enter a round."""
        self._tokens += int(outcome.num_committed.sum())
        drafted, accepted = int(outcome.num_drafted.sum()), int(outcome.accepted_length.sum())
        self._round = len(outcome.num_drafted), drafted, accepted, int(outcome.num_drafted.max())

    def take(self) -> Gained:
        """What was gained since this was last called."""
        self._pass_time()
        gained = Gained(self._tokens, self._worth, self._seconds, self._weight, *self._round)
        self._tokens, self._worth, self._seconds, self._weight = 0, 0.0, 0.0, 0.0
        return gained

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Stop the clock."""
        start = time.perf_counter()
        yield
        self._held += time.perf_counter() - start

    def _now(self) -> float:
        """Seconds since the start, without those held."""
        return time.perf_counter() - self._start - self._held

    def _pass_time(self) -> None:
        """Note the time since this was last called with the requests that were in the system."""
        now = self._now()
        elapsed = now - self._last if self._names else 0.0
        self._seconds += elapsed
        self._weight += elapsed * len(self._names)
        self._last = now

    def _submit(self) -> None:
        """Hand over the requests that are due."""
        schedule = self.schedule
        together = int(schedule.concurrency[0])
        while self._submitted < schedule.count[0]:
            due = len(self._names) < together if together else schedule.arrival[0, self._submitted] <= self._now()
            if not due:
                return
            self._pass_time()
            self._names[self.engine.add_request(*self._request(self._submitted))] = self._submitted
            self._submitted += 1

    def _request(self, number: int) -> tuple[list[int], SamplingParams]:
        record = int(self.schedule.record[0, number])
        return self.trace.prompt(record), recorded_params(self.trace, record)

    def _end(self, name: str) -> None:
        self._pass_time()
        self.texts[self._names.pop(name)] = self.engine.take_result(name).token_ids

    # ------------------------------------------------------------------ afterwards

    def clear(self) -> None:
        """Drop what is left in the engine; the worker has ended."""
        self.engine.controller = ConstantController(0)
        drop_requests(self.engine, list(self._names))
        self._names.clear()


def recorded_params(trace: Trace, record: int) -> SamplingParams:
    """With which recorded request ``record`` has its text again. Raises `TraceError` where one that samples has no
    seed."""
    temperature = round(float(trace.temperature[record]), 6)  # float32 in the recording
    if temperature > 0 and trace.seed is None:
        raise TraceError("this recording holds no seeds; record with train/record.py to serve it live")
    seed = None if trace.seed is None else int(trace.seed[record])
    return SamplingParams(temperature=temperature, seed=seed, max_tokens=int(trace.token_limit[record]))


def build_engine(backend: str, target: str | Path, drafter: str | Path, config: EngineConfig) -> ServingEngine:
    """The embedded engine (``live``), or vLLM in this process (``vllm``), of which ``config`` names the sizes.

    Raises `PairError` where the pair cannot be loaded, `VllmEngineError` where vLLM is not installed.
    """
    if backend == "live":
        return Engine(load_pair(target, drafter), config)
    from ..engine.vllm.engine import VllmEngine, VllmEngineConfig

    own = VllmEngineConfig(
        target=str(target),
        drafter=str(drafter),
        max_num_seqs=config.max_num_seqs,
        max_model_len=config.max_model_len or 1024,
        prefill_chunk=config.prefill_chunk,
        max_num_speculative_tokens=config.max_num_speculative_tokens,
    )
    return VllmEngine(own, ConstantController(0))


class LiveServer:
    """One engine, and the episode that it serves."""

    def __init__(
        self, scenario: Scenario, target: str | Path | None, drafter: str | Path | None, backend: str = "live"
    ) -> None:
        """``target`` and ``drafter``: directories; None: the shipped pair's. ``backend``: ``live`` or ``vllm``.

        Raises `ScenarioError` where the recording cannot be served, `PairError` where the pair cannot be loaded,
        `VllmEngineError` where vLLM is not installed.
        """
        trace, config = scenario.trace, scenario.engine
        if trace.prompt_token_ids is None or trace.seed is None:
            raise ScenarioError("this recording lacks prompts or seeds; record with train/record.py to serve it live")
        self.engine = build_engine(
            backend,
            target or SHIPPED_PAIR / "target",
            drafter or SHIPPED_PAIR / "drafter",
            EngineConfig(
                max_num_seqs=config.max_num_seqs,
                max_model_len=config.max_model_len,
                prefill_chunk=config.prefill_chunk,
                max_num_speculative_tokens=trace.max_num_speculative_tokens,
            ),
        )
        self.scenario = scenario
        self.costs: CostTable = config.bake(scenario.surface, trace.max_num_speculative_tokens)
        self.number = 0
        """Of the traffic that is served."""
        self._stop: Callable[[], None] | None = None

    def begin(
        self,
        rng: np.random.Generator,
        number: int | None,
        controller: Callable[[LiveEpisode, Inversion[Q, A]], Controller],
    ) -> tuple[LiveEpisode, Inversion[Q, A]]:
        """End the running episode and prepare one; ``controller`` makes who decides in it, by asking."""
        self.close()
        several = self.scenario.fleet.traffic
        self.number = int(rng.integers(len(several))) if number is None else number
        episode = LiveEpisode(self.engine, self.scenario.trace, self._schedule(rng))

        def work(inversion: Inversion[Q, A]) -> None:
            self.engine.controller = controller(episode, inversion)
            episode.run(inversion.wait)

        inversion = Inversion[Q, A](work)

        def stop() -> None:
            inversion.stop()
            episode.clear()

        self._stop = stop
        return episode, inversion

    def _schedule(self, rng: np.random.Generator) -> Schedule:
        """Enough requests for an episode, as in `ReplayFleet`."""
        traffic, slots = self.scenario.fleet.traffic[self.number], self.scenario.engine.max_num_seqs
        at_once = traffic.concurrency if traffic.mode == "closed" else slots
        count = at_once * (2 + self.scenario.fleet.max_rounds // MIN_ROUNDS_OF_REQUEST)
        return make_schedule(self.scenario.trace, traffic, self.costs, slots, count, rng)

    def view(self, gained: Gained, longest: int) -> RoundView:
        """The last round as it is shown."""
        scheduler = self.engine.scheduler
        running, waiting = len(scheduler.running), len(scheduler.waiting)
        return RoundView(gained.requests, longest, gained.drafted, gained.accepted, running, waiting)

    def close(self) -> None:
        """End the running episode; may be called again."""
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()
