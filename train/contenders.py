"""Who is compared: constants, published rules, the price rule, controllers from files, oracles and the ceiling."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from specpilot.controllers import (
    AcceptancePredictor,
    Action,
    ConfidenceThresholdController,
    ConstantController,
    Controller,
    CostSurface,
    FixedPolicy,
    HeuristicScheduleController,
    LengthTableController,
    PricedController,
    TurboSpecController,
)
from specpilot.controllers.action import factored_tiers
from specpilot.envs.replay import Served
from specpilot.envs.replay_state import Recording
from specpilot.train.baseline_tuning import (
    HOLD,
    LOOKS,
    PRICES,
    SEED,
    BaselineTuning,
    TunedBaselines,
    best_of,
    warmed_adaptive,
)
from specpilot.train.predictor import fit_ceiling
from specpilot.train.priced_replay import ceiling_recording, serve_priced, without_deciding
from specpilot.train.replay_oracles import serve_oracle
from specpilot.train.scenarios import Scenario, ScenarioConfig, Stage

OFF, CEILING, PAYING = "off", "informed_ceiling", "informed_paying"
UNIFORM, REQUEST = "uniform_oracle", "request_oracle"
PRICE_RULE = "price_rule"
PUBLISHED_THRESHOLD = 0.4
CEILING_LENGTHS = (2, 3, 4, 6)
"""And the longest: what the informed ceiling's drafts may be bounded by."""
CEILING_LOOKS = (0, 2)
"""And after every level: where requests of different lengths cost much, a look can do more harm than good."""


@dataclass(frozen=True)
class ControllerFile:
    """A controller that somebody saved."""

    name: str
    path: str


def constant_name(length: int) -> str:
    """``off``, ``constant_1``, …"""
    return f"constant_{length}" if length else OFF


def load_file(path: str | Path, surface: CostSurface) -> Controller:
    """The controller without its guard: the guard watches the clock, and replay has none."""
    from specpilot.controllers import load_controller

    return load_controller(path, cost_surface=surface, guard=False)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, or of all files of a directory."""
    path, digest = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class Ceiling:
    """The best predictor's chances on the evaluation recording, and what was found on training requests."""

    recording: Recording
    actions: dict[str, Action]
    """The best one of each scenario where planning and looking cost nothing."""
    paying: dict[str, Action]
    """The best one of each scenario where they cost what they do."""


@dataclass(frozen=True, eq=False)
class Field:
    """All contenders and the evaluation recording they serve. Everything in it can be sent to another process."""

    stage: Stage
    recording: Recording
    """With the price rule's chances."""
    predictor: AcceptancePredictor
    train: Stage
    tuned: TunedBaselines
    ceiling: Ceiling | None = None
    files: tuple[ControllerFile, ...] = field(default=())

    @property
    def longest(self) -> int:
        """K of the recording."""
        return self.stage.trace.max_num_speculative_tokens

    def controllers(self) -> dict[str, Callable[[], Controller]]:
        """Makers of fresh controllers that see no future, by name."""
        surface, longest, tuned = self.stage.surface, self.longest, self.tuned
        constants = {constant_name(own): lambda own=own: ConstantController(own) for own in range(longest + 1)}
        makers: dict[str, Callable[[], Controller]] = {
            **constants,
            "length_table": lambda: LengthTableController(tuned.table),
            "heuristic": lambda: HeuristicScheduleController(longest),
            "turbospec": lambda: TurboSpecController(surface, longest, probe_interval=tuned.turbospec_probe_interval),
        }
        threshold, adaptive = tuned.threshold, tuned.adaptive_length
        if threshold is not None:
            makers["threshold_published"] = lambda: ConfidenceThresholdController(longest, PUBLISHED_THRESHOLD)
            makers["threshold_tuned"] = lambda: ConfidenceThresholdController(longest, threshold)
        if adaptive is not None:
            makers["adaptive_verification"] = lambda: warmed_adaptive(self.train, adaptive)
        makers |= {own.name: lambda own=own: load_file(own.path, surface) for own in self.files}  # type: ignore[misc]
        return makers

    @property
    def _rule(self) -> Action:
        return Action(self.longest, self.tuned.price, self.tuned.looks)

    def price_rule(self) -> PricedController:
        """The price rule as a controller; `serve` runs it compiled, with the same result."""
        config, policy = self.stage.config, FixedPolicy(self._rule)
        surface, slots, context = self.stage.surface, config.max_num_seqs, config.max_model_len
        return PricedController(policy, self.predictor, surface, self.longest, slots, context, HOLD)

    def serve(self, scenario: Scenario, seed: int) -> dict[str, Served]:
        """What every contender makes of the scenario's schedule of this seed."""
        stage, schedule = self.stage, self.stage.schedule(scenario, seed)
        served = {name: stage.engine(schedule).serve(make()) for name, make in self.controllers().items()}
        served[PRICE_RULE] = serve_priced(stage, self.recording, schedule, self._rule, HOLD)
        if self.ceiling is not None:
            free, paying = (own[scenario.name] for own in (self.ceiling.actions, self.ceiling.paying))
            served[CEILING] = serve_priced(without_deciding(stage), self.ceiling.recording, schedule, free)
            served[PAYING] = serve_priced(stage, self.ceiling.recording, schedule, paying, HOLD)
        best = max(getattr(own, scenario.figure) for own in served.values())
        for name, per_request in ((UNIFORM, False), (REQUEST, True)):
            served[name] = serve_oracle(stage, scenario, schedule, per_request, best)
        return served


def tune(stage: Stage, predictor: AcceptancePredictor, config: ScenarioConfig) -> TunedBaselines:
    """Choose the baselines' parameters on a training stage."""
    return BaselineTuning(stage, Recording.of(stage.trace, predictor), config).run()


def ceiling_actions(
    stage: Stage, predictor: AcceptancePredictor, own_scenarios: list[Scenario], seed: int
) -> tuple[dict[str, Action], dict[str, Action]]:
    """The best action of each scenario, on one half of the training requests with a predictor of the other.

    Once where planning and looking cost nothing, and once where they cost what they do. Constant lengths are among
    them, so that it is a ceiling where plans win nothing too.

    Chances on requests that were fitted to would be too sure of themselves, and the price with them.
    """
    trace, config = stage.trace, stage.config
    order = np.random.default_rng((seed, 8)).permutation(len(trace))
    half = len(trace) // 2
    fitted, held_out = trace.select(order[:half]), trace.select(order[half:])
    own = Stage.build(held_out, stage.surface, config, stage.arrivals)
    recording = ceiling_recording(fit_ceiling(fitted, seed), predictor, held_out)
    longest = trace.max_num_speculative_tokens
    lengths = sorted({min(length, longest) for length in (*CEILING_LENGTHS, longest)})
    constants = [Action(length, 0.0) for length in range(longest + 1)]
    free = [*constants, *factored_tiers(lengths, PRICES, (*CEILING_LOOKS, longest))]
    paying = [*constants, *factored_tiers((longest,), PRICES, LOOKS)]
    return (
        {one.name: _best_action(without_deciding(own), recording, one, free, 1) for one in own_scenarios},
        {one.name: _best_action(own, recording, one, paying, HOLD) for one in own_scenarios},
    )


def _best_action(
    stage: Stage, recording: Recording, scenario: Scenario, candidates: Sequence[Action], hold: int
) -> Action:
    schedules = [stage.schedule(scenario, SEED + number) for number in range(2)]

    def figure(action: Action) -> float:
        runs = (serve_priced(stage, recording, own, action, hold) for own in schedules)
        return sum(float(getattr(run, scenario.figure)) for run in runs)

    return best_of(candidates, figure)
