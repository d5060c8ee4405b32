"""Contenders that take turns on the real pair: everyone serves everything, and the texts are the recorded ones."""

from __future__ import annotations

import gc

import numpy as np

from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, Pair
from specpilot.tests.support.traces import all_at_once
from specpilot.tests.train.test_record import make_requests
from specpilot.train.recording import record_requests
from specpilot.train.turns import Service, take_turns


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
