"""Contenders that take turns on the real pair: everyone serves everything, and the texts are the recorded ones."""

from __future__ import annotations

import gc
from itertools import pairwise, permutations
from typing import Any

import numpy as np

from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, Pair
from specpilot.tests.support.traces import all_at_once
from specpilot.tests.train.test_record import make_requests
from specpilot.train.recording import record_requests
from specpilot.train.turns import Service, take_turns


class ToldTurns(Service):
    """Notes its turns in a list shared by all contenders."""

    def __init__(self, turns: list[tuple[int, int]], place: int, engine: Engine, *served: Any) -> None:
        super().__init__(engine, *served)
        self._turns, self._place = turns, place

    def turn(self, number: int) -> None:
        self._turns.append((number, self._place))
        super().turn(number)


def test_nobody_always_follows_the_same_one(pair: Pair, evaluation_prompts: list[list[int]]) -> None:
    config = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=4)
    trace = record_requests(pair, config, make_requests(evaluation_prompts, 6))
    turns = list[tuple[int, int]]()
    engines = [Engine(pair, config, ConstantController(length)) for length in range(4)]
    services = [ToldTurns(turns, place, engine, trace, all_at_once(trace)) for place, engine in enumerate(engines)]
    take_turns({str(place): service for place, service in enumerate(services)})
    by_number = [sorted(place for own, place in turns if own == number) for number in range(1, turns[-1][0] + 1)]
    assert all(places == [0, 1, 2, 3] for places in by_number), "everyone has each turn once"
    neighbours = {(one, next_one) for (_, one), (_, next_one) in pairwise(turns) if one != next_one}
    assert neighbours == set(permutations(range(4), 2))


def test_everyone_serves_all_requests_with_the_recorded_texts(pair: Pair, evaluation_prompts: list[list[int]]) -> None:
    requests = make_requests(evaluation_prompts, 6)
    config = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=4)
    trace = record_requests(pair, config, requests)
    schedule = all_at_once(trace)._replace(concurrency=np.asarray([3]))

    def service(length: int) -> Service:
        engine = Engine(pair, config, ConstantController(length))
        return Service(engine, trace, schedule)

    services = {name: service(length) for name, length in (("off", 0), ("drafting", 3))}
    take_turns(services)
    assert gc.get_freeze_count() == 0, "what was kept from collection is given back"
    off, drafting = (own.run() for own in services.values())
    assert off.outputs == drafting.outputs
    assert [len(tokens) for tokens in off.outputs] == trace.output_tokens.tolist()
    assert drafting.steps < off.steps
    for run in (off, drafting):
        assert run.seconds < run.request_seconds <= 3 * run.seconds + 1e-6
        assert run.tokens_per_second == sum(trace.output_tokens) / run.seconds
