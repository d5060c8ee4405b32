"""Seconds of one round's passes: a cost table at the batch and context of the round, evaluated as whole rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np

from .controller import FloatArray, IntArray
from .cost_table import CHUNK_STEP, CONTEXT_STEP, CostTable
from .price_rule import ANSWER, ASKED, DRAFTING, LEVEL, NOISE, REQUEST_LEVEL, VERIFIED, verify_curve

T = TypeVar("T")
_CACHED_ROWS = 1024


class RoundRows(NamedTuple):
    """What a round of ``B`` requests that may draft ``L`` tokens each can cost, in seconds."""

    draft: FloatArray
    """``[B + 1]`` a draft level by requests, with what each of them costs beside the pass."""
    curve: FloatArray
    """``[B * L + 1]`` verifying that many drafted tokens: `price_rule.verify_curve` with the host's part."""
    plans: FloatArray
    """``[L, B]`` l + 1 tokens drafted by the first m + 1 requests, all in all, beyond a round without speculation."""


class PlanRows(NamedTuple):
    """What a round of ``B`` requests costs that is not asked, in seconds; `RoundRows` without the questions."""

    step: FloatArray
    """``[B + 1]`` what the n-th request of a draft level adds; the first one also the level's own seconds."""
    beyond: FloatArray
    """``[B * L + 1]`` drafting at all and verifying that many drafted tokens, beyond a round without speculation."""
    stop: float
    """Letting a drafter fall behind: what the shortest catch-up will cost."""


class RoundCosts:
    """Look-ups of `CostTable`, all at the context that `enter` names; the numbers are those of `interpolate`.

    Between two contexts of the table everything is linear, so rows are kept at the lower one and as a slope.
    """

    def __init__(self, table: CostTable) -> None:
        self.table = table
        self.work: list[float] = table.overhead.tolist()
        self.fixed, self.per_level = self.work[DRAFTING], self.work[LEVEL] + self.work[ASKED]
        self.per_draft = self.work[REQUEST_LEVEL] + self.work[ANSWER]
        self.unasked_level, self.unasked_draft = self.work[LEVEL], self.work[REQUEST_LEVEL]
        """As ``per_level`` and ``per_draft`` where no question is asked."""
        self.noise = self.work[NOISE]
        self._level = np.ascontiguousarray(table.draft[:, 1])
        self._rows = dict[tuple[int, int, int], tuple[RoundRows, RoundRows]]()
        self._plans = dict[tuple[int, int, int], tuple[FloatArray, FloatArray]]()
        self._verify = dict[tuple[int, int], tuple[FloatArray, FloatArray]]()
        self.enter(1, 1.0)

    def enter(self, requests: int, longest: float) -> None:
        """Begin a round of ``requests`` whose longest context is ``longest`` tokens."""
        self.requests = requests
        self.batch = batch = min(requests, self.table.max_batch)
        where = longest / CONTEXT_STEP
        self._column = column = min(int(where), self._level.shape[-1] - 2)
        self._right = where - column
        known = self._verify.get((batch, column))
        if known is None:
            known = self._verify[batch, column] = self._at_column(self.table.verify[batch])
        self.verify: list[float] = (known[0] + self._right * known[1]).tolist()
        """``[K + 3]`` seconds of verification by tokens per request."""
        self.plain = self.verify[1] + self.work[0] + batch * self.work[1]
        """Seconds of the round if nothing is drafted."""

    def _at_column(self, rows: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``[n]`` each of ``rows`` ``[n, C]``: the lower context's, and the difference to the next."""
        low = rows[:, self._column]
        return low.copy(), rows[:, self._column + 1] - low

    def draft_of(self, count: int) -> float:
        """Seconds of a draft level of ``count`` requests, its pass alone."""
        row = self._level[min(count, self.table.max_batch)]
        low = float(row[self._column])
        found: float = low + self._right * (float(row[self._column + 1]) - low)
        return found

    def _kept(self, kept: dict[tuple[int, int, int], T], make: Callable[[int], T], max_length: int) -> T:
        """What ``make`` gives for this round's requests and context; made once."""
        key = (self.requests, self._column, max_length)
        known = kept.get(key)
        if known is None:
            if len(kept) >= _CACHED_ROWS:
                kept.clear()
            known = kept[key] = make(max_length)
        return known

    def rows(self, max_length: int) -> RoundRows:
        """For drafts of up to ``max_length`` tokens."""
        known = self._kept(self._rows, self._new_rows, max_length)
        right = self._right
        return RoundRows(*(low + right * slope for low, slope in zip(*known, strict=True)))

    def _new_rows(self, max_length: int) -> tuple[RoundRows, RoundRows]:
        """At the lower context, and the difference to the next."""
        counts, tokens = np.arange(self.requests + 1), np.arange(self.requests * max_length + 1)
        found = []
        for levels, verify, work in zip(
            self._at_column(self._level), self._at_column(self.table.verify[self.batch]), (1.0, 0.0), strict=True
        ):
            draft = levels[np.minimum(counts, self.table.max_batch)] + work * self.per_draft * counts
            curve = verify_curve(verify, self.batch, len(tokens) - 1) + work * self.work[VERIFIED] * tokens
            length = np.arange(1, max_length + 1)[:, None]
            plans = work * self.fixed + length * (draft[1:] + work * self.per_level)
            found.append(RoundRows(draft, curve, plans + curve[length * counts[1:]] - curve[0]))
        return found[0], found[1]

    def plan_rows(self, max_length: int) -> PlanRows:
        """For drafts of up to ``max_length`` tokens whose lengths are planned before the round."""
        low, slope = self._kept(self._plans, self._new_plan, max_length)
        whole = low + self._right * slope
        levels = self.requests + 1
        return PlanRows(whole[:levels], whole[levels:-1], whole.item(-1))

    def _new_plan(self, max_length: int) -> tuple[FloatArray, FloatArray]:
        """`PlanRows` end to end, at the lower context and the difference to the next."""
        found = []
        stops = self._at_column(self.table.catch_up[1])
        for rows, stop, work in zip(self._new_rows(max_length), stops, (1.0, 0.0), strict=True):
            draft = rows.draft - work * (self.per_draft - self.unasked_draft) * np.arange(len(rows.draft))
            step = np.diff(draft, prepend=0.0)
            step[0], step[1] = 0.0, draft[1] + work * self.unasked_level
            beyond = rows.curve - rows.curve[0] + work * self.fixed
            found.append(np.concatenate([step, beyond, stop[1:2]]))
        return found[0], found[1]

    def curve_of_one(self, count: int) -> list[float]:
        """`RoundRows.curve` of a round of one request."""
        verify, host, last = self.verify, self.work[VERIFIED], len(self.verify) - 2
        if count < last:  # At whole tokens per request nothing is interpolated.
            return [verify[1 + drafted] + host * drafted for drafted in range(count + 1)]
        found: list[float] = self.rows(count).curve.tolist()
        return found

    def catch_up(self, lags: IntArray) -> FloatArray:
        """``[n]`` seconds of bringing drafters up to date that lag by ``lags`` ``[n]`` tokens, one by one."""
        low_context, slope = self._at_column(self.table.catch_up[1])
        seconds = low_context + self._right * slope
        chunks = np.maximum(lags / CHUNK_STEP, 1.0)
        low = np.minimum(chunks.astype(np.int64), len(seconds) - 2)
        found: FloatArray = seconds[low] + (chunks - low) * (seconds[low + 1] - seconds[low])
        return found
