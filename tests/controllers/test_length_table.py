"""The table of lengths: every batch size has one row, and a table that does not say so is refused."""

from __future__ import annotations

from typing import Any

import pytest

from specpilot.controllers import LengthTableController
from specpilot.tests.support.rounds import round_state

TABLE = [(1, 16, 5), (17, 32, 3), (33, 128, 0)]


@pytest.mark.parametrize(("running", "length"), [(1, 5), (16, 5), (17, 3), (32, 3), (33, 0), (128, 0), (500, 0)])
def test_the_length_is_that_of_the_row_that_holds_the_running_batch(running: int, length: int) -> None:
    decision = LengthTableController(TABLE).decide(round_state(3, running=running))
    assert decision.num_speculative_tokens.tolist() == [length] * 3


def test_the_last_row_may_be_open() -> None:
    controller = LengthTableController([(1, 4, 6), (5, None, 2)])
    assert controller.decide(round_state(1, running=1000)).num_speculative_tokens.tolist() == [2]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "no rows"),
        ([(2, 4, 1)], "must start at 1, got 2"),
        ([(1, 4, 1), (4, 8, 2)], "overlap between 4 and 4"),
        ([(1, 4, 1), (6, 8, 2)], "leave a gap between 4 and 6"),
        ([(1, None, 1), (5, 8, 2)], "no upper end"),
        ([(1, 4, 1), (5, 3, 2)], "1 <= low <= high"),
        ([(0, 4, 1)], "1 <= low <= high"),
        ([(1, 4, -1)], "length of 0 or more"),
        ([(1, 4, None)], "length of 0 or more"),
        ([(1, 4)], "three integers"),
        ([(1, 4, 2.0)], "three integers"),
        ([(None, 4, 2)], "three integers"),
    ],
)
def test_a_table_that_leaves_a_batch_size_open_is_refused(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthTableController(table)
