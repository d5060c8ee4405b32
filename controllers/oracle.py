"""Controllers that see the recording's future: the ceilings that others are measured against.

They maximise gain - price * seconds round by round, where a token counts as `price_rule` says: as one over its
request's tokens per round. What a request makes of its rounds is known after a first pass (`Oracle.weights`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from .controller import Controller, Decision, FloatArray, IntArray, RoundOutcome, RoundState
from .cost_lookup import CostLookup, RoundSetting
from .cost_surface import CostSurface
from .price_rule import descending, padded_tokens


class Foresight(Protocol):
    """Whoever knows the future, usually a recording."""

    def accepted_length(self, request_ids: Sequence[str], num_generated: IntArray) -> IntArray:
        """``[B]`` accepted length of the longest draft from each request's present position."""


class Oracle(Controller):
    """What oracles share: the future, the costs and the price of a second."""

    def __init__(
        self,
        foresight: Foresight,
        surface: CostSurface,
        max_num_speculative_tokens: int,
        price: float | None = None,
        memory: int = 200,
        context_step: int = 64,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        """``price``: tokens that a second is worth, the long-run throughput; None: what its own last rounds earned.

        ``weights``: what a token of each request counts, an earlier pass's `weights`; None: all the same.

        ``memory`` is the number of rounds that this average looks back on. Before the first round the price is what
        plain decoding earns.
        """
        if max_num_speculative_tokens < 1:
            raise ValueError(f"max_num_speculative_tokens must be 1 or more, got {max_num_speculative_tokens}")
        if price is not None and not 0 <= price < np.inf:
            raise ValueError(f"price must be 0 or more tokens per second, got {price}")
        if memory < 1:
            raise ValueError(f"memory must be 1 or more rounds, got {memory}")
        self.foresight = foresight
        self.maximum = max_num_speculative_tokens
        self._costs = CostLookup(surface, context_step)
        self._price = price
        self._forget = 1 - 1 / memory
        self._tokens = self._seconds = 0.0
        self._weights = weights or {}
        self._requests: Sequence[str] = ()
        self._served = dict[str, tuple[int, int]]()
        """Tokens and rounds of each request."""

    @property
    def weights(self) -> dict[str, float]:
        """Mean tokens per round of all rounds of requests so far, over those of each request."""
        tokens, rounds = np.sum(list(self._served.values()), axis=0) if self._served else (1, 1)
        return {name: float(tokens / rounds * own / made) for name, (made, own) in self._served.items()}

    def price(self, setting: RoundSetting) -> float:
        """Tokens that a second is worth now."""
        if self._price is not None:
            return self._price
        if self._seconds > 0:
            return self._tokens / self._seconds
        return setting.batch / float(self._costs.verify(setting, 0)[0])

    def decide(self, state: RoundState) -> Decision:
        """The lengths that gain most: tokens − price · seconds of this round."""
        future = self.foresight.accepted_length(state.request_ids, state.num_generated)
        allowed = np.minimum(state.max_num_speculative_tokens, self.maximum)
        # What a drafter's lag costs is paid once and serves the rest of the request: at least these rounds.
        rounds = np.maximum(state.tokens_left / (self.maximum + 1), 1.0)
        lag = np.where(state.lag > 1, np.ceil(state.lag / rounds), state.lag).astype(np.int64)
        setting = self._costs.setting(state)._replace(lag=lag)
        self._requests = state.request_ids
        weight = np.asarray([self._weights.get(name, 1.0) for name in state.request_ids])
        return Decision(self._best(np.minimum(future, allowed), allowed, weight, setting, self.price(setting)))

    def observe(self, outcome: RoundOutcome) -> None:
        """Update the running throughput, and what each request makes of its rounds."""
        seconds = outcome.draft_seconds + outcome.verify_seconds + outcome.catch_up_seconds + outcome.host_seconds
        self._tokens = self._forget * self._tokens + float(outcome.num_committed.sum())
        self._seconds = self._forget * self._seconds + seconds
        for name, gained in zip(self._requests, outcome.num_committed.tolist(), strict=True):
            made, rounds = self._served.get(name, (0, 0))
            self._served[name] = made + gained, rounds + 1

    def _value(
        self, lengths: IntArray, accepted: IntArray, weight: FloatArray, setting: RoundSetting, price: float
    ) -> FloatArray:
        """``[C]`` weighted tokens beyond the first − price · seconds of the rounds ``lengths`` ``[C, B]``."""
        tokens = np.minimum(lengths, accepted) @ weight
        value: FloatArray = tokens - price * self._costs.round_seconds(setting, lengths)
        return value

    @abstractmethod
    def _best(
        self, accepted: IntArray, allowed: IntArray, weight: FloatArray, setting: RoundSetting, price: float
    ) -> IntArray:
        """``[B]`` lengths."""


class UniformOracle(Oracle):
    """The best common length of every round, knowing what each would be worth."""

    shortest: int = 0
    """Least length it chooses from. At 1 drafters never fall behind, which round by round is worth what it costs."""

    def _best(
        self, accepted: IntArray, allowed: IntArray, weight: FloatArray, setting: RoundSetting, price: float
    ) -> IntArray:
        lengths = np.minimum(np.arange(self.shortest, self.maximum + 1)[:, None], allowed)  # [C, B]
        best: IntArray = lengths[self._value(lengths, accepted, weight, setting, price).argmax()]
        return best


class RequestOracle(Oracle):
    """The best length for each request of every round, knowing how much each would have accepted.

    Nothing is drafted that would be rejected. A draft level is one pass for all, so whether it pays depends on how many
    go on; `best_counts` finds the optimum. Where drafters lag, a request's first draft costs more than another's, and
    with weights its tokens count for more; then single changes follow until none gains, which is the optimum in nearly
    all cases but not proven to be.
    """

    def _best(
        self, accepted: IntArray, allowed: IntArray, weight: FloatArray, setting: RoundSetting, price: float
    ) -> IntArray:
        lag, alike = setting.lag, bool((weight == 1).all())
        bounded = self._best_by_bound(accepted, setting, price)
        lengths: IntArray = bounded[self._value(bounded, accepted, weight, setting, price).argmax()]
        if not accepted.any() or (alike and not lag.any()):
            return lengths
        starts = [lengths, np.zeros_like(lengths), np.where(lag > 1, 0, accepted), np.where(lag > 0, 0, accepted)]
        if not alike:
            heaviest = _heaviest_first(accepted, weight)
            starts.append(heaviest[self._value(heaviest, accepted, weight, setting, price).argmax()])
        found = np.stack([self._climb(start, accepted, weight, setting, price) for start in np.unique(starts, axis=0)])
        best: IntArray = found[self._value(found, accepted, weight, setting, price).argmax()]
        return best

    def _best_by_bound(self, accepted: IntArray, setting: RoundSetting, price: float) -> IntArray:
        """``[C, B]`` the best lengths for every bound on a draft, were there neither lag nor weights.

        A bound says how far attention is padded. Where that costs nothing, the highest one alone.
        """
        costs, overhead, deepest = self._costs, self._costs.surface.overhead, int(accepted.max(initial=0))
        draft, drafting = price * costs.draft(setting), price * setting.drafting
        verify = price * costs.verify(setting, setting.batch * self.maximum)
        padded, found = price * overhead.per_padded_token, []
        for bound in range(1 if padded else deepest, deepest + 1):
            within = np.minimum(accepted, bound)
            missing = np.maximum(setting.batch * bound - np.arange(len(verify)), 0)
            seconds = verify + padded * padded_tokens(missing, setting.batch)
            seconds[0] = verify[0]
            found.append(_lengths(best_counts(within, draft, seconds, drafting), within, setting.lag))
        return np.stack(found) if found else np.zeros((1, setting.batch), dtype=np.int64)

    def _climb(
        self, lengths: IntArray, accepted: IntArray, weight: FloatArray, setting: RoundSetting, price: float
    ) -> IntArray:
        """Make the best change of one request's length (to nothing, all, one more, one less) while it gains."""
        batch, gained = len(accepted), float(self._value(lengths[None], accepted, weight, setting, price)[0])
        requests = np.tile(np.arange(batch), 4)
        while True:
            values = np.concatenate([0 * lengths, accepted, lengths + 1, lengths - 1])
            candidates = np.tile(lengths, (len(values), 1))
            candidates[np.arange(len(values)), requests] = np.clip(values, 0, accepted[requests])
            worth = self._value(candidates, accepted, weight, setting, price)
            best = int(worth.argmax())
            if worth[best] <= gained + 1e-12:
                return lengths
            lengths, gained = candidates[best], float(worth[best])


def _heaviest_first(accepted: IntArray, weight: FloatArray) -> IntArray:
    """``[C, B]`` lengths: for every bound on a draft, all that the first m requests by ``weight`` will accept."""
    rank = descending(weight).argsort()
    bounded = np.minimum(accepted, np.arange(1, int(accepted.max()) + 1)[:, None])  # [K, B]
    chosen = rank < np.arange(1, len(accepted) + 1)[:, None]  # [B, B]
    return (bounded[:, None] * chosen).reshape(-1, len(accepted))


def best_counts(accepted: IntArray, draft: FloatArray, verify: FloatArray, drafting: float = 0.0) -> IntArray:
    """``[K]`` how many requests should draft at each level, so that drafted tokens − cost is largest.

    ``accepted`` ``[B]`` bounds each request's length. Costs are in tokens: ``draft`` ``[B + 1]`` of a level by the
    number of its requests, ``verify`` ``[T + 1]`` of verification by the tokens drafted in all, ``drafting`` of
    drafting at all. Exact for any of them: from the deepest level up, the least draft cost for every (requests that go
    on, tokens from here on).
    """
    batch, deepest = len(accepted), int(accepted.max(initial=0))
    total = int(accepted.sum())
    numbers, tokens = np.arange(batch + 1)[:, None], np.arange(total + 1)
    deeper = np.where(tokens == 0, np.zeros((batch + 1, 1)), np.inf)  # By at most n requests deeper, t tokens.
    source = np.clip(tokens - numbers, 0, None)
    tables = []
    for level in range(deepest, 0, -1):
        able = numbers <= np.count_nonzero(accepted >= level)
        exact = draft[:, None] + np.take_along_axis(deeper, source, axis=1)
        exact = np.where(able & (tokens >= numbers), exact, np.inf)
        tables.append(exact)
        deeper = np.minimum.accumulate(exact, axis=0)
    left = int((tokens - deeper[-1] - verify[: total + 1] - drafting * (tokens > 0)).argmax())
    counts, limit = [], batch
    for exact in reversed(tables):
        limit = int(exact[: limit + 1, left].argmin())
        counts.append(limit)
        left -= limit
    return np.asarray(counts, dtype=np.int64)


def _lengths(counts: IntArray, accepted: IntArray, lag: IntArray) -> IntArray:
    """``[B]`` lengths with ``counts[j]`` requests at level j + 1: those that accept most, the least behind first."""
    order = np.lexsort((lag, -accepted))
    lengths = np.zeros(len(accepted), dtype=np.int64)
    lengths[order] = (np.arange(len(accepted))[:, None] < counts).sum(axis=1)
    return lengths
