"""A hand-made table from batch size to speculation length."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .controller import Controller, Decision, RoundState

Row = tuple[int, int | None, int]


class LengthTableController(Controller):
    """The length depends on how many requests run, by a table that somebody has tuned.

    The form of vLLM's ``num_speculative_tokens_per_batch_size`` (pull request 32374): rows ``(low, high, length)``,
    both ends included, length 0 to turn speculation off. The last row's ``high`` may be None: no upper end. A batch
    beyond a closed table gets the last row's length.
    """

    def __init__(self, table: Sequence[Row]) -> None:
        """Raises `ValueError` where rows are malformed, overlap, leave a gap or do not start at 1."""
        check_table(table)
        self.table = tuple((low, high, length) for low, high, length in table)
        self._lows = np.asarray([row[0] for row in table])

    def decide(self, state: RoundState) -> Decision:
        """One length for all: `length_of` `RoundState.running`."""
        return Decision(np.full(len(state.request_ids), self.length_of(state.running), dtype=np.int64))

    def length_of(self, running: int) -> int:
        """Length of the row that holds so many requests."""
        row = max(int(np.searchsorted(self._lows, running, side="right")) - 1, 0)
        return self.table[row][2]


def check_table(table: Sequence[Row]) -> None:
    """Raise `ValueError` where a table does not give every batch size from 1 on exactly one length."""
    if not table:
        raise ValueError("the table has no rows; give at least (1, None, length)")
    for number, row in enumerate(table):
        if len(row) != 3 or any(type(part) is not int for part in row if part is not None) or row[0] is None:
            raise ValueError(f"row {row!r} must be (low, high, length), three integers (high may be None)")
        low, high, length = row
        if high is None and number < len(table) - 1:
            raise ValueError(f"row {row!r} has no upper end but is not the last; give it one")
        if low < 1 or (high is not None and high < low):
            raise ValueError(f"row {row!r} must have 1 <= low <= high")
        if length is None or length < 0:
            raise ValueError(f"row {row!r} must have a length of 0 or more")
    if table[0][0] != 1:
        raise ValueError(f"the first row must start at 1, got {table[0][0]}")
    for (_, high, _), (low, _, _) in pairwise(table):
        if high is not None and low != high + 1:
            problem = "overlap" if low <= high else "leave a gap"
            raise ValueError(f"rows {problem} between {high} and {low}; the next row must start at {high + 1}")
