"""The in-process engine: texts, cancelling, the controller's lengths, another thread."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specpilot.controllers import ConstantController, Decision, RoundOutcome, RoundState
from specpilot.engine import RequestError, SamplingParams
from specpilot.engine.request import FinishReason
from specpilot.engine.vllm.engine import STOCK, VllmEngine, VllmEngineConfig, VllmEngineError

vllm = pytest.importorskip("vllm")
LONGEST = 4


class Watched(ConstantController):
    """A constant that notes what it is told."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.states, self.outcomes = list[RoundState](), list[RoundOutcome]()

    def decide(self, state: RoundState) -> Decision:
        self.states.append(state)
        return super().decide(state)

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)

    @property
    def drafted(self) -> int:
        return int(sum(own.num_drafted.sum() for own in self.outcomes))


def config(directory: Path, **values: object) -> VllmEngineConfig:
    own = {"max_num_seqs": 4, "max_model_len": 256, "max_num_speculative_tokens": LONGEST} | values
    return VllmEngineConfig(str(directory / "target"), str(directory / "drafter"), **own)


@pytest.fixture(scope="module")
def engine(pair_directory: Path) -> VllmEngine:
    return VllmEngine(config(pair_directory))


@pytest.fixture(scope="module")
def plain(pair_directory: Path) -> VllmEngine:
    own = config(pair_directory)
    return VllmEngine(
        VllmEngineConfig(own.target, None, own.max_num_seqs, own.max_model_len, scheduler=STOCK), controller=None
    )


def texts(engine: VllmEngine, prompts: list[list[int]], max_tokens: int = 24) -> list[tuple[int, ...]]:
    names = [engine.add_request(prompt, SamplingParams(max_tokens=max_tokens)) for prompt in prompts]
    while engine.has_work:
        engine.step()
    return [engine.take_result(name).token_ids for name in names]


@pytest.fixture
def prompts(evaluation_prompts: list[list[int]]) -> Iterator[list[list[int]]]:
    yield evaluation_prompts[:6]


def test_texts_do_not_depend_on_the_length(engine: VllmEngine, plain: VllmEngine, prompts: list[list[int]]) -> None:
    expected = texts(plain, prompts)
    assert all(0 < len(text) <= 24 for text in expected)
    drafted = []
    for length in (0, 1, LONGEST):
        engine.controller = controller = Watched(length)
        assert texts(engine, prompts) == expected
        drafted.append(controller.drafted)
        assert all((own.num_drafted <= length).all() for own in controller.outcomes)
    assert drafted[0] == 0 < drafted[1] < drafted[2]


def test_a_step_tells_what_each_request_gained(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine.controller = controller = Watched(2)
    name = engine.add_request(prompts[0], SamplingParams(max_tokens=9, ignore_eos=True))
    gained = list[int]()
    while engine.has_work:
        chunks = engine.step()
        assert [chunk.request_id for chunk in chunks] == [name] * len(chunks)
        gained += [len(chunk.token_ids) for chunk in chunks]
    result = engine.take_result(name)
    assert result.finish_reason is FinishReason.LENGTH and len(result.token_ids) == sum(gained) == 9
    assert [int(own.num_committed.sum()) for own in controller.outcomes] == gained
    with pytest.raises(KeyError):
        engine.take_result(name)


def test_a_cancelled_request_keeps_what_it_has(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine.controller = ConstantController(2)
    kept, dropped = (
        engine.add_request(prompt, SamplingParams(max_tokens=30, ignore_eos=True)) for prompt in prompts[:2]
    )
    seen = list[int]()
    for _ in range(4):
        seen += [token for chunk in engine.step() if chunk.request_id == dropped for token in chunk.token_ids]
    assert engine.cancel(dropped) and not engine.cancel(dropped) and not engine.cancel("nobody")
    ends = {chunk.request_id: chunk.finish_reason for chunk in engine.step()}
    assert ends[dropped] is FinishReason.CANCELLED and engine.take_result(dropped).token_ids == tuple(seen)
    while engine.has_work:
        engine.step()
    assert len(engine.take_result(kept).token_ids) == 30


def test_more_requests_than_slots_wait(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine.controller = controller = Watched(1)
    texts(engine, prompts)
    assert max(state.running for state in controller.states) == 4
    assert max(state.waiting for state in controller.states) == 2


def test_another_thread_may_go_on(engine: VllmEngine, prompts: list[list[int]]) -> None:
    engine.controller = ConstantController(2)
    expected, found = texts(engine, prompts), list[tuple[int, ...]]()
    worker = threading.Thread(target=lambda: found.extend(texts(engine, prompts)))
    worker.start()
    worker.join()
    assert found == expected == texts(engine, prompts)


@pytest.mark.parametrize("prompt, limit", [([], 8), ([5] * 250, 8)])
def test_what_can_never_fit_is_refused(engine: VllmEngine, prompt: list[int], limit: int) -> None:
    with pytest.raises(RequestError, match="max_model_len 256"):
        engine.add_request(prompt, SamplingParams(max_tokens=limit))
    assert not engine.has_work


def test_a_stock_engine_takes_no_controller(plain: VllmEngine) -> None:
    with pytest.raises(VllmEngineError, match="takes no controller"):
        plain.controller = ConstantController(1)


def test_the_stock_table_is_followed(pair_directory: Path, prompts: list[list[int]], plain: VllmEngine) -> None:
    """At one request K = 3, above none: seen in the drafts that vLLM schedules for verification."""
    stock = VllmEngine(config(pair_directory, scheduler=STOCK, table=((1, 1, 3), (2, None, 0)), max_num_seqs=2))
    assert stock.scheduler.num_spec_tokens == LONGEST
    planned, after = list[tuple[int, int]](), stock.scheduler._update_after_schedule

    def note(output: object) -> None:
        drafts = output.scheduled_spec_decode_tokens.values()  # type: ignore[attr-defined]
        planned.append((len(output.num_scheduled_tokens), max(map(len, drafts), default=0)))  # type: ignore[attr-defined]
        after(output)

    stock.scheduler._update_after_schedule = note
    assert texts(stock, prompts[:1]) == texts(plain, prompts[:1])
    assert {longest for batch, longest in planned} <= {0, 1, 2, 3} and max(longest for _, longest in planned) == 3
    planned.clear()
    assert texts(stock, prompts[:2], 8) == texts(plain, prompts[:2], 8)
    assert max(np.asarray([longest for batch, longest in planned if batch == 2])[1:]) == 0


def test_an_engine_that_is_dropped_leaves_the_others(
    pair_directory: Path, engine: VllmEngine, prompts: list[list[int]]
) -> None:
    other = VllmEngine(config(pair_directory), ConstantController(1))
    expected = texts(other, prompts[:2])
    del other
    gc.collect()
    engine.controller = ConstantController(1)
    assert texts(engine, prompts[:2]) == expected
