"""The real pair, asked for one action a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..controllers import PricedController, RoundOutcome
from ..controllers.action import Action, Features
from ..controllers.observation import FEATURE_NAMES, NUM_FEATURES
from .inversion import Inversion
from .live import Gained, LiveEpisode, LiveServer
from .long_run import LongRunPrice
from .replay_lengths import LengthTurn
from .replay_state import FloatArray
from .scenario import Scenario, ScenarioError

_LOG_PLAIN = FEATURE_NAMES.index("log_plain_seconds")


class LengthQuestion(NamedTuple):
    """A decision that is due."""

    observation: FloatArray
    """``[F]``."""
    gained: Gained
    """Since the last one."""


class AskingPolicy:
    """Asks for every action."""

    feature_names = FEATURE_NAMES

    def __init__(self, ask: Callable[[FloatArray], Action], tiers: Sequence[Action]) -> None:
        """``tiers``: all that may be answered."""
        self._ask = ask
        self.tiers = tuple(tiers)

    def act(self, features: Features) -> Action:
        """See `Policy.act`."""
        return self._ask(np.asarray([features[index] for index in range(NUM_FEATURES)]))


class LengthController(PricedController):
    """The price rule under actions that are asked for; price 0 is a constant length."""

    def follow(self, episode: LiveEpisode) -> LengthController:
        """Tell ``episode`` of every round."""
        self._episode = episode
        return self

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        super().observe(outcome)
        self._episode.observe(outcome)


class LiveLengths:
    """See `LengthBackend`; an engine with a real pair. Not deterministic: seconds are measured."""

    def __init__(
        self,
        scenario: Scenario,
        target: str | Path | None,
        drafter: str | Path | None,
        tiers: Sequence[Action],
        backend: str = "live",
    ) -> None:
        """``tiers``: the actions that will be played; the others as of `LiveServer`."""
        self.scenario = scenario
        self.tiers = tuple(tiers)
        self.server = LiveServer(scenario, target, drafter, backend)
        self.price = LongRunPrice(len(scenario.fleet.traffic))
        self.episode: LiveEpisode | None = None
        self._inversion: Inversion[LengthQuestion, Action] | None = None
        self._observation = np.zeros(NUM_FEATURES)

    def begin(self, rng: np.random.Generator, seeded: bool, scenario: int | None) -> FloatArray:
        """See `LengthBackend.begin`."""
        if seeded:
            self.price.clear()
        self.episode, self._inversion = self.server.begin(rng, scenario, self._controller)
        question = self._inversion.begin()
        if question is None:
            raise ScenarioError("the traffic holds no request; raise max_rounds or the concurrency")
        self._observation = question.observation
        return question.observation

    def _controller(self, episode: LiveEpisode, inversion: Inversion[LengthQuestion, Action]) -> LengthController:
        scenario = self.scenario

        def ask(observation: FloatArray) -> Action:
            question = LengthQuestion(observation, episode.take())
            with episode.hold():
                return inversion.ask(question)

        return LengthController(
            AskingPolicy(ask, self.tiers),
            scenario.predictor,
            scenario.surface,
            scenario.trace.max_num_speculative_tokens,
            scenario.engine.max_num_seqs,
            scenario.engine.max_model_len,
        ).follow(episode)

    def play(self, action: Action) -> LengthTurn:
        """See `LengthBackend.play`. Raises what the engine raised."""
        assert self._inversion is not None and self.episode is not None
        plain = float(np.exp(self._observation[_LOG_PLAIN]))
        question = self._inversion.answer(action)
        gained = self.episode.take() if question is None else question.gained
        if question is not None:
            self._observation = question.observation
        return LengthTurn(
            self._observation,
            self._reward(gained, plain),
            question is None,
            gained.tokens,
            gained.worth,
            gained.seconds,
            self.server.view(gained, action.max_length),
        )

    def _reward(self, gained: Gained, plain: float) -> float:
        """As `ReplayFleet` has it; ``plain``: seconds of the round without speculation."""
        kind, requests = self.scenario.fleet.reward, max(gained.requests, 1)
        if kind == "round_ratio":
            return gained.tokens / requests * plain / max(gained.seconds, 1e-9)
        against = {
            "gain": requests * gained.seconds / plain,
            "request_speed": gained.request_seconds,
            "throughput": gained.seconds,
        }
        seconds, tokens = against[kind], gained.worth if kind == "gain" else gained.tokens
        self.price.enter(self.server.number, tokens, seconds)
        return (tokens - self.price.of(self.server.number) * seconds) / requests

    def close(self) -> None:
        """End the worker."""
        self.server.close()
