"""The real pair, asked after every drafted token; the reward comes at the round's end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..controllers import (
    LEVEL_FEATURES,
    Action,
    Decision,
    DraftLevel,
    FixedPolicy,
    PricedController,
    RoundOutcome,
    RoundState,
)
from ..controllers.controller import EVERY_LEVEL, IntArray
from ..controllers.priced import feature_array
from .inversion import Inversion
from .live import LiveEpisode, LiveServer
from .long_run import LongRunPrice, plain_rate
from .scenario import Scenario
from .stop_round import Settlement, StopQuestion, StopRound


class QuestionController(PricedController):
    """Asks for every request and level; keeps features and history as the price rule's controller does."""

    def __init__(self, scenario: Scenario, ask: Callable[[StopRound, int], bool], price: Callable[[], float]) -> None:
        """``ask``: whether a request drafts another token; ``price``: tokens per second, read in every round."""
        engine = scenario.engine
        super().__init__(
            FixedPolicy(Action(0, 1.0)),
            scenario.predictor,
            scenario.surface,
            scenario.trace.max_num_speculative_tokens,
            engine.max_num_seqs,
            engine.max_model_len,
        )
        self.level_features = LEVEL_FEATURES
        self.asked_levels = EVERY_LEVEL
        self._answer, self._price = ask, price

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        super().decide(state)
        self.asked_levels = EVERY_LEVEL
        able = (state.max_num_speculative_tokens > 0).any()
        price = self._price() if able else 0.0
        chance = self.predictor.history.of_state(state)[:, 0]
        self.round = StopRound(feature_array(self), state, chance, self.costs, price)
        self._put(0)
        self._longest_length = int(self.round.lengths.max())
        return Decision(self.round.lengths)

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """See `Controller.new_lengths`."""
        requests, own = level.requests, self.round
        told = np.stack([np.asarray(getattr(level, name), dtype=np.float64) for name in LEVEL_FEATURES], axis=-1)
        chance, following = self.predictor.level(told, own.state.temperature[requests], level.depth)
        own.tell(requests, chance, following, told)
        self._put(level.depth)
        return level.going_on(own.drafted[requests] > level.depth)

    def _put(self, depth: int) -> None:
        for request in self.round.askable(depth).tolist():
            self.round.answer(request, self._answer(self.round, request))


class WatchedQuestions(QuestionController):
    """Tells an episode of every round."""

    episode: LiveEpisode

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        super().observe(outcome)
        self.episode.observe(outcome)


class LiveQuestions:
    """See `QuestionBackend`; an engine with a real pair. Not deterministic: seconds are measured."""

    def __init__(self, scenario: Scenario, target: str | Path | None, drafter: str | Path | None) -> None:
        self.scenario = scenario
        self.server = LiveServer(scenario, target, drafter)
        self.price = LongRunPrice(len(scenario.fleet.traffic))
        self.episode: LiveEpisode | None = None
        self._inversion: Inversion[StopQuestion, bool] | None = None
        self._due: Settlement | None = None
        self._asked = False
        self._settlement: Settlement | None = None

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> StopQuestion | None:
        """See `QuestionBackend.begin`."""
        self.server.close()
        if seeded:
            self.price.clear()
        self._due, self._asked, self._present = None, False, 0.0
        self.episode, self._inversion = self.server.begin(rng, scenario, self._controller)
        return self._inversion.begin()

    def answer(self, go_on: bool) -> tuple[float, StopQuestion | None]:
        """See `QuestionBackend.answer`. Raises what the engine raised."""
        assert self._inversion is not None and self.episode is not None
        question = self._inversion.answer(go_on)
        if question is None:
            self._settle(self.episode)
            self._settlement = self._due
            assert self._settlement is not None
            return self._settlement.value, None
        return 0.0 if question.settlement is None else question.settlement.value, question

    def last(self) -> Settlement:
        """See `QuestionBackend.last`."""
        assert self._settlement is not None
        return self._settlement

    def close(self) -> None:
        """End the worker."""
        self.server.close()

    # ------------------------------------------------------------------ the worker's side

    def _controller(self, episode: LiveEpisode, inversion: Inversion[StopQuestion, bool]) -> WatchedQuestions:
        def ask(own: StopRound, request: int) -> bool:
            settlement, self._due = self._due, None
            question = StopQuestion(own.observation(request), settlement)
            with episode.hold():
                return inversion.ask(question)

        def price() -> float:
            self._settle(episode)
            return self._present

        controller = WatchedQuestions(self.scenario, ask, price)
        controller.episode = episode
        return controller

    def _settle(self, episode: LiveEpisode) -> None:
        """Sum up the round that has ended, and set the price for the next."""
        gained = episode.take()
        if self._asked:
            view = self.server.view(gained, gained.longest)
            self._due = Settlement(gained.tokens, gained.seconds, self._present, view)
            self.price.enter(self.server.number, gained.tokens, gained.seconds)
        self._asked = True
        traffic, slots = self.scenario.fleet.traffic[self.server.number], self.scenario.engine.max_num_seqs
        start = plain_rate(self.server.costs, traffic.concurrency if traffic.mode == "closed" else slots)
        self._present = self.price.of(self.server.number, start)
