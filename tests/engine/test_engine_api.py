"""The engine as a user sees it: blocking, streaming, cancelling, queueing, memory bound, determinism."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from specpilot.controllers import ConstantController, Decision, RoundOutcome, RoundState
from specpilot.engine import Engine, EngineConfig, FinishReason, Pair, RequestError, SamplingParams
from specpilot.tests.support.rounds import seen_rate

from ..support.controllers import RandomController

PARAMS = SamplingParams(max_tokens=24, temperature=0.8, seed=5, ignore_eos=True)
PROMPT = [1, 2, 3, 4, 5]
MakeEngine = Callable[..., Engine]


@pytest.fixture
def make(tiny_pair: Pair) -> MakeEngine:
    def build(length: int = 3, **settings: object) -> Engine:
        config = EngineConfig(**{"max_num_seqs": 3, "max_model_len": 128, **settings})  # type: ignore[arg-type]
        return Engine(tiny_pair, config, ConstantController(length))

    return build


def drain(engine: Engine) -> None:
    while engine.has_work:
        engine.step()


def test_a_stream_is_the_blocking_result_piece_by_piece(make: MakeEngine) -> None:
    (blocking,) = make().generate([PROMPT], PARAMS)
    chunks = list(make().stream(PROMPT, PARAMS))
    assert sum((chunk.token_ids for chunk in chunks), ()) == blocking.token_ids
    assert "".join(chunk.text for chunk in chunks) == blocking.text
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason is FinishReason.LENGTH
    assert len(chunks) > 1


def test_leaving_a_stream_early_cancels_and_frees_the_slot(make: MakeEngine) -> None:
    engine = make(max_num_seqs=1)
    for leave in range(1, 4):
        stream = engine.stream(PROMPT, replace(PARAMS, max_tokens=100))
        for _, _chunk in zip(range(leave), stream, strict=False):
            pass
        stream.close()
        assert not engine.has_work and not engine.scheduler.running and not engine._delivery._results
    assert engine.generate([PROMPT], PARAMS)[0].finish_reason is FinishReason.LENGTH
    assert engine.stats.num_finished == 4


def test_streams_side_by_side_lose_no_text(make: MakeEngine) -> None:
    engine = make()
    expected = make().generate([PROMPT, PROMPT[:2]], PARAMS)
    streams = [engine.stream(PROMPT, PARAMS), engine.stream(PROMPT[:2], PARAMS)]
    texts: list[list[int]] = [[], []]
    open_streams = [0, 1]
    while open_streams:
        for index in list(open_streams):
            chunk = next(streams[index], None)
            if chunk is None:
                open_streams.remove(index)
            else:
                texts[index].extend(chunk.token_ids)
    assert [tuple(text) for text in texts] == [output.token_ids for output in expected]


def test_a_stream_loses_nothing_to_a_blocking_call_in_between(make: MakeEngine) -> None:
    engine = make()
    (expected,) = make().generate([PROMPT], PARAMS)
    stream = engine.stream(PROMPT, PARAMS)
    tokens = list(next(stream).token_ids)
    engine.generate([[7, 8]], PARAMS)
    for chunk in stream:
        tokens.extend(chunk.token_ids)
    assert tuple(tokens) == expected.token_ids


def test_a_stream_of_an_invalid_request_is_refused_at_the_call(make: MakeEngine) -> None:
    engine = make()
    with pytest.raises(RequestError, match="empty"):
        engine.stream([])
    assert not engine.has_work and engine.stats.num_refused == 1


def test_other_requests_go_on_under_a_stream(make: MakeEngine) -> None:
    engine = make()
    other = engine.add_request([9, 9], PARAMS)
    list(engine.stream(PROMPT, PARAMS))
    drain(engine)
    assert engine.take_result(other).token_ids == make().generate([[9, 9]], PARAMS)[0].token_ids


def test_cancelling_a_waiting_request(make: MakeEngine) -> None:
    engine = make(max_num_seqs=1)
    running, waiting, last = (engine.add_request(PROMPT, PARAMS) for _ in range(3))
    engine.step()
    assert engine.cancel(waiting)
    drain(engine)
    cancelled = engine.take_result(waiting)
    assert cancelled.finish_reason is FinishReason.CANCELLED and cancelled.token_ids == () and cancelled.text == ""
    assert engine.take_result(running).token_ids == engine.take_result(last).token_ids


def test_cancelling_in_the_middle_keeps_what_there_is(make: MakeEngine) -> None:
    (whole,) = make().generate([PROMPT], PARAMS)
    engine = make()
    request_id = engine.add_request(PROMPT, PARAMS)
    for _ in range(3):
        engine.step()
    assert engine.cancel(request_id) and engine.cancel(request_id)
    chunks = engine.step()
    assert chunks[0].finish_reason is FinishReason.CANCELLED
    result = engine.take_result(request_id)
    assert 0 < len(result.token_ids) < len(whole.token_ids)
    assert whole.token_ids[: len(result.token_ids)] == result.token_ids and whole.text.startswith(result.text)
    assert not engine.cancel(request_id) and not engine.cancel("nobody")
    with pytest.raises(KeyError):
        engine.take_result(request_id)


def test_cancelling_during_prefill(make: MakeEngine) -> None:
    engine = make(prefill_chunk=4)
    request_id = engine.add_request(list(range(1, 60)), PARAMS)
    engine.step()
    engine.cancel(request_id)
    engine.step()
    assert engine.take_result(request_id).token_ids == () and not engine.scheduler.running


def test_the_end_of_text_token_ends_the_text_unless_ignored(make: MakeEngine, tiny_pair: Pair) -> None:
    (eos,) = tiny_pair.eos_token_ids
    prompts = [[token, token % 7 + 1] for token in range(1, 60)]
    params = SamplingParams(temperature=1.0, max_tokens=40)
    ended = 0
    endless = make(seed=2).generate(prompts, replace(params, ignore_eos=True))
    for going, stopping in zip(endless, make(seed=2).generate(prompts, params), strict=True):
        if eos in going.token_ids:
            ended += 1
            cut = going.token_ids.index(eos) + 1
            assert stopping.token_ids == going.token_ids[:cut]
            assert stopping.finish_reason is FinishReason.STOP
        else:
            assert stopping.token_ids == going.token_ids and stopping.finish_reason is FinishReason.LENGTH
    assert 0 < ended < len(prompts)


def test_a_stop_string_ends_the_text_inside_a_round(make: MakeEngine) -> None:
    (plain,) = make(0).generate([PROMPT], replace(PARAMS, max_tokens=60))
    stop = plain.text[10:12]
    for length in (0, 3, 8):
        (output,) = make(length).generate([PROMPT], replace(PARAMS, max_tokens=60, stop=stop))
        assert output.text == plain.text[: plain.text.index(stop)]
        assert output.finish_reason is FinishReason.STOP
        assert plain.token_ids[: len(output.token_ids)] == output.token_ids


def test_requests_may_arrive_at_any_time(make: MakeEngine) -> None:
    rng = np.random.default_rng(0)
    params = [replace(PARAMS, seed=index) for index in range(30)]
    expected = make(0, max_num_seqs=30).generate([PROMPT] * 30, params)
    engine, ids = make(4), list[str]()
    while len(ids) < 30 or engine.has_work:
        if len(ids) < 30 and rng.random() < 0.5:
            ids.append(engine.add_request(PROMPT, params[len(ids)]))
        engine.step()
    assert [engine.take_result(request_id).token_ids for request_id in ids] == [o.token_ids for o in expected]


def test_a_step_without_work_does_nothing(make: MakeEngine) -> None:
    engine = make()
    assert engine.step() == [] and engine.stats.num_rounds == 0
    assert engine.generate([]) == []


def test_the_memory_bound_cuts_slots(make: MakeEngine, tiny_pair: Pair) -> None:
    full = make(max_num_seqs=8)
    per_slot = full.stats.kv_cache_bytes // 8
    engine = make(max_num_seqs=8, kv_cache_bytes=3 * per_slot + per_slot // 2)
    assert engine.scheduler.num_slots == 3
    assert engine.stats.kv_cache_bytes == 3 * per_slot
    params = [replace(PARAMS, seed=seed) for seed in range(10)]
    outputs = engine.generate([PROMPT] * 10, params)
    assert [o.token_ids for o in outputs] == [o.token_ids for o in full.generate([PROMPT] * 10, params)]
    with pytest.raises(ValueError, match=f"kv_cache_bytes {per_slot - 1} "):
        make(kv_cache_bytes=per_slot - 1)


def test_a_memory_bound_does_not_pay_for_a_drafter_that_is_not_there(tiny_pair: Pair) -> None:
    config = EngineConfig(max_num_seqs=8, max_model_len=64, drafter="ngram")
    engine = Engine(tiny_pair, config)
    bound = engine.stats.kv_cache_bytes
    assert Engine(tiny_pair, replace(config, kv_cache_bytes=bound)).scheduler.num_slots == 8


@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_chunked_prefill_changes_no_text(make: MakeEngine, chunk: int) -> None:
    prompts = [list(range(1, size)) for size in (2, 5, 20, 60, 33)]
    params = [replace(PARAMS, seed=seed) for seed in range(5)]
    whole = make(prefill_chunk=1000).generate(prompts, params)
    engine = make(prefill_chunk=chunk)
    assert [o.token_ids for o in engine.generate(prompts, params)] == [o.token_ids for o in whole]
    assert max(record.prefill_tokens for record in engine.stats.rounds) <= chunk
    assert engine.stats.prefill_tokens == sum(len(prompt) - 1 for prompt in prompts)


@pytest.mark.parametrize("verification", ["coupled", "rejection"])
def test_the_same_run_twice_gives_the_same_text(tiny_pair: Pair, verification: str) -> None:
    def serve() -> list[tuple[int, ...]]:
        config = EngineConfig(max_num_seqs=3, max_model_len=64, verification=verification, seed=9)
        engine = Engine(tiny_pair, config, RandomController(seed=2))
        prompts = [[token, 2] for token in range(1, 12)]
        return [o.token_ids for o in engine.generate(prompts, SamplingParams(temperature=1.0, max_tokens=20))]

    first = serve()
    assert first == serve() and len(set(first)) == len(first)


def test_requests_without_a_seed_get_different_ones(make: MakeEngine) -> None:
    outputs = make().generate([PROMPT] * 6, SamplingParams(temperature=1.0, max_tokens=20))
    assert len({output.token_ids for output in outputs}) == 6


def test_strings_are_prompts(make: MakeEngine, tiny_pair: Pair) -> None:
    text, tokens = make().generate(["def x", tiny_pair.tokenizer("def x")["input_ids"]], PARAMS)
    assert text.token_ids == tokens.token_ids and text.prompt_token_ids == tokens.prompt_token_ids


def test_a_pair_without_drafter_serves_plainly(tiny_pair: Pair) -> None:
    pair = replace(tiny_pair, drafter=None)
    engine = Engine(pair, EngineConfig(max_model_len=64), ConstantController(5))
    plain = Engine(tiny_pair, EngineConfig(max_model_len=64)).generate([PROMPT], PARAMS)
    assert engine.generate([PROMPT], PARAMS)[0].token_ids == plain[0].token_ids
    assert engine.stats.num_drafted == 0


def test_arrivals_are_measured_by_the_clock_that_is_given(tiny_pair: Pair) -> None:
    seen = list[tuple[float, float]]()

    class Watching(ConstantController):
        def decide(self, state: RoundState) -> Decision:
            seen.append(state.arrival_rates)
            return super().decide(state)

    engine, clock = Engine(tiny_pair, EngineConfig(max_model_len=64), Watching(0)), iter(range(100))
    engine.measure_arrivals(lambda: float(next(clock)))
    engine.generate([PROMPT], SamplingParams(max_tokens=3, ignore_eos=True))
    assert seen == [pytest.approx((math.exp(-t), 0.1 * math.exp(-t / 10))) for t in (1, 2, 3)]


def test_the_controller_sees_what_happens(tiny_pair: Pair) -> None:
    class Watching(RandomController):
        def __init__(self) -> None:
            super().__init__(seed=3, stop_probability=0)
            self.states: list[RoundState] = []
            self.outcomes: list[RoundOutcome] = []

        def decide(self, state: RoundState) -> Decision:
            self.states.append(state)
            return super().decide(state)

        def observe(self, outcome: RoundOutcome) -> None:
            self.outcomes.append(outcome)

    watching = Watching()
    engine = Engine(tiny_pair, EngineConfig(max_num_seqs=2, max_model_len=64), watching)
    params = [SamplingParams(max_tokens=20, temperature=t, ignore_eos=True) for t in (0.0, 0.5, 1.0, 0.0)]
    engine.generate([PROMPT] * 4, params)
    assert len(watching.states) == len(watching.outcomes) == engine.stats.num_rounds
    # Four arrivals: 1/tau each when they came, and less as time goes by.
    rates_seen = [state.arrival_rates for state in watching.states]
    assert rates_seen == sorted(rates_seen, reverse=True) and len(set(rates_seen)) == len(rates_seen)
    assert 0 < rates_seen[0][0] < 4.0 and 0 < rates_seen[0][1] < 0.4
    generated = dict[str, int]()
    last = dict[str, tuple[int, int]]()
    rates = dict[str, float]()
    for state, outcome in zip(watching.states, watching.outcomes, strict=True):
        assert 0 <= state.kv_free <= 1 and state.running <= 2 and state.waiting <= 2
        for row, request_id in enumerate(state.request_ids):
            done = generated.get(request_id, 0)
            assert state.num_generated[row] == done and state.context_length[row] == done + len(PROMPT)
            assert state.max_num_speculative_tokens[row] == min(8, 20 - done - 1)
            seen = (int(state.last_num_speculative_tokens[row]), int(state.last_accepted_length[row]))
            assert seen == last.get(request_id, (-1, -1))
            assert state.acceptance_rate[row] == pytest.approx(rates.get(request_id, float("nan")), nan_ok=True)
            drafted, kept = int(outcome.num_drafted[row]), int(outcome.accepted_length[row])
            assert outcome.num_verified[row] == drafted
            assert 0 <= kept <= drafted <= state.max_num_speculative_tokens[row]
            assert outcome.num_committed[row] == kept + 1
            generated[request_id] = done + kept + 1
            last[request_id] = (drafted, kept)
            if drafted:
                rates[request_id] = seen_rate(rates.get(request_id), kept, drafted)
        assert min(outcome.draft_seconds, outcome.verify_seconds, outcome.host_seconds) >= 0
    assert set(generated.values()) == {20}


def test_times_of_a_request_are_in_order(make: MakeEngine) -> None:
    engine = make(max_num_seqs=1)
    first, second = engine.generate([PROMPT] * 2, PARAMS)
    for output in (first, second):
        assert 0 <= output.stats.queue_seconds <= output.stats.first_token_seconds <= output.stats.total_seconds
    assert second.stats.queue_seconds >= first.stats.total_seconds * 0.5
    assert first.stats.mean_accepted_length == first.stats.num_accepted / first.stats.num_drafts
    assert 0 <= first.stats.wasted_draft_ratio <= 1
