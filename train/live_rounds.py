"""Live rounds of an engine, each with what it did, what the cost surface says of its passes, and what it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from specpilot.controllers import KINDS, Controller, CostSurface, Decision, DraftLevel, RoundOutcome, RoundState
from specpilot.controllers.controller import FloatArray, IntArray, Looks
from specpilot.controllers.round_overhead import NO_OVERHEAD, RoundWork, idleness, padding
from specpilot.engine import Engine
from specpilot.train.overhead_fit import MeasuredRounds

REFERENCE_PASSES = (("draft", 1, 1, 64), ("draft", 8, 1, 64), ("verify", 1, 3, 64), ("verify", 8, 3, 64))
REFERENCE_REPEATS = 5


class LiveRound(NamedTuple):
    """One round."""

    work: RoundWork
    """Numbers."""
    passes: tuple[float, ...]
    """``[4]`` seconds by the cost surface without overhead, in the order of `KINDS`."""
    phases: tuple[float, ...]
    """``[4]`` seconds as measured, in the same order, with what goes on around the passes."""
    seconds: float
    """As measured, of the whole step."""
    deciding: float = 0.0
    """As measured, of the controller's `decide` and `observe`, and of asking it in between."""


class WatchedController(Controller):
    """Does what ``inner`` does, and notes what it is told and asked, and how long it decides and observes."""

    state: RoundState

    def __init__(self, inner: Controller) -> None:
        self.inner = inner
        self._follow()
        self.num_asked_levels, self.num_asked, self.seconds = 0, 0, 0.0

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        self.state = state
        self.num_asked_levels, self.num_asked = 0, 0
        start = time.perf_counter()
        decision = self.inner.decide(state)
        self.seconds = time.perf_counter() - start
        self._follow()
        return decision if decision.looks is None else replace(decision, looks=WatchedLooks(self, decision.looks))

    def _follow(self) -> None:
        self.asked_levels, self.trims = self.inner.asked_levels, self.inner.trims
        self.plans, self.level_features = self.inner.plans, self.inner.level_features

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        self.num_asked_levels += 1
        self.num_asked += len(level.requests)
        return self.inner.new_lengths(level)

    def verify_lengths(self, num_drafted: IntArray) -> IntArray:
        """See `Controller.verify_lengths`."""
        return self.inner.verify_lengths(num_drafted)

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        start = time.perf_counter()
        self.inner.observe(outcome)
        self.seconds += time.perf_counter() - start


class WatchedLooks:
    """Answers as ``inner`` does, and lets its controller note what it is asked."""

    def __init__(self, watch: WatchedController, inner: Looks) -> None:
        self._watch, self._inner = watch, inner
        self.levels, self.trims = inner.levels, inner.trims

    def after(self, depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> IntArray:
        """See `Looks.after`."""
        self._watch.num_asked_levels += 1
        self._watch.num_asked += len(requests)
        lengths = self._inner.after(depth, requests, margin, agreement)
        self.trims = self._inner.trims
        return lengths

    def verified(self, num_drafted: IntArray) -> IntArray:
        """See `Looks.verified`."""
        return self._inner.verified(num_drafted)


class RoundMeter:
    """Steps an engine and measures the rounds. The engine's controller is replaced."""

    def __init__(self, engine: Engine, surface: CostSurface) -> None:
        """``surface``: without overhead, of this engine."""
        self.engine = engine
        self.surface = surface

    def step(self, controller: WatchedController) -> LiveRound | None:
        """One step of the engine under ``controller``; None if no request decoded in it."""
        prefill = self._prefill_seconds()
        self.engine.controller = controller
        start = time.perf_counter()
        self.engine.step()
        seconds = time.perf_counter() - start
        record = self.engine.stats.rounds[-1]
        if not record.request_ids:
            return None
        state = controller.state
        drafted, verified = np.asarray(record.num_drafted), np.asarray(record.num_verified)
        passes = self.surface.round_cost(drafted, state.context_length, state.lag, verified)
        own = {**passes._asdict(), "prefill": prefill}
        work = RoundWork(
            requests=len(drafted),
            levels=int(drafted.max()),
            drafted=int(drafted.sum()),
            verified=int(verified.sum()),
            asked_levels=controller.num_asked_levels,
            asked=controller.num_asked,
            noise_rows=int((drafted + 1)[state.temperature > 0].sum()),
            planned=int(controller.plans),
            padded=int(padding(verified)),
            idle=int(idleness(drafted)),
        )
        phases = tuple(float(getattr(record, f"{kind}_seconds")) for kind in KINDS)
        deciding = controller.seconds + record.asking_seconds
        return LiveRound(work, tuple(float(own[kind]) for kind in KINDS), phases, seconds, deciding)

    def slowness(self, kind: str, batch: int, tokens: int, context: int) -> float:
        """The seconds of a pass now, over those when the surface was measured; the engine must be idle."""
        profiler = self.engine.profiler()
        times = [profiler.time_pass(kind, batch, tokens, context) for _ in range(REFERENCE_REPEATS)]
        return float(np.median(times)) / float(self.surface.seconds(kind, batch, tokens, context))

    def machine_slowness(self) -> float:
        """The mean `slowness` of a few draft and verify passes, always the same."""
        kinds, slots = self.engine.profiler().kinds, self.engine.cache.num_slots
        passes = [own for own in REFERENCE_PASSES if own[0] in kinds]
        return float(np.mean([self.slowness(own, min(size, slots), *rest) for own, size, *rest in passes]))

    def _prefill_seconds(self) -> float:
        """What the surface says of the prefill that the next step will do."""
        scheduler = self.engine.scheduler
        free = scheduler.num_slots - len(scheduler.running)
        budget, tokens, contexts = scheduler.prefill_chunk, list[int](), list[int]()
        for request in [*scheduler.running, *list(scheduler.waiting)[:free]]:
            count = min(budget, request.num_prompt_tokens - 1 - request.num_cached)
            if count > 0:
                tokens.append(count)
                contexts.append(request.num_cached)
                budget -= count
        if not tokens:
            return 0.0
        return float(self.surface.seconds("prefill", float(len(tokens)), float(np.mean(tokens)), float(max(contexts))))


def as_measured(rounds: Sequence[LiveRound], seconds: Sequence[float] | None = None) -> MeasuredRounds:
    """Rounds as the fit takes them; ``seconds`` ``[N]`` instead of their own."""
    work = np.asarray([own.work for own in rounds], dtype=np.float64).reshape(-1, len(RoundWork._fields))
    passes = np.asarray([own.passes for own in rounds], dtype=np.float64).reshape(-1, len(KINDS))
    times = [own.seconds for own in rounds] if seconds is None else seconds
    return MeasuredRounds(RoundWork(*work.T), passes, np.asarray(times, dtype=np.float64))


def bare(surface: CostSurface) -> CostSurface:
    """The surface of the passes alone."""
    return replace(surface, overhead=NO_OVERHEAD)
