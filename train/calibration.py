"""Find what live rounds cost beyond their passes: serve random loads with a random controller, fit the overhead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from specpilot.controllers import KINDS, Controller, CostSurface, Decision, DraftLevel, RoundState
from specpilot.controllers.round_overhead import NO_OVERHEAD, RoundOverhead, RoundWork
from specpilot.engine import Engine, SamplingParams
from specpilot.engine.request import Phase
from specpilot.train.overhead_fit import MeasuredRounds, fit_overhead, fit_report

EPISODE_ROUNDS = 25
REFERENCE_PASS = ("verify", 8, 3, 64)
REFERENCE_REPEATS = 9
TEMPERATURES = (0.0, 0.6, 1.0)


@dataclass(frozen=True)
class Calibration:
    """The fitted overhead and how well it predicts."""

    overhead: RoundOverhead
    report: dict[str, Any]
    """Errors on episodes that were left out of a first fit (``held_out``), and the drift of the machine."""


class RandomLoads(Controller):
    """Random lengths, uniform or per request; stops and trims at random where its episode does; counts what it asks."""

    def __init__(self, rng: np.random.Generator, max_length: int) -> None:
        self._rng = rng
        self._max_length = max_length
        self.next_episode()

    def next_episode(self) -> None:
        """Draw a new way to behave."""
        self.asks_every_level = bool(self._rng.random() < 0.4)
        self.trims = bool(self._rng.random() < 0.3)
        self._stop_probability = float(self._rng.choice([0.0, 0.1, 0.3]))
        self._fixed = int(self._rng.integers(0, self._max_length + 1)) if self._rng.random() < 0.5 else None
        self._off_share = float(self._rng.choice([0.0, 0.0, 0.5]))

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        count = len(state.request_ids)
        lengths = np.full(count, self._fixed if self._fixed is not None else 0, dtype=np.int64)
        if self._fixed is None:
            lengths = self._rng.integers(0, self._max_length + 1, size=count)
            lengths[self._rng.random(count) < self._off_share] = 0
        self.state, self.lengths = state, np.minimum(lengths, state.max_num_speculative_tokens)
        self.asked_levels, self.asked = 0, 0
        return Decision(lengths)

    def keep_drafting(self, level: DraftLevel) -> NDArray[np.bool_]:
        """See `Controller.keep_drafting`."""
        self.asked_levels += 1
        self.asked += len(level.requests)
        keep: NDArray[np.bool_] = self._rng.random(len(level.requests)) >= self._stop_probability
        return keep

    def verify_lengths(self, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
        """See `Controller.verify_lengths`."""
        kept: NDArray[np.int64] = np.maximum(num_drafted - self._rng.integers(0, 3, size=len(num_drafted)), 0)
        return kept


def calibrate(
    engine: Engine,
    surface: CostSurface,
    prompts: Sequence[Sequence[int]],
    seed: int,
    num_rounds: int = 1500,
    progress: bool = False,
) -> Calibration:
    """Serve about ``num_rounds`` rounds on an idle ``engine`` and fit what ``surface`` leaves out.

    Episodes of a few rounds draw their batch (1 to the engine's slots, requests coming and going), temperatures and the
    controller's ways. The machine's speed drifts, so a reference pass is timed between episodes and the rounds' seconds
    are divided by its ratio to the surface's. ``engine``'s controller is replaced.
    """
    run = _LoadRun(engine, replace(surface, overhead=NO_OVERHEAD), prompts, seed)
    with tqdm(total=num_rounds, desc="calibration", disable=not progress, mininterval=2) as bar:
        while len(run.rows) < num_rounds:
            run.episode()
            bar.update(min(num_rounds, len(run.rows)) - bar.n)
    rounds, even = run.rounds(), np.asarray(run.episodes) % 2 == 0
    overhead = fit_overhead(rounds)
    report = {
        "overhead": overhead.document(),
        "held_out": fit_report(rounds.select(~even), fit_overhead(rounds.select(even))),
        "without_overhead": fit_report(rounds.select(~even), NO_OVERHEAD),
        "speed_ratio": {"least": float(min(run.ratios)), "largest": float(max(run.ratios))},
    }
    return Calibration(overhead, report)


class _LoadRun:
    """Episodes of load on one engine, and a row of numbers for every round."""

    def __init__(self, engine: Engine, surface: CostSurface, prompts: Sequence[Sequence[int]], seed: int) -> None:
        self.engine = engine
        self.surface = surface
        self.prompts = prompts
        self.rng = np.random.default_rng((seed, 5))
        self.controller = RandomLoads(self.rng, engine.config.max_num_speculative_tokens)
        engine.controller = self.controller
        self.rows: list[list[Any]] = []
        """Counts of `RoundWork`, seconds of `KINDS` by the surface, seconds measured."""
        self.episodes: list[int] = []
        """Number of each row's episode."""
        self.ratios = [self._reference()]

    def rounds(self) -> MeasuredRounds:
        """All rows, as they can be fitted."""
        table, counts = np.asarray(self.rows), len(RoundWork._fields)
        return MeasuredRounds(RoundWork(*table[:, :counts].T), table[:, counts:-1], table[:, -1])

    def episode(self) -> None:
        """Serve for some rounds, then cancel what is left and time the reference pass."""
        number, first = len(self.ratios), len(self.rows)
        batch = int(2 ** self.rng.uniform(0, np.log2(self.engine.config.max_num_seqs + 0.999)))
        temperatures = TEMPERATURES if self.rng.random() < 0.4 else (float(self.rng.choice(TEMPERATURES)),)
        self.controller.next_episode()
        names = [self._add(temperatures) for _ in range(batch)]
        for _ in range(EPISODE_ROUNDS):
            if len(self.engine.scheduler.running) < batch and self.rng.random() < 0.5:
                names.append(self._add(temperatures))
            if self.engine.has_work:
                self._step()
        for name in names:
            self.engine.cancel(name)
        while self.engine.has_work:
            self.engine.step()
        for name in names:
            self.engine.take_result(name)
        self.ratios.append(self._reference())
        speed = (self.ratios[-2] + self.ratios[-1]) / 2
        for row in self.rows[first:]:
            row[-1] /= speed
        self.episodes += [number] * (len(self.rows) - first)

    def _add(self, temperatures: Sequence[float]) -> str:
        prompt = self.prompts[int(self.rng.integers(len(self.prompts)))]
        params = SamplingParams(
            temperature=float(self.rng.choice(temperatures)),
            seed=int(self.rng.integers(2**62)),
            max_tokens=int(self.rng.integers(24, 129)),
        )
        return self.engine.add_request(prompt, params)

    def _step(self) -> None:
        """One step of the engine; a row if requests decoded in it."""
        prefill = self._prefill_seconds()
        self.engine.step()
        record = self.engine.stats.rounds[-1]
        if not record.request_ids:
            return
        own = self.controller
        drafted, verified = np.asarray(record.num_drafted), np.asarray(record.num_verified)
        passes = self.surface.round_cost(drafted, own.state.context_length, own.state.lag, verified)
        seconds = {**passes._asdict(), "prefill": prefill}
        work = RoundWork(
            requests=len(drafted),
            levels=int(drafted.max()),
            drafted=int(drafted.sum()),
            verified=int(verified.sum()),
            asked_levels=own.asked_levels,
            asked=own.asked,
            noise_rows=int((drafted + 1)[own.state.temperature > 0].sum()),
        )
        self.rows.append([*work, *(seconds[kind] for kind in KINDS), record.total_seconds])

    def _prefill_seconds(self) -> float:
        """What the surface says of the prefill that the next step will do."""
        scheduler = self.engine.scheduler
        free = scheduler.num_slots - len(scheduler.running)
        waiting = list(scheduler.waiting)[:free]
        behind = [request for request in scheduler.running if request.phase is Phase.PREFILL] + waiting
        budget, tokens, contexts = scheduler.prefill_chunk, list[int](), list[int]()
        for request in behind:
            count = min(budget, request.num_prompt_tokens - 1 - request.num_cached)
            if count > 0:
                tokens.append(count)
                contexts.append(request.num_cached)
                budget -= count
        if not tokens:
            return 0.0
        return self.surface.seconds("prefill", float(len(tokens)), float(np.mean(tokens)), float(max(contexts)))

    def _reference(self) -> float:
        """The machine's slowness now, over that when the surface was measured."""
        kind, batch, tokens, context = REFERENCE_PASS
        batch = min(batch, self.engine.cache.num_slots)
        profiler = self.engine.profiler()
        times = [profiler.time_pass(kind, batch, tokens, context) for _ in range(REFERENCE_REPEATS)]
        return float(np.median(times)) / self.surface.seconds(kind, batch, tokens, context)
