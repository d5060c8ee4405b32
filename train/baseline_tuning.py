"""The free parameters of baselines, chosen on the training recording so that none is put at a disadvantage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from specpilot.controllers import (
    Action,
    AdaptiveVerificationController,
    ConfidenceThresholdController,
    ConstantController,
    Controller,
    TurboSpecController,
)
from specpilot.controllers.action import factored_tiers
from specpilot.controllers.length_table import Row
from specpilot.envs.replay import Served
from specpilot.envs.replay_state import Recording
from specpilot.train.priced_replay import serve_priced
from specpilot.train.scenarios import Scenario, ScenarioConfig, Stage, closed_loop

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
PRICES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3, 1.5, 2.0)
LOOKS = (0, 1, 2, 3)
HOLD = 4
"""Rounds that a plan of the price rule holds."""
PROBE_INTERVALS = (None, 20, 100)
ADAPTIVE_LENGTHS = (2, 3, 4, 6, 8)
TABLE_BATCHES = (1, 2, 4, 8, 16, 24, 32)
SEED = 1_000_003
"""Of the schedules that are tuned on."""
WARM_ROUNDS = 400
T = TypeVar("T")


@dataclass(frozen=True)
class TunedBaselines:
    """What was chosen; None and empty where the recording holds no confidence."""

    table: tuple[Row, ...]
    """Best constant per batch size."""
    turbospec_probe_interval: int | None
    price: float
    """Of the price rule."""
    looks: int
    """Of the price rule."""
    threshold: float | None = None
    adaptive_length: int | None = None

    @classmethod
    def parse(cls, document: dict[str, Any]) -> TunedBaselines:
        """What ``dataclasses.asdict`` made, after JSON."""
        rows = tuple((low, high, length) for low, high, length in document["table"])
        return cls(**{**document, "table": rows})


def geometric_mean(values: Iterable[float]) -> float:
    """Of positive numbers."""
    return float(np.exp(np.mean(np.log(list(values)))))


def best_of(candidates: Sequence[T], score: Callable[[T], float]) -> T:
    """The first candidate with the highest score."""
    scores = [score(own) for own in candidates]
    return candidates[int(np.argmax(scores))]


def warmed_adaptive(stage: Stage, length: int) -> AdaptiveVerificationController:
    """One that has served the training recording for long enough that its estimator has left its start-up phase."""
    controller = AdaptiveVerificationController(stage.surface, length)
    mix = closed_loop("mix", (), min(8, stage.config.max_num_seqs), ScenarioConfig(requests_per_slot=64))
    stage.engine(stage.schedule(mix, SEED + 1)).serve(controller, WARM_ROUNDS)
    return controller


class BaselineTuning:
    """Serves the training recording, all temperatures mixed, in closed loop at several concurrencies."""

    def __init__(self, stage: Stage, recording: Recording, config: ScenarioConfig) -> None:
        """``recording``: the stage's trace with the price rule's chances."""
        self.stage, self.recording, self.config = stage, recording, config
        self.longest = stage.trace.max_num_speculative_tokens
        self.mixes = [self._mix(count) for count in config.concurrencies or (1, 4, 16, 32)]

    def run(self) -> TunedBaselines:
        """Choose everything."""
        surface = self.stage.surface
        table = self.table()
        probe = best_of(
            PROBE_INTERVALS,
            lambda own: self.score(lambda: TurboSpecController(surface, self.longest, probe_interval=own)),
        )
        rule = best_of(factored_tiers((self.longest,), PRICES, LOOKS), self.price_score)
        if self.stage.trace.confidence is None:
            return TunedBaselines(table, probe, rule.price, rule.looks)
        threshold = best_of(
            THRESHOLDS, lambda own: self.score(lambda: ConfidenceThresholdController(self.longest, own))
        )
        lengths = sorted({min(own, self.longest) for own in ADAPTIVE_LENGTHS})
        adaptive = best_of(lengths, lambda own: self.score(lambda: warmed_adaptive(self.stage, own)))
        return TunedBaselines(table, probe, rule.price, rule.looks, threshold, adaptive)

    def table(self) -> tuple[Row, ...]:
        """The constant that is best at each batch size, for it and all sizes down to the one before."""
        rows, low = list[Row](), 1
        slots = self.stage.config.max_num_seqs
        batches = [batch for batch in TABLE_BATCHES if batch < slots] + [slots]
        for batch in batches:
            mix = self._mix(batch)
            best = best_of(range(self.longest + 1), partial(self.constant_speed, mix))
            rows.append((low, None if batch == slots else batch, best))
            low = batch + 1
        return tuple(rows)

    def constant_speed(self, mix: Scenario, length: int) -> float:
        """Tokens per second of a constant length."""
        return self._serve(mix, ConstantController(length)).tokens_per_second

    def score(self, make: Callable[[], Controller]) -> float:
        """Geometric mean over concurrencies of tokens per second."""
        return geometric_mean(self._serve(mix, make()).tokens_per_second for mix in self.mixes)

    def price_score(self, action: Action) -> float:
        """`score` of the price rule."""
        schedules = (self.stage.schedule(mix, SEED) for mix in self.mixes)
        return geometric_mean(
            serve_priced(self.stage, self.recording, own, action, HOLD).tokens_per_second for own in schedules
        )

    def _mix(self, concurrency: int) -> Scenario:
        return closed_loop("mix", (), concurrency, self.config)

    def _serve(self, mix: Scenario, controller: Controller) -> Served:
        return self.stage.engine(self.stage.schedule(mix, SEED)).serve(controller)
