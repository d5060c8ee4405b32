"""What controllers are compared on: temperatures at fixed concurrency, and arrivals at several loads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from specpilot.controllers import CostSurface
from specpilot.controllers.cost_table import CostTable
from specpilot.envs.replay import ReplayConfig, ReplayEngine
from specpilot.envs.replay_state import Recording, Schedule
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import ArrivalFile, Traffic, make_schedule


@dataclass(frozen=True)
class ScenarioConfig:
    """Which scenarios, and how long each is."""

    temperatures: tuple[float, ...] = (0.0, 0.6, 1.0)
    """Each alone, in closed loop."""
    mix: bool = True
    """Also all recorded requests together."""
    concurrencies: tuple[int, ...] = (1, 4, 16, 32)
    """Requests in the system in closed loop."""
    loads: tuple[float, ...] = (0.5, 0.8, 1.0, 1.3)
    """Arrivals: their rate over what plain decoding could serve."""
    arrivals: str | None = None
    """CSV of real arrivals (the Azure LLM inference trace's columns); None: a Poisson stream."""
    requests: int = 24
    """Of a closed loop, at least."""
    requests_per_slot: int = 6
    """Of a closed loop: this many times its concurrency, at least."""
    arrival_requests: int = 192
    """Of a stream of arrivals."""
    seeds: int = 5
    """Schedules per scenario; every contender serves the same ones."""

    def __post_init__(self) -> None:
        for name in ("requests", "requests_per_slot", "arrival_requests", "seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not scenarios(self):
            raise ValueError("no scenario is left: give concurrencies with temperatures or mix, or loads")


class Scenario(NamedTuple):
    """One traffic that contenders serve."""

    name: str
    traffic: Traffic
    num_requests: int

    @property
    def is_open(self) -> bool:
        """Whether requests arrive by the clock."""
        return self.traffic.mode != "closed"

    @property
    def figure(self) -> str:
        """The main figure of merit: what the machine delivers, or what a user sees where requests queue."""
        return "request_tokens_per_second" if self.is_open else "tokens_per_second"


def closed_loop(name: str, temperatures: tuple[float, ...], concurrency: int, config: ScenarioConfig) -> Scenario:
    """``concurrency`` requests of these temperatures (none: all, mixed) in the system."""
    count = max(config.requests, config.requests_per_slot * concurrency)
    return Scenario(f"{name} c={concurrency}", Traffic(concurrency=concurrency, temperatures=temperatures), count)


def scenarios(config: ScenarioConfig) -> list[Scenario]:
    """All of them, in the order of the tables."""
    kinds = [(f"T={own:g}", (own,)) for own in config.temperatures] + [("mix", ())] * config.mix
    closed = [closed_loop(name, own, count, config) for name, own in kinds for count in config.concurrencies]
    mode = "poisson" if config.arrivals is None else "csv"
    streams = [
        Scenario(f"arrivals {load:g}", Traffic(mode, load=load, path=config.arrivals), config.arrival_requests)
        for load in config.loads
    ]
    return closed + streams


@dataclass(frozen=True, eq=False)
class Stage:
    """A recording, a machine and an engine that requests can be served on."""

    trace: Trace
    surface: CostSurface
    costs: CostTable
    config: ReplayConfig
    recording: Recording
    """Without a predictor's chances."""
    arrivals: ArrivalFile | None = None

    @classmethod
    def build(
        cls, trace: Trace, surface: CostSurface, config: ReplayConfig, arrivals: ArrivalFile | None = None
    ) -> Stage:
        """Bake the costs for the recording's drafts."""
        costs = config.bake(surface, trace.max_num_speculative_tokens)
        return cls(trace, surface, costs, config, Recording.of(trace), arrivals)

    def schedule(self, scenario: Scenario, seed: int) -> Schedule:
        """The scenario's requests, a function of ``seed`` and the scenario alone."""
        rng = np.random.default_rng((seed, scenario.num_requests, scenario.traffic.concurrency))
        slots = self.config.max_num_seqs
        return make_schedule(self.trace, scenario.traffic, self.costs, slots, scenario.num_requests, rng, self.arrivals)

    def engine(self, schedule: Schedule) -> ReplayEngine:
        """An idle engine that is to serve ``schedule``."""
        return ReplayEngine(self.trace, self.costs, schedule, self.config, self.recording)
