"""Thousands of requests of every kind through few slots: nothing is lost, everything is freed, the books balance."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from specpilot.engine import Engine, EngineConfig, FinishReason, Pair, RequestError, RequestOutput, SamplingParams
from specpilot.engine.model_drafter import ModelDrafter
from specpilot.engine.ngram_drafter import NgramDrafter

from ..support.controllers import RandomController

NUM_REQUESTS = 2000
STOPS: tuple[tuple[str, ...], ...] = ((), (), ("a",), ("def", "in"), ("é",), ("qq",))


@dataclass
class Books:
    """What was asked and what came back."""

    added: list[str] = field(default_factory=list)
    refused: int = 0
    cancelled: set[str] = field(default_factory=set)
    results: dict[str, RequestOutput] = field(default_factory=dict)
    streamed: dict[str, str] = field(default_factory=dict)
    streamed_tokens: dict[str, list[int]] = field(default_factory=dict)


def random_request(rng: np.random.Generator) -> tuple[list[int], SamplingParams]:
    prompt = rng.integers(1, 73, size=int(rng.integers(1, 25))).tolist()
    params = SamplingParams(
        temperature=float(rng.choice([0.0, 0.6, 1.0, 1.5])),
        top_p=float(rng.choice([1.0, 0.9])),
        top_k=int(rng.choice([0, 10])),
        max_tokens=int(rng.integers(1, 30)),
        stop=STOPS[int(rng.integers(len(STOPS)))],
        ignore_eos=bool(rng.random() < 0.3),
        num_speculative_tokens=[None, None, 0, 3][int(rng.integers(4))],
    )
    return prompt, params


def bad_request(rng: np.random.Generator) -> tuple[list[int], SamplingParams]:
    kinds: list[tuple[list[int], SamplingParams]] = [
        ([], SamplingParams()),
        ([1, 99], SamplingParams()),
        ([1], SamplingParams(temperature=float("nan"))),
        ([1] * 60, SamplingParams(max_tokens=30)),
        ([1], SamplingParams(stop="")),
    ]
    return kinds[int(rng.integers(len(kinds)))]


def serve_all(engine: Engine, rng: np.random.Generator, num_requests: int) -> Books:
    books = Books()
    while len(books.added) < num_requests or engine.has_work:
        for _ in range(int(rng.integers(0, 6))):
            if len(books.added) < num_requests:
                stream = bool(rng.random() < 0.3)
                books.added.append(engine.add_request(*random_request(rng), stream=stream))
                if stream:
                    books.streamed[books.added[-1]] = ""
            if rng.random() < 0.1:
                with pytest.raises(RequestError):
                    engine.add_request(*bad_request(rng))
                books.refused += 1
        if rng.random() < 0.2 and books.added:
            victim = books.added[-1 - int(rng.integers(min(20, len(books.added))))]
            if engine.cancel(victim):
                books.cancelled.add(victim)
        for chunk in engine.step():
            books.streamed_tokens.setdefault(chunk.request_id, []).extend(chunk.token_ids)
            if chunk.request_id in books.streamed:
                books.streamed[chunk.request_id] += chunk.text
            if chunk.finish_reason is not None:
                assert chunk.request_id not in books.results, "a request ended twice"
                books.results[chunk.request_id] = engine.take_result(chunk.request_id)
        assert len(engine.scheduler.running) <= engine.scheduler.num_slots
        assert [request.slot for request in engine.scheduler.running] == list(range(len(engine.scheduler.running)))
    return books


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "verification", "num_candidates"),
    [("model", "coupled", 2), ("model", "rejection", 3), ("ngram", "coupled", 1)],
)
def test_nothing_is_lost(tiny_pair: Pair, drafter: str, verification: str, num_candidates: int) -> None:
    config = EngineConfig(
        max_num_seqs=7,
        max_model_len=64,
        drafter=drafter,
        verification=verification,
        num_candidates=num_candidates,
        prefill_chunk=40,
        catch_up_chunk=30,
    )
    engine = Engine(tiny_pair, config, RandomController(seed=1))
    books = serve_all(engine, np.random.default_rng(0), NUM_REQUESTS)

    assert len(set(books.added)) == NUM_REQUESTS
    assert books.results.keys() == set(books.added)
    reasons = {output.finish_reason for output in books.results.values()}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED}
    for request_id, output in books.results.items():
        assert output.request_id == request_id
        assert (output.finish_reason is FinishReason.CANCELLED) == (request_id in books.cancelled)
        assert tuple(books.streamed_tokens.get(request_id, ())) == output.token_ids
        if request_id in books.streamed:
            assert books.streamed[request_id] == output.text

    assert not engine.has_work and not engine.scheduler.running and not engine.scheduler.waiting
    assert not engine._delivery._results and not engine._delivery._texts
    if isinstance(engine.drafter, NgramDrafter):
        assert not engine.drafter._indexes
    else:
        assert isinstance(engine.drafter, ModelDrafter) and len(engine.drafter._seen) == 7
        assert not engine.drafter._agreement.num_known

    stats, outputs = engine.stats, list(books.results.values())
    assert (stats.num_requests, stats.num_finished, stats.num_refused) == (NUM_REQUESTS, NUM_REQUESTS, books.refused)
    assert stats.num_committed == sum(len(output.token_ids) for output in outputs)
    assert stats.num_drafted == sum(output.stats.num_drafted for output in outputs) > 0
    assert stats.num_verified == sum(output.stats.num_verified for output in outputs) > 0
    assert stats.num_accepted == sum(output.stats.num_accepted for output in outputs) > 0
    assert stats.catch_up_tokens == sum(output.stats.num_catch_up_tokens for output in outputs)
    assert stats.switches == sum(output.stats.num_switches for output in outputs)
    assert stats.num_committed <= stats.num_accepted + sum(output.stats.num_rounds for output in outputs)
    assert stats.rounds[-1].running == stats.rounds[-1].waiting == 0 and stats.rounds[-1].kv_use == 0


def test_a_slot_freed_by_one_request_serves_the_next_as_new(tiny_pair: Pair) -> None:
    """One slot, a hundred requests: each text is what a fresh engine gives."""
    rng = np.random.default_rng(3)
    requests = [random_request(rng) for _ in range(100)]
    prompts = [prompt for prompt, _ in requests]
    params = [SamplingParams(temperature=1.0, seed=index, max_tokens=15) for index in range(100)]
    config = EngineConfig(max_num_seqs=1, max_model_len=64)
    narrow = Engine(tiny_pair, config, RandomController(seed=4)).generate(prompts, params)
    for prompt, own, output in zip(prompts[::5], params[::5], narrow[::5], strict=True):
        (alone,) = Engine(tiny_pair, config, RandomController(seed=9)).generate([prompt], own)
        assert alone.token_ids == output.token_ids and alone.text == output.text
