"""Seconds of one round's passes: a cost table at the batch and context of the round, evaluated as whole rows."""

from __future__ import annotations

import numpy as np

from .controller import FloatArray, IntArray
from .cost_table import CHUNK_STEP, CONTEXT_STEP, CostTable
from .price_rule import (
    ANSWER,
    ASKED,
    DRAFTING,
    LEVEL,
    NOISE,
    REQUEST_LEVEL,
    VERIFIED,
    RoundSeconds,
    verify_curve,
)

_CACHED_ROWS = 1024


class RoundCosts:
    """Look-ups of `CostTable`, all at the context that `enter` names; the numbers are those of `interpolate`.

    Between two contexts of the table everything is linear, so rows are kept at the lower one and as a slope.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self.work: list[float] = table.overhead.tolist()
        self.fixed, self.per_level, self.noise = self.work[DRAFTING], self.work[LEVEL], self.work[NOISE]
        self.look, self.answer = self.work[ASKED], self.work[ANSWER]
        self._level = np.ascontiguousarray(table.draft[:, 1])
        self._rows = dict[tuple[int, int, int], tuple[FloatArray, FloatArray]]()
        self._verify = dict[tuple[int, int], tuple[FloatArray, FloatArray]]()
        self.enter(1, 1.0)

    def enter(self, requests: int, longest: float) -> None:
        """Begin a round of ``requests`` whose longest context is ``longest`` tokens."""
        self.requests = requests
        self.batch = batch = min(requests, self.table.max_batch)
        where = longest / CONTEXT_STEP
        self._column = min(int(where), self._level.shape[-1] - 2)
        self._right = where - self._column
        self.plain = self._at_context(self.table.verify[batch, 1]) + self.work[0] + batch * self.work[1]
        """Seconds of the round if nothing is drafted."""

    @property
    def verify(self) -> list[float]:
        """``[K + 3]`` seconds of verification by tokens per request."""
        known = self._verify.get((self.batch, self._column))
        if known is None:
            known = self._verify[self.batch, self._column] = self._at_column(self.table.verify[self.batch])
        found: list[float] = (known[0] + self._right * known[1]).tolist()
        return found

    def _at_column(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``[n]`` each of ``rows`` ``[n, C]``: the lower context's, and the difference to the next."""
        low = rows[:, self._column]
        return low.copy(), rows[:, self._column + 1] - low

    def _at_context(self, row: FloatArray) -> float:
        """What a row over contexts says."""
        low = float(row[self._column])
        found: float = low + self._right * (float(row[self._column + 1]) - low)
        return found

    def draft_of(self, count: int) -> float:
        """Seconds of a draft level of ``count`` requests, its pass alone."""
        return self._at_context(self._level[min(count, self.table.max_batch)])

    @property
    def level_of_one(self) -> float:
        """Seconds of a draft level of one request that is greedy, the host's part included."""
        found: float = self.draft_of(1) + self.work[REQUEST_LEVEL] + self.per_level
        return found

    @property
    def stop(self) -> float:
        """`RoundSeconds.stop`."""
        return self._at_context(self.table.catch_up[1, 1])

    def seconds(self, max_length: int) -> RoundSeconds:
        """Of the round, for drafts of up to ``max_length`` tokens."""
        key = (self.requests, self._column, max_length)
        known = self._rows.get(key)
        if known is None:
            if len(self._rows) >= _CACHED_ROWS:
                self._rows.clear()
            known = self._rows[key] = self._new_rows(max_length)
        whole, levels = known[0] + self._right * known[1], self.requests + 1
        rest = (self.fixed, self.per_level, self.noise, self.stop, self.look, self.answer)
        return RoundSeconds(self.plain, whole[:levels], whole[levels:], *rest)

    def _new_rows(self, max_length: int) -> tuple[FloatArray, FloatArray]:
        """Draft levels and curve end to end, at the lower context and the difference to the next."""
        counts, tokens = np.arange(self.requests + 1), np.arange(self.requests * max_length + 1)
        levels, verify = self._at_column(self._level), self._at_column(self.table.verify[self.batch])
        found = list[FloatArray]()
        drafting = self.batch * (counts > 0) if self.table.drafts_whole_batch else counts
        for at, work in ((0, 1.0), (1, 0.0)):
            draft = levels[at][np.minimum(drafting, self.table.max_batch)] + work * self.work[REQUEST_LEVEL] * counts
            draft[0] = 0.0
            curve = verify_curve(verify[at], self.batch, len(tokens) - 1) + work * self.work[VERIFIED] * tokens
            found.append(np.concatenate([draft, curve]))
        return found[0], found[1]

    def curve_of_one(self, count: int) -> list[float]:
        """`RoundSeconds.curve` of a round of one request."""
        verify, host, last = self.verify, self.work[VERIFIED], len(self.verify) - 2
        if count < last:  # At whole tokens per request nothing is interpolated.
            return [verify[1 + drafted] + host * drafted for drafted in range(count + 1)]
        found: list[float] = self.seconds(count).curve.tolist()
        return found

    def catch_up(self, lags: IntArray) -> FloatArray:
        """``[n]`` seconds of bringing drafters up to date that lag by ``lags`` ``[n]`` tokens, one by one."""
        low_context, slope = self._at_column(self.table.catch_up[1])
        seconds = low_context + self._right * slope
        chunks = np.maximum(lags / CHUNK_STEP, 1.0)
        low = np.minimum(chunks.astype(np.int64), len(seconds) - 2)
        found: FloatArray = seconds[low] + (chunks - low) * (seconds[low + 1] - seconds[low])
        return found
