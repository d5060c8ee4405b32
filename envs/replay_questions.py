"""A replayed engine that asks after every drafted token, and rewards each answer by what it changes."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

import numpy as np

from ..controllers.observation import NUM_FEATURES
from ..controllers.round_kernel import history_chances
from .long_run import LongRunPrice, plain_rate
from .rendering import RoundView
from .replay import ReplayEngine
from .replay_kernel import observe
from .replay_requests import positions, whole_drafts
from .replay_round import finish_round
from .replay_state import IntArray, Recording
from .scenario import Scenario
from .stop_round import Settlement, StopQuestion, StopRound
from .traffic import make_schedule

Questions = Generator[StopQuestion, bool, None]
MIN_ROUNDS_OF_REQUEST = 6


class QuestionBackend(Protocol):
    """Where questions come from."""

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> StopQuestion | None:
        """Begin an episode; its first question. ``seeded``: forget what was learnt of prices."""

    def answer(self, go_on: bool) -> tuple[float, StopQuestion | None]:
        """Answer; what the answer is rewarded with, and the next question, None where all is served."""

    def last(self) -> Settlement:
        """After the last question: what the last round came to."""

    def close(self) -> None:
        """Free what is held; may be called again."""


class ReplayQuestions:
    """See `QuestionBackend`."""

    def __init__(self, scenario: Scenario) -> None:
        self.scenario = scenario
        self.costs = scenario.engine.bake(scenario.surface, scenario.trace.max_num_speculative_tokens)
        self.recording = Recording.of(scenario.trace, scenario.predictor)
        self.price = LongRunPrice(len(scenario.fleet.traffic))
        self.number = 0
        self._told = scenario.trace.confidence
        self._features = np.zeros(NUM_FEATURES)

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> StopQuestion | None:
        """See `QuestionBackend.begin`."""
        if seeded:
            self.price.clear()
        several, config = self.scenario.fleet, self.scenario.engine
        self.number = int(rng.integers(len(several.traffic))) if scenario is None else scenario
        traffic = several.traffic[self.number]
        at_once = traffic.concurrency if traffic.mode == "closed" else config.max_num_seqs
        count = at_once * (2 + several.max_rounds // MIN_ROUNDS_OF_REQUEST)
        schedule = make_schedule(self.scenario.trace, traffic, self.costs, config.max_num_seqs, count, rng)
        self.engine = ReplayEngine(self.scenario.trace, self.costs, schedule, config, self.recording)
        self._settled, self._given, self._reward = (0, 0.0), 0.0, 0.0
        self._start_price = self._present = plain_rate(self.costs, at_once)
        self._view: RoundView | None = None
        self._questions = self._serve()
        return next(self._questions, None)

    def answer(self, go_on: bool) -> tuple[float, StopQuestion | None]:
        """See `QuestionBackend.answer`."""
        self._reward = 0.0
        try:
            question = self._questions.send(go_on)
        except StopIteration:
            return self._reward, None
        return self._reward, question

    def last(self) -> Settlement:
        """See `QuestionBackend.last`."""
        assert self._settlement is not None
        return self._settlement

    def close(self) -> None:
        """Nothing is held."""

    # ------------------------------------------------------------------ rounds

    def _serve(self) -> Questions:
        while self.engine.advance():
            yield from self._play()
        self._settlement = self._settle()

    def _play(self) -> Questions:
        """One round: its questions, level by level, then the engine's work."""
        state, slots = self.engine.state()
        fresh = bool((state.max_num_speculative_tokens > 0).any())
        settlement = self._settle() if fresh else None
        self._observe()
        at = positions(self.recording, self.engine.schedule, self.engine.fleet, 0, slots)
        whole = whole_drafts(self.engine.fleet, 0, slots)
        chance = history_chances(self.recording.history_numbers, state.acceptance_rate, whole, state.temperature)[:, 0]
        own = StopRound(self._features, state, chance, self.costs, self._present)
        depth, value = 0, self._value(own, at, slots)
        while len(requests := own.askable(depth)):
            if depth:
                self._tell(own, requests, at[requests], depth)
            for request in requests.tolist():
                go_on = yield StopQuestion(own.observation(request), settlement)
                settlement = None
                own.answer(request, bool(go_on))
                before, value = value, self._value(own, at, slots)
                self._reward += value - before
                self._given += value - before
            depth += 1
        self._finish(own, slots)

    def _tell(self, own: StopRound, requests: IntArray, at: IntArray, depth: int) -> None:
        recording, unknown = self.recording, np.zeros((len(requests), 4))
        told = unknown if self._told is None else self._told[at, depth - 1]
        own.tell(requests, recording.chance[at, depth - 1], recording.following[at, depth - 1], told)

    def _value(self, own: StopRound, at: IntArray, slots: IntArray) -> float:
        """Tokens of the round as answered so far, less the price of its seconds."""
        fleet, schedule = self.engine.fleet, self.engine.schedule
        left = schedule.length[0, fleet.request[0, slots]] - fleet.generated[0, slots]
        tokens = np.minimum(np.minimum(own.drafted, self.recording.accepted[at]) + 1, left).sum()
        return float(tokens) - self._present * own.seconds()

    def _finish(self, own: StopRound, slots: IntArray) -> None:
        engine, drafted = self.engine, own.drafted
        accepted, _, _ = finish_round(
            self.recording,
            engine.schedule,
            engine.fleet,
            self.costs,
            0,
            slots,
            own.lengths,
            drafted,
            drafted,
            own.asked_levels,
            own.asked,
            False,
            True,
            1.0,
        )
        longest, state = int(drafted.max()), own.state
        total, kept = int(drafted.sum()), int(accepted.sum())
        self._view = RoundView(len(slots), longest, total, kept, state.running, state.waiting)

    def _settle(self) -> Settlement | None:
        """Reward the rest of the round that has ended, and set the price for the next; None before the first."""
        fleet = self.engine.fleet
        total = int(fleet.tokens[0]), float(fleet.seconds[0])
        tokens, seconds = total[0] - self._settled[0], total[1] - self._settled[1]
        self._settled = total
        settlement = None
        if self._view is not None:
            settlement = Settlement(tokens, seconds, self._present, self._view)
            self._reward += settlement.value - self._given
            self.price.enter(self.number, tokens, seconds)
        self._given = 0.0
        self._present = self.price.of(self.number, self._start_price)
        return settlement

    def _observe(self) -> None:
        engine = self.engine
        kv_tokens = engine.config.max_num_seqs * engine.config.max_model_len
        observe(self.recording, engine.schedule, engine.fleet, self.costs, kv_tokens, 0, self._features)
