"""Seconds of one round's passes: a cost table at the batch and context of the round, evaluated as whole rows."""

from __future__ import annotations

import numpy as np

from .controller import FloatArray, IntArray
from .cost_table import CHUNK_STEP, CONTEXT_STEP, CostTable


class RoundCosts:
    """Look-ups of `CostTable`, all at the context that `enter` names; the numbers are those of `interpolate`.

    Between two contexts of the table everything is linear, so rows are kept at the lower one and as a slope.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self._per_round, self._per_request = table.overhead[:2].tolist()
        self._level = np.ascontiguousarray(table.draft[:, 1])
        self._verify = dict[tuple[int, int], tuple[FloatArray, FloatArray]]()
        self.enter(1, 1.0)

    def enter(self, requests: int, longest: float) -> None:
        """Begin a round of ``requests`` whose longest context is ``longest`` tokens."""
        self.batch = batch = min(requests, self.table.max_batch)
        where = longest / CONTEXT_STEP
        self._column = min(int(where), self._level.shape[-1] - 2)
        self._right = where - self._column
        self.plain = self._at_context(self.table.verify[batch, 1]) + self._per_round + batch * self._per_request
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

    def catch_up(self, lags: IntArray) -> FloatArray:
        """``[n]`` seconds of bringing drafters up to date that lag by ``lags`` ``[n]`` tokens, one by one."""
        low_context, slope = self._at_column(self.table.catch_up[1])
        seconds = low_context + self._right * slope
        chunks = np.maximum(lags / CHUNK_STEP, 1.0)
        low = np.minimum(chunks.astype(np.int64), len(seconds) - 2)
        found: FloatArray = seconds[low] + (chunks - low) * (seconds[low + 1] - seconds[low])
        return found
