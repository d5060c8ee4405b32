"""Seconds of one round's passes: a cost table at the batch and context of the round, evaluated as whole rows."""

from __future__ import annotations

import numpy as np

from .controller import FloatArray, IntArray
from .cost_table import CHUNK_STEP, CONTEXT_STEP, CostTable
from .price_rule import ANSWER, ASKED, DRAFTING, LEVEL, REQUEST_LEVEL, VERIFIED

_CACHED_SHAPES = 256


class RoundCosts:
    """Look-ups of `CostTable`, all at the context that `enter` names; the numbers are `interpolate`'s."""

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self.work: list[float] = table.overhead.tolist()
        self.fixed, self.per_level = self.work[DRAFTING], self.work[LEVEL] + self.work[ASKED]
        self.per_draft = self.work[REQUEST_LEVEL] + self.work[ANSWER]
        self._level = np.ascontiguousarray(table.draft[:, 1])
        self._shapes = dict[tuple[int, int], tuple[IntArray, FloatArray, FloatArray]]()
        self.enter(1, 1.0)

    def enter(self, requests: int, longest: float) -> None:
        """Begin a round of ``requests`` whose longest context is ``longest`` tokens."""
        self.requests = requests
        self.batch = batch = min(requests, self.table.max_batch)
        where = longest / CONTEXT_STEP
        self._column = min(int(where), self._level.shape[-1] - 2)
        self._right = where - self._column
        self._verify = self._at(self.table.verify[batch])
        self.verify: list[float] = self._verify.tolist()
        self.plain = self.verify[1] + self.work[0] + batch * self.work[1]
        """Seconds of the round if nothing is drafted."""

    def _at(self, rows: FloatArray) -> FloatArray:
        """``[n]`` of ``rows`` ``[n, C]`` at the round's context."""
        low = rows[:, self._column]
        found: FloatArray = low + self._right * (rows[:, self._column + 1] - low)
        return found

    def draft_of(self, count: int) -> float:
        """Seconds of a draft level of ``count`` requests, its pass alone."""
        row = self._level[min(count, self.table.max_batch)]
        low = float(row[self._column])
        found: float = low + self._right * (float(row[self._column + 1]) - low)
        return found

    def draft(self) -> FloatArray:
        """``[B + 1]`` seconds of a draft level by requests, with what each of them costs beside the pass."""
        if self.requests <= self.table.max_batch:
            rows = self._level[: self.requests + 1]
        else:
            rows = self._level[np.minimum(np.arange(self.requests + 1), self.table.max_batch)]
        found: FloatArray = self._at(rows) + self.per_draft * np.arange(self.requests + 1)
        return found

    def curve(self, count: int) -> FloatArray:
        """``[count + 1]`` seconds of verifying that many drafted tokens: `verify_curve` with the host's part."""
        low, weight, host = self._shapes.get((self.batch, count)) or self._shape(count)
        start = self._verify[low]
        found: FloatArray = start + weight * (self._verify[low + 1] - start) + host
        return found

    def _shape(self, count: int) -> tuple[IntArray, FloatArray, FloatArray]:
        counts: IntArray = np.arange(count + 1)
        tokens: FloatArray = (1.0 + counts / self.batch).astype(np.float64)
        low: IntArray = np.minimum(tokens.astype(np.int64), len(self._verify) - 2)
        if len(self._shapes) >= _CACHED_SHAPES:
            self._shapes.clear()
        weight: FloatArray = tokens - low
        host: FloatArray = self.work[VERIFIED] * counts
        self._shapes[self.batch, count] = low, weight, host
        return low, weight, host

    def curve_of_one(self, count: int) -> list[float]:
        """`curve` of a round of one request."""
        verify, host, last = self.verify, self.work[VERIFIED], len(self.verify) - 2
        if count < last:  # At whole tokens per request nothing is interpolated.
            return [verify[1 + drafted] + host * drafted for drafted in range(count + 1)]
        found: list[float] = self.curve(count).tolist()
        return found

    def catch_up(self, lags: IntArray) -> FloatArray:
        """``[n]`` seconds of bringing drafters up to date that lag by ``lags`` ``[n]`` tokens, one by one."""
        seconds = self._at(self.table.catch_up[min(1, self.table.max_batch)])
        chunks = np.maximum(lags / CHUNK_STEP, 1.0)
        low = np.minimum(chunks.astype(np.int64), len(seconds) - 2)
        found: FloatArray = seconds[low] + (chunks - low) * (seconds[low + 1] - seconds[low])
        return found
