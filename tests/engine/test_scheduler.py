"""First come, first served; slots in use are always the first ones; prefill is bounded."""

from __future__ import annotations

import numpy as np

from specpilot.engine import SamplingParams
from specpilot.engine.request import Phase, Request
from specpilot.engine.scheduler import Scheduler


def request(name: str, num_prompt_tokens: int = 5) -> Request:
    return Request(name, [1] * num_prompt_tokens, num_prompt_tokens, SamplingParams(), 0)


def test_requests_are_admitted_in_order_of_arrival() -> None:
    scheduler = Scheduler(2, 10)
    scheduler.waiting.extend(request(name) for name in "abcd")
    assert [r.request_id for r in scheduler.admit()] == ["a", "b"]
    assert scheduler.admit() == []
    scheduler.release(scheduler.running[0], lambda *_: None)
    assert [r.request_id for r in scheduler.admit()] == ["c"]
    assert [r.request_id for r in scheduler.waiting] == ["d"]


def test_a_prompt_of_one_token_needs_no_prefill() -> None:
    scheduler = Scheduler(2, 10)
    scheduler.waiting.extend([request("one", 1), request("two", 2)])
    assert [r.phase for r in scheduler.admit()] == [Phase.DECODE, Phase.PREFILL]
    assert [r.request_id for r in scheduler.decoding()] == ["one"]
    assert [(r.request_id, count) for r, count in scheduler.prefill_plan()] == [("two", 1)]


def test_prefill_is_bounded_over_all_requests_and_leaves_the_last_prompt_token() -> None:
    scheduler = Scheduler(4, 10)
    scheduler.waiting.extend([request("a", 5), request("b", 9), request("c", 30), request("d", 3)])
    scheduler.admit()
    plans = []
    while plan := scheduler.prefill_plan():
        plans.append([(r.request_id, count) for r, count in plan])
        for r, count in plan:
            r.num_cached += count
            if r.num_cached == r.num_prompt_tokens - 1:
                r.phase = Phase.DECODE
    assert plans == [[("a", 4), ("b", 6)], [("b", 2), ("c", 8)], [("c", 10)], [("c", 10)], [("c", 1), ("d", 2)]]


def test_slots_in_use_stay_dense_whoever_leaves() -> None:
    rng = np.random.default_rng(0)
    scheduler, contents = Scheduler(6, 10), dict[int, str]()

    def move(source: int, destination: int, length: int) -> None:
        assert source == len(scheduler.running) and destination < source
        contents[destination] = contents.pop(source)

    for index in range(300):
        scheduler.waiting.append(request(f"r{index}"))
        for admitted in scheduler.admit():
            contents[admitted.slot] = admitted.request_id
        while scheduler.running and rng.random() < 0.45:
            leaving = scheduler.running[int(rng.integers(len(scheduler.running)))]
            slot = leaving.slot
            del contents[slot]
            scheduler.release(leaving, move)
            assert leaving.slot == -1
        assert [r.slot for r in scheduler.running] == list(range(len(scheduler.running)))
        assert contents == {r.slot: r.request_id for r in scheduler.running}
