"""The observation computed as it is read, and the history behind it, on plain numbers.

`observation.write_features` fills whole arrays, for compiled replay. A controller in an engine reads a few features of
a small batch, where calls of NumPy take longer than the numbers; the values are the same up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .acceptance_rate import START_RATE
from .controller import FloatArray, RoundState
from .cost_table import CostTable
from .observation import (
    DEPTH_DECAY,
    FEATURE_NAMES,
    HISTORY_SIZE,
    MAX_DEPTH,
    NUM_FEATURES,
    RATE_DECAY,
    gain_of,
    new_history,
    write_features,
)
from .round_costs import RoundCosts

_POOLED = 2 * MAX_DEPTH


class RoundFeatures:
    """Features of one round by their place in `observation.FEATURES`, each group computed when first read."""

    def __init__(
        self, table: CostTable, costs: RoundCosts, history: list[float], first_chances: Callable[[RoundState], Any]
    ) -> None:
        """``costs`` (over ``table``), ``history`` (see `note_round`) and ``first_chances``, which gives ``[B]``, are
        read in every round."""
        self.history, self._round, self._first_chances = history, costs, first_chances
        self._blank: list[float | None] = [None] * NUM_FEATURES
        self._values = list(self._blank)
        self._fill: list[Callable[[], None]] = [self._machine] * NUM_FEATURES
        self._place = {name: place for place, name in enumerate(FEATURE_NAMES)}
        for names, fill in (
            (("decoding", "prefilling", "log_waiting", "arrivals_1s", "arrivals_10s", "kv_free"), self._load),
            (tuple(f"acceptance_{depth}" for depth in range(1, MAX_DEPTH + 1)), self._depths),
            (("accepted_length", "verified_length", "drafted_length"), self._pooled),
            (("request_acceptance_mean", "request_acceptance_spread"), self._rates),
            (("first_chance_mean", "first_chance_best", "first_chance_spread"), self._chances),
            (("temperature_mean", "greedy_share"), self._temperatures),
            (("lagging_share", "log_lag_mean"), self._lags),
            (("context_mean", "context_longest"), self._contexts),
            (("draft_cost", "verify_cost", "verify_cost_4", "catch_up_cost", "log_plain_seconds"), self._costs),
            (("gain", "last_length", "last_price"), self._last),
        ):
            for name in names:
                self._fill[self._place[name]] = fill
        code = _machine_code(table)
        for place, fill in enumerate(self._fill):
            if fill == self._machine:
                self._blank[place] = float(code[place])

    def enter(self, state: RoundState) -> None:
        """Begin a round, which the costs have been told of."""
        self._values, self._state = self._blank.copy(), state

    def __getitem__(self, index: int) -> float:
        """Feature number ``index``."""
        value = self._values[index]
        if value is None:
            self._fill[index]()
            value = self._values[index]
            assert value is not None
        return value

    def array(self) -> FloatArray:
        """``[NUM_FEATURES]``, all of them."""
        return np.asarray([self[index] for index in range(NUM_FEATURES)])

    # ------------------------------------------------------------------ groups

    def _set(self, name: str, *values: float) -> None:
        place = self._place[name]
        self._values[place : place + len(values)] = values

    def _machine(self) -> None:
        """These are known from the start."""

    def _load(self) -> None:
        state = self._state
        batch, fast, slow = len(state.request_ids), state.arrival_rates[0], state.arrival_rates[1]
        log1p = math.log1p
        self._set("decoding", batch, state.running - batch, log1p(state.waiting), log1p(fast), log1p(slow))
        self._set("kv_free", state.kv_free)

    def _depths(self) -> None:
        tries, hits = self.history[:MAX_DEPTH], self.history[MAX_DEPTH:_POOLED]
        self._set("acceptance_1", *((hit + 0.5) / (tried + 1.0) for tried, hit in zip(tries, hits, strict=True)))

    def _pooled(self) -> None:
        requests, accepted, verified, drafted = self.history[_POOLED + 2 : _POOLED + 6]
        per_draft = 1.0 / max(requests, 1.0)
        self._set("accepted_length", accepted * per_draft, verified * per_draft, drafted * per_draft)

    def _rates(self) -> None:
        known = [START_RATE if rate != rate else rate for rate in self._state.acceptance_rate.tolist()]
        self._set("request_acceptance_mean", *_mean_and_spread(known))

    def _chances(self) -> None:
        chances: list[float] = self._first_chances(self._state).tolist()
        mean, spread = _mean_and_spread(chances)
        self._set("first_chance_mean", mean, max(chances), spread)

    def _temperatures(self) -> None:
        own = self._state.temperature.tolist()
        self._set("temperature_mean", sum(own) / len(own), own.count(0.0) / len(own))

    def _lags(self) -> None:
        own = self._state.lag.tolist()
        behind = sum(lag > 1 for lag in own)
        self._set("lagging_share", behind / len(own), sum(map(math.log1p, own)) / len(own))

    def _contexts(self) -> None:
        own = self._state.context_length.tolist()
        self._set("context_mean", sum(own) / len(own) / 1024, max(own) / 1024)

    def _costs(self) -> None:
        plain = self._round.plain
        self._set("draft_cost", *(seconds / plain for seconds in self._round.passes), math.log(plain))

    def _last(self) -> None:
        self._set("gain", gain_of(self.history), self.history[-2], self.history[-1])  # type: ignore[arg-type]


def _mean_and_spread(values: list[float]) -> tuple[float, float]:
    if len(values) == 1:
        return values[0], 0.0
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum([(value - mean) ** 2 for value in values]) / len(values))


def _machine_code(costs: CostTable) -> FloatArray:
    """`write_features` of some round: the features of the machine are the same in all."""
    out, one, none = np.zeros(NUM_FEATURES), np.ones(1, dtype=np.int64), np.zeros(1)
    write_features(out, one, one, none, none, none, 1, 0, 1.0, 0.0, 0.0, new_history(), costs)
    return out


def note_round(
    history: list[float],
    drafted: list[int],
    verified: list[int],
    accepted: list[int],
    tokens: int,
    plain_tokens: float,
    length: float,
    price: float,
) -> None:
    """`observation.update_history` on lists, which see."""
    assert len(history) == HISTORY_SIZE
    for place in range(_POOLED):
        history[place] *= DEPTH_DECAY
    deepest = max(verified, default=0)
    stopped, ended = [0] * (deepest + 1), [0] * (deepest + 1)
    for sent, kept in zip(verified, accepted, strict=True):
        stopped[kept] += 1
        if kept == sent:
            ended[kept] += 1
    reached = len(verified)  # Requests whose first ``depth`` drafts were accepted.
    for depth in range(deepest):
        at = min(depth, MAX_DEPTH - 1)
        history[at] += reached - ended[depth]
        reached -= stopped[depth]
        history[MAX_DEPTH + at] += reached
    requests = sum(map(bool, drafted))
    for place, new in enumerate((tokens, plain_tokens, requests, sum(accepted), sum(verified), sum(drafted)), _POOLED):
        history[place] = history[place] * RATE_DECAY + new
    history[-2], history[-1] = length, price
