"""Many replayed engines side by side, each deciding once a step: what training runs on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ..controllers import CostSurface
from ..controllers.acceptance import AcceptancePredictor
from ..controllers.observation import FEATURE_NAMES, NUM_FEATURES
from ..controllers.priced import Action
from .replay import ReplayConfig
from .replay_kernel import observe, reset_engine, step_all
from .replay_queue import begin
from .replay_state import Fleet, FloatArray, IntArray, Recording, Schedule
from .trace import Trace
from .traffic import ArrivalFile, Traffic, make_schedule

REWARDS = ("gain", "request_speed", "throughput", "round_ratio")
_LOG_PLAIN = FEATURE_NAMES.index("log_plain_seconds")
_GAIN, _ARRIVALS = FEATURE_NAMES.index("gain"), [FEATURE_NAMES.index(f"arrivals_{scale}s") for scale in (1, 10)]
PRICE_DECAY = 0.9995
"""Per round, of a scenario's running tokens and seconds: what a second earns in the long run."""


@dataclass(frozen=True)
class FleetConfig:
    """What is served and what counts."""

    traffic: tuple[Traffic, ...] = (Traffic(),)
    """Scenarios; every episode draws one."""
    max_rounds: int = 256
    """Rounds of an episode; it also ends when its requests are served."""
    reward: str = "gain"
    """``gain``: weighted tokens - g * (tokens that plain decoding would have made of the same batch in the same time),
    g the running ratio of both: a second is worth what it earns at that batch, and a token what it does for the flow of
    requests (`price_rule`): as one over its request's tokens per round. ``request_speed``: tokens - s *
    request-seconds, s the running tokens per request-second, request-seconds the time times the requests in the system.
    ``throughput``: tokens - r * seconds, r the running tokens per second. ``round_ratio``: tokens / seconds of each
    round over plain decoding's, as Learning to Draft (arXiv 2603.01639) uses it; another objective, for comparison."""
    max_requests: int | None = None
    """Requests of an episode; None: more than its rounds can serve."""
    hold: int = 1
    """Rounds that a decision without looks holds, as of `PricedController`: in between actions are not heard."""
    slowness_spread: float = 0.0
    """Of an episode's machine: standard deviation of the logarithm of its seconds over those of the cost surface. A
    shared machine is seldom as fast as when it was measured, and what depends on its clock must not be trusted."""

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise ValueError(f"reward must be one of {REWARDS}, got {self.reward!r}")
        for name in ("max_rounds", "hold"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.slowness_spread < np.inf:
            raise ValueError(f"slowness_spread must be a finite number of 0 or more, got {self.slowness_spread}")
        if not self.traffic:
            raise ValueError("traffic needs at least one scenario")


class ReplayFleet:
    """``E`` engines, one observation and one action each per step; a new episode begins where one ends."""

    def __init__(
        self,
        trace: Trace,
        surface: CostSurface,
        predictor: AcceptancePredictor,
        config: FleetConfig,
        engine: ReplayConfig,
        num_envs: int,
        seed: int,
    ) -> None:
        """Everything random comes from ``seed``."""
        self.trace, self.config, self.engine = trace, config, engine
        self.costs = engine.bake(surface, trace.max_num_speculative_tokens)
        self.recording = Recording.of(trace, predictor)
        self.num_envs = num_envs
        self.rng = np.random.default_rng(seed)
        self._arrivals = {t.path: ArrivalFile.load(t.path) for t in config.traffic if t.path is not None}
        requests = [self._num_requests(traffic) for traffic in config.traffic]
        empty = np.zeros((num_envs, max(requests)), dtype=np.int64)
        counts = np.zeros(num_envs, dtype=np.int64)
        self.schedule = Schedule(empty.astype(float), empty.copy(), empty.copy(), empty.copy(), counts, counts.copy())
        self.fleet = Fleet.new(self.schedule, engine.max_num_seqs)
        self.scenario = np.zeros(num_envs, dtype=np.int64)
        self.rounds = np.zeros(num_envs, dtype=np.int64)
        self.observations = np.zeros((num_envs, NUM_FEATURES))
        self._slowness = np.ones(num_envs)
        self._sums = np.full((len(config.traffic), 2), 1e-9)
        """Per scenario, decayed tokens (weighted for ``gain``) and what they are held against."""
        self._gained = np.zeros((num_envs, 5))
        self._alive = np.zeros(num_envs, dtype=np.int64)

    def _num_requests(self, traffic: Traffic) -> int:
        """Enough for an episode: a request takes three rounds or more, unless it is very short."""
        at_once = traffic.concurrency if traffic.mode == "closed" else self.engine.max_num_seqs
        if self.config.max_requests is not None:
            return max(self.config.max_requests, 5 * at_once)
        return at_once * (2 + self.config.max_rounds // 6)

    def seed(self, seed: int | Sequence[int] | np.random.Generator) -> None:
        """Start the random numbers and the running price of a second again, so that all that follows repeats."""
        self.rng = np.random.default_rng(seed)
        self._sums[:] = 1e-9

    def reset(self, e: int, scenario: int | None = None) -> None:
        """Begin an episode in engine ``e``."""
        chosen = int(self.rng.integers(len(self.config.traffic))) if scenario is None else scenario
        traffic = self.config.traffic[chosen]
        self.scenario[e], self.rounds[e] = chosen, 0
        fresh = make_schedule(
            self.trace,
            traffic,
            self.costs,
            self.engine.max_num_seqs,
            self._num_requests(traffic),
            self.rng,
            None if traffic.path is None else self._arrivals[traffic.path],
        )
        reset_engine(self.schedule, self.fleet, fresh, e)
        begin(self.recording, self.schedule, self.fleet, self.costs, self.engine.prefill_chunk, e)
        observe(self.recording, self.schedule, self.fleet, self.costs, self.kv_tokens, e, self.observations[e])
        if self.config.slowness_spread:
            self._slowness[e] = np.exp(self.rng.normal(0.0, self.config.slowness_spread))
            self._slow_down(self.observations[e : e + 1], self._slowness[e])

    def _slow_down(self, observations: FloatArray, slowness: FloatArray) -> None:
        """What an engine sees by its clock, in place, on a machine that takes ``slowness`` times as long for all."""
        observations[:, _GAIN] /= slowness
        for place in _ARRIVALS:
            observations[:, place] = np.log1p(np.expm1(observations[:, place]) / slowness)

    def decide_now(self) -> None:
        """The next round is decided anew everywhere, whatever is held."""
        self.fleet.phase[:] = 0

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Whatever is stepped inside has not happened afterwards."""
        live = (*self.fleet, self.observations, self._gained, self._alive, self.rounds, self._sums)
        kept = [array.copy() for array in live]
        try:
            yield
        finally:
            for array, before in zip(live, kept, strict=True):
                array[...] = before

    @property
    def gained(self) -> FloatArray:
        """``[E, 5]`` of the last step: tokens, busy seconds, request-seconds, requests that decoded, worth."""
        return self._gained

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of an engine holds."""
        return self.engine.max_num_seqs * self.engine.max_model_len

    def step(self, actions: Sequence[Action]) -> tuple[FloatArray, IntArray, IntArray]:
        """Play one round everywhere. Returns rewards ``[E]``, where all requests are served, and where time is up.

        Episodes that ended are not begun again: call `reset`. `observations` holds what comes next.
        """
        plain = np.exp(self.observations[:, _LOG_PLAIN])  # Of the round that is due; afterwards of the next.
        lengths = np.asarray([action.max_length for action in actions], dtype=np.int64)
        prices = np.asarray([action.price for action in actions], dtype=np.float64)
        looks = np.asarray([action.asked_levels for action in actions], dtype=np.int64)
        step_all(
            self.recording,
            self.schedule,
            self.fleet,
            self.costs,
            self.engine.prefill_chunk,
            self.kv_tokens,
            lengths,
            prices,
            looks,
            self.config.hold,
            self.observations,
            self._gained,
            self._alive,
        )
        if self.config.slowness_spread:
            self._slow_down(self.observations, self._slowness)
        self.rounds += 1
        served = (self._alive == 0).astype(np.int64)
        late = ((self.rounds >= self.config.max_rounds) & (served == 0)).astype(np.int64)
        return self._rewards(plain), served, late

    def _rewards(self, plain: FloatArray) -> FloatArray:
        """``[E]``, per decoding request; ``plain`` ``[E]``: seconds of the round without speculation."""
        tokens, busy, weight, requests, worth = self._gained.T
        seconds = busy if self.config.reward != "request_speed" else weight
        if self.config.reward == "round_ratio":
            return tokens / requests * plain / np.maximum(busy, 1e-9)
        if self.config.reward == "gain":
            tokens, seconds = worth, requests * busy / plain
        for scenario in range(len(self.config.traffic)):
            chosen = self.scenario == scenario
            if chosen.any():
                self._sums[scenario] *= PRICE_DECAY ** int(chosen.sum())
                self._sums[scenario] += (tokens[chosen].sum(), seconds[chosen].sum())
        price = (self._sums[:, 0] / self._sums[:, 1])[self.scenario]
        rewards: FloatArray = (tokens - price * seconds) / requests
        return rewards
