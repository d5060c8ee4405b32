"""A decision stands for a step more while nearly all of its requests are there, and new ones get what is usual."""

from __future__ import annotations

from typing import Any

import pytest

from specpilot.engine.vllm.drafts import DraftLengths
from specpilot.engine.vllm.state import DecodingBatch, RequestHistory

ROOM = 100


class Drafts:
    """vLLM's ``DraftTokenIds``, as far as it is read."""

    def __init__(self, names: list[str], count: int) -> None:
        self.req_ids, self.draft_token_ids = names, [list(range(count)) for _ in names]


class Request:
    """A request with room for everything."""

    max_tokens, num_tokens, num_output_tokens = ROOM, 10, 0


class Scheduler:
    max_model_len = ROOM
    requests = dict.fromkeys("abcdefghijk", Request())


def batch(names: str, left: int = ROOM) -> DecodingBatch:
    """Of requests that may each still generate ``left`` tokens."""
    histories, count = [RequestHistory() for _ in names], len(names)
    return DecodingBatch(names=tuple(names), histories=histories, contexts=[10] * count, left=[left] * count)


def verified(lengths: DraftLengths, names: str, drafted: int = 6) -> list[int]:
    drafts: Any = Drafts(list(names), drafted)
    scheduler: Any = Scheduler()
    lengths.note(drafts, scheduler)
    return [len(tokens) for tokens in drafts.draft_token_ids]


def given(names: str, own: list[int]) -> DraftLengths:
    lengths = DraftLengths(8, can_trim=True)
    lengths.give(batch(names), own, ROOM)
    return lengths


def test_the_same_requests_keep_their_lengths() -> None:
    lengths = given("abcd", [1, 2, 3, 6])
    assert lengths.give_again(batch("abcd"), ROOM)
    assert verified(lengths, "abcd") == [1, 2, 3, 6]


def test_a_newcomer_among_many_gets_what_the_others_have_in_the_mean() -> None:
    lengths = given("abcdefghij", [1, 2, 3, 6, 1, 2, 3, 6, 3, 6])
    assert lengths.give_again(batch("bcdefghijk"), ROOM)
    assert verified(lengths, "bcdefghijk") == [2, 3, 6, 1, 2, 3, 6, 3, 6, 4]
    assert lengths.give_again(batch("cdefghijk"), ROOM) is False, "two of ten have gone"


@pytest.mark.parametrize("names", ["abef", "efgh", "e", "abcde", "abc"])
def test_where_more_than_a_tenth_came_or_went_the_controller_is_to_be_asked(names: str) -> None:
    assert not given("abcd", [1, 2, 3, 6]).give_again(batch(names), ROOM)


def test_a_burst_that_comes_in_one_by_one_is_seen() -> None:
    names = "abcdefghijklmnopqrstuvwxyz"
    lengths = given(names[:10], [4] * 10)
    again = [lengths.give_again(batch(names[:count]), ROOM) for count in range(10, 16)]
    assert again == [True, True, False, False, False, False]


@pytest.mark.parametrize(("stretch", "most"), [(1.0, 1), (2.0, 2), (5.0, 2)])
def test_who_is_to_be_asked_seldom_lets_more_come_or_go_but_no_more_than_a_quarter(stretch: float, most: int) -> None:
    names = "abcdefghijklmnop"
    for changed in range(5):
        came = given(names[:10], [4] * 10).give_again(batch(names[: 10 + changed]), ROOM, stretch)
        went = given(names[:10], [4] * 10).give_again(batch(names[: 10 - changed]), ROOM, stretch)
        assert came == went == (changed <= most)


def test_after_a_failure_nothing_stands() -> None:
    lengths = given("abcd", [1, 2, 3, 6])
    lengths.clear()
    assert not lengths.give_again(batch("abcd"), ROOM)
    assert verified(lengths, "abcd") == [6, 6, 6, 6]
