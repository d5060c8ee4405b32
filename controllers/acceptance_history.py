"""How likely drafts are accepted, from a request's history alone: before anything is drafted, without a question."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .controller import BoolArray, FloatArray, RoundState

HISTORY_INPUTS = ("log_odds", "no_history", "kept_all", "temperature", "greedy")
"""What the logistics see; see `history_inputs`."""
HISTORY_DEPTHS = 8
"""Depths with a logistic of their own; deeper ones use the last."""
LOWEST_RATE = 0.02


def kept_all(last_num_speculative_tokens: ArrayLike, last_accepted_length: ArrayLike) -> BoolArray:
    """``[...]`` whether a request's last round drafted and every token was accepted."""
    drafted, accepted = np.asarray(last_num_speculative_tokens), np.asarray(last_accepted_length)
    return np.asarray((drafted > 0) & (accepted == drafted))


def history_inputs(acceptance_rate: ArrayLike, whole: ArrayLike, temperature: ArrayLike) -> FloatArray:
    """``[..., 5]`` inputs (`HISTORY_INPUTS`): log odds of the rate, 0 where there is none (NaN); four indicators."""
    rate, heat = np.asarray(acceptance_rate, dtype=np.float64), np.asarray(temperature, dtype=np.float64)
    unknown = np.isnan(rate)
    inside = np.where(unknown, 0.5, np.minimum(np.maximum(rate, LOWEST_RATE), 1 - LOWEST_RATE))
    inputs = np.empty((*rate.shape, len(HISTORY_INPUTS)))
    inputs[..., 0] = np.log(inside / (1 - inside))
    inputs[..., 1] = unknown
    inputs[..., 2] = whole
    inputs[..., 3] = heat
    inputs[..., 4] = heat == 0
    return inputs


class HistoryLogistics:
    """One logistic per depth: the chance that a draft is accepted there, if all before it are."""

    def __init__(self, weight: NDArray[np.float32], bias: NDArray[np.float32]) -> None:
        """``weight`` ``[8, 5]``, ``bias`` ``[8]``."""
        self.numbers: FloatArray = np.concatenate([weight, bias[:, None]], axis=1).astype(np.float64)
        """``[8, 6]``: weights in the order of `HISTORY_INPUTS`, then the constant."""
        self._half_weights, self._half_bias = np.ascontiguousarray(self.numbers[:, :-1].T / 2), self.numbers[:, -1] / 2
        self._rows: list[list[float]] = (self.numbers / 2).tolist()

    def chances(self, acceptance_rate: ArrayLike, whole: ArrayLike, temperature: ArrayLike) -> FloatArray:
        """``[..., 8]`` by depth; arguments as of `history_inputs`."""
        scores: FloatArray = history_inputs(acceptance_rate, whole, temperature) @ self._half_weights
        scores += self._half_bias
        np.tanh(scores, out=scores)  # A sigmoid that cannot overflow.
        scores *= 0.5
        scores += 0.5
        return scores

    def of_state(self, state: RoundState) -> FloatArray:
        """``[B, 8]`` of a round's requests."""
        if len(state.request_ids) == 1:
            return np.asarray([self.of_one(state, HISTORY_DEPTHS)])
        whole = kept_all(state.last_num_speculative_tokens, state.last_accepted_length)
        return self.chances(state.acceptance_rate, whole, state.temperature)

    def of_one(self, state: RoundState, depths: int) -> list[float]:
        """`of_state` of a single request down to ``depths``; here calls of NumPy would outlast the numbers."""
        rate, heat = state.acceptance_rate.item(), state.temperature.item()
        drafted = state.last_num_speculative_tokens.item()
        none = rate != rate
        inside = min(max(rate, LOWEST_RATE), 1 - LOWEST_RATE)
        log_odds = 0.0 if none else math.log(inside / (1 - inside))
        whole = drafted > 0 and state.last_accepted_length.item() == drafted
        found = []
        for of_odds, of_none, of_whole, of_heat, of_greedy, constant in self._rows[:depths]:
            score = of_odds * log_odds + of_heat * heat + constant
            if none:
                score += of_none
            if whole:
                score += of_whole
            if heat == 0:
                score += of_greedy
            found.append(0.5 + 0.5 * math.tanh(score))
        return found
