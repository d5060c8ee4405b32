"""One round as a row of questions: shall this request draft one token more?"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..controllers import RoundState
from ..controllers.controller import FloatArray, IntArray
from ..controllers.cost_table import CostTable
from ..controllers.observation import FEATURES, Feature
from .rendering import RoundView
from .replay_round import round_seconds

REQUEST_FEATURES: tuple[Feature, ...] = (
    Feature("depth", "tokens", 0, 255, "tokens drafted so far; 0: shall it draft at all?"),
    Feature("chance", "probability", 0, 1, "predicted acceptance of the last drafted token, given those before; or 1"),
    Feature("survival", "probability", 0, 1, "predicted chance that all drafted tokens are accepted"),
    Feature("following", "probability", 0, 1, "predicted acceptance of the token that is asked about"),
    Feature("top1_probability", "probability", 0, 1, "drafter's best probability at the last token; 0: unknown"),
    Feature("entropy", "nats", 0, 100, "entropy of the drafter's distribution at the last token; 0: unknown"),
    Feature("margin", "logits", 0, 100, "difference of the two best perturbed logits at the last token; 0: unknown"),
    Feature("agreement", "1", -1, 1, "whether the request's earlier text went on like the last token; 0: unknown"),
    Feature("temperature", "1", 0, 100, "sampling temperature of the request"),
    Feature("acceptance_rate", "share", 0, 1, "the request's own running acceptance rate (0.5 unknown)"),
    Feature("log_lag", "ln(1 + tokens)", 0, 20, "tokens that the request's drafter must catch up with"),
    Feature("tokens_left", "tokens", 0, 65536, "tokens that the request may still generate"),
    Feature("drafting", "requests", 0, 4096, "requests that so far draft in this round"),
    Feature("planned", "tokens", 0, 65536, "tokens drafted so far in this round, of all requests"),
    Feature("cost", "tokens", 0, 1000, "seconds of drafting and verifying this token, times the price of a second"),
)
"""What is known of the request that is asked about, after the features of the round."""
STOP_FEATURES = (*FEATURES, *REQUEST_FEATURES)


class Settlement(NamedTuple):
    """Rounds that have ended: one that asked, and those after it in which nobody could draft."""

    tokens: int
    """Committed."""
    seconds: float
    """From the round's first question on, idle time left out."""
    price: float
    """Tokens per second, as it was during the round."""
    view: RoundView

    @property
    def value(self) -> float:
        """``tokens - price * seconds``."""
        return self.tokens - self.price * self.seconds


class StopQuestion(NamedTuple):
    """A decision that is due, and what came of those before it."""

    observation: FloatArray
    """``[len(STOP_FEATURES)]``."""
    settlement: Settlement | None
    """Where this is the first question of a round: what the rounds since the last one came to."""


class StopRound:
    """Answers so far, what they will cost, and what is known of each request. ``B`` requests decode."""

    def __init__(
        self, features: FloatArray, state: RoundState, first_chance: FloatArray, costs: CostTable, price: float
    ) -> None:
        """``features`` ``[F]`` of the round; ``first_chance`` ``[B]``; ``price`` in tokens per second."""
        batch = len(state.request_ids)
        self.features, self.state, self.costs, self.price = features, state, costs, price
        self.drafted = np.zeros(batch, dtype=np.int64)
        """``[B]`` tokens that each request drafts, by the answers so far."""
        self.asked_levels, self.asked = 0, 0
        """Levels and answers that the engine's controller was asked for (whether to draft at all is none of them)."""
        self._survival = np.ones(batch)
        self._chance = np.ones(batch)
        self._following = np.asarray(first_chance, dtype=np.float64).copy()
        self._told = np.zeros((batch, 4))

    @property
    def lengths(self) -> IntArray:
        """``[B]`` what the engine is told before it drafts: as far as each request may go, if it drafts at all."""
        return np.where(self.drafted > 0, self.state.max_num_speculative_tokens, 0)

    def askable(self, depth: int) -> IntArray:
        """Requests that have drafted ``depth`` tokens and may draft another."""
        return np.flatnonzero((self.drafted == depth) & (self.state.max_num_speculative_tokens > depth))

    def tell(
        self, requests: IntArray, chance: NDArray[np.float32], following: NDArray[np.float32], told: ArrayLike
    ) -> None:
        """Enter what is known of a drafted level; arrays are over ``requests``, ``told`` ``[A, 4]``."""
        self._chance[requests] = chance
        self._survival[requests] *= chance
        self._following[requests] = following
        self._told[requests] = np.nan_to_num(np.asarray(told, dtype=np.float64), posinf=100.0)

    def observation(self, request: int) -> FloatArray:
        """``[len(STOP_FEATURES)]`` of the question to ``request``."""
        state, rate = self.state, float(self.state.acceptance_rate[request])
        own = (
            self.drafted[request],
            self._chance[request],
            self._survival[request],
            self._following[request],
            *self._told[request],
            state.temperature[request],
            0.5 if np.isnan(rate) else rate,
            np.log1p(state.lag[request]),
            state.tokens_left[request],
            np.count_nonzero(self.drafted),
            self.drafted.sum(),
            self.price * self._seconds_of_another(request),
        )
        return np.concatenate([self.features, np.asarray(own, dtype=np.float64)])

    def answer(self, request: int, go_on: bool) -> None:
        """Enter the answer to the question that `observation` put."""
        depth = int(self.drafted[request])
        if depth > 0:
            self.asked += 1
            self.asked_levels = max(self.asked_levels, depth)
        self.drafted[request] += go_on

    def seconds(self, drafted: IntArray | None = None) -> float:
        """Seconds of the round by the cost surface, as answered so far (or if ``drafted``), without prefill."""
        drafted, state = self.drafted if drafted is None else drafted, self.state
        parts = round_seconds(
            self.costs,
            state.context_length,
            state.lag,
            state.temperature,
            drafted,
            drafted,
            drafted,
            self.asked_levels,
            self.asked,
            False,
        )
        return float(sum(parts))

    def _seconds_of_another(self, request: int) -> float:
        more = self.drafted.copy()
        more[request] += 1
        return self.seconds(more) - self.seconds()
