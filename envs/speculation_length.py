"""The environment of one decision a round: how far to speculate at most, and what a second is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray

from ..controllers import AcceptancePredictor, CostSurface
from ..controllers.action import Action, checked_tiers, factored_tiers
from ..controllers.observation import FEATURES
from .feature_space import FeatureSpace
from .rendering import RENDER_MODES, RoundLog
from .replay import ReplayConfig
from .replay_lengths import LengthBackend, ReplayLengths
from .scenario import BACKENDS, DEFAULT_TRAFFIC, Scenario, ScenarioError, TrafficLike, load_scenario
from .trace import Trace

LENGTHS = (0, 1, 2, 3, 4, 6, 8)
PRICES = (0.0, 0.5, 0.7, 1.0, 1.4, 2.0)
LOOKS = (0, 1, 2)
Observation = NDArray[np.float32]
IntArray = NDArray[np.int64]


class SpeculationLengthEnv(gymnasium.Env[Observation, IntArray]):
    """One decision a round for a whole batch: how far to speculate, and how thrifty to be.

    ## Description

    An inference engine serves requests with a draft/target pair. In every round each request that decodes may have
    some tokens drafted by the small model, which the large one then verifies at once. Drafts that are accepted are
    tokens gained; drafts that are not, and requests that wait for others' drafts, cost time. ``backend="replay"``
    serves recorded requests by exact replay (tokens from the recording, seconds from the cost surface);
    ``backend="live"`` serves the same requests with the real pair, ``backend="vllm"`` with vLLM, where it is installed:
    a step of vLLM is a round, and what is decided in it is verified in the next. Spaces and rewards are the same.

    >>> import gymnasium, specpilot.envs                                        # doctest: +SKIP
    >>> env = gymnasium.make("SpecPilot/SpeculationLength-v0", trace="train.npz",
    ...                      cost_surface="cost_surface.json")                  # doctest: +SKIP

    ## Action Space

    ``MultiDiscrete([len(lengths), len(prices), len(looks)])``: an index into ``lengths``, the largest speculation
    length of any request (0: off), one into ``prices``, a factor on what speculation costs, and one into ``looks``.
    Every request's length is planned before the round, from its history: the lengths that promise most speed. After
    each of the first ``looks`` draft levels they are planned anew, from the drafter's confidence, at the cost of
    asking. Price 0: the same constant length for all, whatever ``looks`` says.

    ## Observation Space

    ``Box`` of float32, the features of `specpilot.controllers.observation.FEATURES`, cut to their ranges:

    | Index | Name | Unit | Low | High |
    |---|---|---|---|---|
    | 0 | decoding | requests | 0 | 4096 |
    | 1 | prefilling | requests | 0 | 4096 |
    | 2 | log_waiting | ln(1 + requests) | 0 | 20 |
    | 3 | arrivals_1s | ln(1 + requests/s) | 0 | 20 |
    | 4 | arrivals_10s | ln(1 + requests/s) | 0 | 20 |
    | 5 | kv_free | share | 0 | 1 |
    | 6 | acceptance_1 | share | 0 | 1 |
    | 7 | acceptance_2 | share | 0 | 1 |
    | 8 | acceptance_3 | share | 0 | 1 |
    | 9 | acceptance_4 | share | 0 | 1 |
    | 10 | acceptance_5 | share | 0 | 1 |
    | 11 | acceptance_6 | share | 0 | 1 |
    | 12 | acceptance_7 | share | 0 | 1 |
    | 13 | acceptance_8 | share | 0 | 1 |
    | 14 | accepted_length | tokens | 0 | 255 |
    | 15 | verified_length | tokens | 0 | 255 |
    | 16 | drafted_length | tokens | 0 | 255 |
    | 17 | request_acceptance_mean | share | 0 | 1 |
    | 18 | request_acceptance_spread | share | 0 | 1 |
    | 19 | first_chance_mean | probability | 0 | 1 |
    | 20 | first_chance_best | probability | 0 | 1 |
    | 21 | first_chance_spread | probability | 0 | 1 |
    | 22 | temperature_mean | 1 | 0 | 100 |
    | 23 | greedy_share | share | 0 | 1 |
    | 24 | lagging_share | share | 0 | 1 |
    | 25 | log_lag_mean | ln(1 + tokens) | 0 | 20 |
    | 26 | context_mean | tokens / 1024 | 0 | 1024 |
    | 27 | context_longest | tokens / 1024 | 0 | 1024 |
    | 28 | draft_cost | plain rounds | 0 | 100 |
    | 29 | verify_cost | plain rounds | 0 | 100 |
    | 30 | verify_cost_4 | plain rounds | 0 | 400 |
    | 31 | catch_up_cost | plain rounds | 0 | 1000 |
    | 32 | log_plain_seconds | ln s | -20 | 10 |
    | 33 | draft_cost_at_1 | plain rounds | 0 | 100 |
    | 34 | verify_cost_at_1 | plain rounds | 0 | 100 |
    | 35 | draft_cost_at_8 | plain rounds | 0 | 100 |
    | 36 | verify_cost_at_8 | plain rounds | 0 | 100 |
    | 37 | draft_cost_at_32 | plain rounds | 0 | 100 |
    | 38 | verify_cost_at_32 | plain rounds | 0 | 100 |
    | 39 | gain | 1 | 0 | 255 |
    | 40 | last_length | tokens | 0 | 255 |
    | 41 | last_price | 1 | 0 | 100 |

    ## Rewards

    ``gain`` (default): (weighted tokens - g * plain tokens) / requests of the round. Plain tokens: what plain decoding
    would have made of the same batch in the same time; g: the running ratio of both in that traffic. So a second is
    worth what it earns at that batch. Weighted: a token counts as one over its request's tokens per round (at a fixed
    length of 4, over the recording's mean), because a loop that serves the quick requests fills with the slow ones.
    ``request_speed``: (tokens - s * request-seconds) / requests. Request-seconds: the time
    times the requests in the system; s: the running tokens per request-second of that traffic. In closed loop it is
    throughput; with arrivals what a user sees, in the long run. ``throughput``: (tokens - r * seconds) / requests,
    r the running tokens per second. ``round_ratio``: tokens per request of the round over its seconds, relative to
    plain decoding: another objective (Learning to Draft, arXiv 2603.01639), kept for comparison. Seconds are from one
    decision to the next, with prefill, without idle time; live also without the time that the environment waits for
    an action.

    ## Starting State

    An empty engine; one of the ``traffic`` scenarios is drawn (or chosen by ``reset(options={"scenario": 1})``) and
    filled with recorded requests in random order. The first observation is that of the first round. ``reset(seed=...)``
    also forgets the running price of a second, so that on replay everything that follows repeats.

    ## Episode End

    Terminated: the requests of the episode are served (there are enough for about ``max_rounds`` rounds). Truncated:
    after ``max_rounds`` rounds. `step` then raises ``ResetNeeded`` until `reset`.

    ## Arguments

    - ``trace``, ``cost_surface``: files that ``train/record.py`` writes, or `Trace` and `CostSurface`. Required.
    - ``predictor``: JSON of an acceptance predictor or `AcceptancePredictor`; None: the recording's mean acceptance.
    - ``traffic``: `Traffic`, a dictionary of its fields, or several of them.
    - ``backend``: ``replay``, ``live`` or ``vllm``; vLLM shows no confidences: ``prices`` (0.0,) or ``looks`` (0,).
      ``target``, ``drafter``: the live pair's directories; None: the shipped pair.
    - ``reward``, ``max_rounds``: see above.
    - ``max_num_seqs``, ``max_model_len``, ``prefill_chunk``: the engine, as in `EngineConfig`.
    - ``lengths``: None: (0, 1, 2, 3, 4, 6, 8) as far as drafts were recorded. ``prices``,
      ``looks``: see the actions.
    - ``render_mode``: ``ansi`` or ``rgb_array``.

    `step`'s info: ``tokens``, ``weighted_tokens`` and ``seconds`` of the round, ``decoding``, ``longest``, ``drafted``,
    ``accepted``, ``running``, ``waiting``.

    ## Version History

    - v0: first version.
    """

    metadata = {"render_modes": list(RENDER_MODES), "render_fps": 10}  # noqa: RUF012 - Gymnasium's own declaration

    def __init__(
        self,
        trace: str | Path | Trace | None = None,
        cost_surface: str | Path | CostSurface | None = None,
        predictor: str | Path | AcceptancePredictor | None = None,
        traffic: TrafficLike | Sequence[TrafficLike] = DEFAULT_TRAFFIC,
        backend: str = "replay",
        reward: str = "gain",
        max_rounds: int = 256,
        max_num_seqs: int = 32,
        max_model_len: int = 1024,
        prefill_chunk: int = 1024,
        lengths: Sequence[int] | None = None,
        prices: Sequence[float] = PRICES,
        looks: Sequence[int] = LOOKS,
        render_mode: str | None = None,
        target: str | Path | None = None,
        drafter: str | Path | None = None,
    ) -> None:
        """See the class. Raises `ScenarioError` and the errors of the files' readers, all of them `ValueError`."""
        engine = ReplayConfig(max_num_seqs, max_model_len, prefill_chunk)
        scenario = load_scenario(trace, cost_surface, predictor, traffic, engine, max_rounds, reward)
        check_modes(backend, render_mode)
        self.lengths, self.prices, self.looks = tiers(scenario, lengths, prices, looks)
        if backend == "vllm" and any(self.prices) and any(self.looks):
            raise ScenarioError(
                f"prices are {self.prices}, but vLLM shows no confidences of drafts; give (0.0,), or looks=(0,)"
            )
        self.render_mode = render_mode
        self.action_space = MultiDiscrete([len(self.lengths), len(self.prices), len(self.looks)])
        self._space = FeatureSpace(FEATURES)
        self.observation_space = self._space.box()
        self._max_rounds = max_rounds
        self._rounds: int | None = None
        self._log = RoundLog()
        self._backend: LengthBackend
        if backend == "replay":
            self._backend = ReplayLengths(scenario)
        else:
            from .live_lengths import LiveLengths  # Here, because replay needs no torch.

            actions = factored_tiers(self.lengths, self.prices, self.looks)
            self._backend = LiveLengths(scenario, target, drafter, actions, backend)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode. ``options``: ``{"scenario": number}`` chooses one of several traffics."""
        super().reset(seed=seed)
        self._log.clear()
        features = self._backend.begin(self.np_random, seed is not None, (options or {}).get("scenario"))
        self._rounds = 0
        return self._space.observation(features), {}

    def step(self, action: IntArray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Play a round. Raises `gymnasium.error.ResetNeeded` where no episode is running."""
        if self._rounds is None:
            raise ResetNeeded("no episode is running; call reset()")
        number, price, look = (int(index) for index in action)
        try:
            turn = self._backend.play(Action(self.lengths[number], self.prices[price], self.looks[look]))
        except BaseException:
            self._rounds = None
            raise
        self._rounds += 1
        truncated = not turn.served and self._rounds >= self._max_rounds
        if turn.served or truncated:
            self._rounds = None
        self._log.add(turn.view)
        gained = {"tokens": turn.tokens, "weighted_tokens": turn.weighted_tokens, "seconds": turn.seconds}
        info = {**gained, **turn.view._asdict()}
        return self._space.observation(turn.observation), turn.reward, turn.served, truncated, info

    def render(self) -> str | NDArray[np.uint8] | None:
        """The last rounds: ``ansi`` a table, ``rgb_array`` a picture of lengths, accepted tokens and load over time."""
        return self._log.render(self.render_mode)

    def close(self) -> None:
        """End the engine's thread, where there is one."""
        self._rounds = None
        self._backend.close()


def check_modes(backend: str, render_mode: str | None) -> None:
    """Raise `ScenarioError` for a backend or a render mode that does not exist."""
    if backend not in BACKENDS:
        raise ScenarioError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if render_mode is not None and render_mode not in RENDER_MODES:
        raise ScenarioError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")


def tiers(
    scenario: Scenario, lengths: Sequence[int] | None, prices: Sequence[float], looks: Sequence[int]
) -> tuple[tuple[int, ...], tuple[float, ...], tuple[int, ...]]:
    """The three heads of an action; lengths None: those of `LENGTHS` that were recorded."""
    longest = scenario.trace.max_num_speculative_tokens
    chosen = [length for length in LENGTHS if length <= longest] if lengths is None else list(lengths)
    if not chosen or not prices or not looks:
        raise ScenarioError("lengths, prices and looks need at least one value each")
    if max(chosen) > longest:
        raise ScenarioError(f"lengths go to {max(chosen)}, the recording to {longest}; record longer drafts")
    by_length = checked_tiers([Action(length, 1.0) for length in chosen])
    by_price = checked_tiers([Action(0, price) for price in prices])
    by_looks = checked_tiers([Action(0, 0.0, own) for own in looks])
    return (
        tuple(own.max_length for own in by_length),
        tuple(own.price for own in by_price),
        tuple(own.looks for own in by_looks),
    )
