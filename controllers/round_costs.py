"""What the policy reads of a cost table, at the batch and context of a round."""

from __future__ import annotations

from .cost_table import CHUNK_STEP, CONTEXT_STEP, CostTable, interpolate


class RoundCosts:
    """Look-ups of `CostTable` at what `enter` names; the numbers are those of `interpolate`.

    Between two contexts of the table everything is linear: kept are the lower one's numbers, and the differences to the
    next.
    """

    def __init__(self, table: CostTable) -> None:
        self._table = table
        self._per_round, self._per_request = table.overhead[:2].tolist()
        self._last = table.verify.shape[-1] - 2
        self._known = dict[tuple[int, int], list[tuple[float, float]]]()
        self.enter(1, 1.0)

    def enter(self, requests: int, longest: float) -> None:
        """Begin a round of ``requests`` whose longest context is ``longest`` tokens."""
        self.batch = batch = min(requests, self._table.max_batch)
        where = longest / CONTEXT_STEP
        column = min(int(where), self._last)
        self._right = right = where - column
        lines = self._known.get((batch, column))
        if lines is None:
            lines = self._known[batch, column] = self._lines(batch, column)
        self._own = lines
        low, more = lines[0]
        self.plain = low + right * more + self._per_round + batch * self._per_request
        """Seconds of the round if nothing is drafted."""

    @property
    def passes(self) -> list[float]:
        """``[4]`` seconds of a draft level of all requests, of verifying a token more for each, of four more, and of
        bringing one drafter up to date with 64 tokens."""
        right = self._right
        return [low + right * more for low, more in self._own[1:]]

    def _lines(self, batch: int, column: int) -> list[tuple[float, float]]:
        """Plain verification and `passes`: at the lower context, and what the next one adds."""
        low, high = self._at(batch, column * CONTEXT_STEP), self._at(batch, (column + 1) * CONTEXT_STEP)
        return [(first, second - first) for first, second in zip(low, high, strict=True)]

    def _at(self, batch: int, context: float) -> list[float]:
        table = self._table
        one, two, five = (float(interpolate(table.verify, batch, tokens, context)) for tokens in (1.0, 2.0, 5.0))
        draft = float(interpolate(table.draft, batch, 1.0, context))
        return [one, draft, two - one, five - one, float(interpolate(table.catch_up, 1, 64 / CHUNK_STEP, context))]
