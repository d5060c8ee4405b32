"""Requests with a seed on real vLLM: one seed, one text, whatever is drafted; the others are vLLM's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from specpilot.controllers import ConstantController, Controller, Decision, RoundState
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.vllm.engine import STOCK, VllmEngine, VllmEngineConfig

pytest.importorskip("vllm")
LONGEST = 4
Prompts = list[list[int]]


class RandomEach(ConstantController):
    """Any length for anyone."""

    def __init__(self) -> None:
        super().__init__(LONGEST)
        self._rng = np.random.default_rng(3)

    def decide(self, state: RoundState) -> Decision:
        return Decision(self._rng.integers(0, LONGEST + 1, size=len(state.request_ids)))


@pytest.fixture(scope="module")
def config(pair_directory: Path) -> VllmEngineConfig:
    """Few slots and small chunks: requests queue, and prompts are prefilled in parts."""
    pair = str(pair_directory / "target"), str(pair_directory / "drafter")
    return VllmEngineConfig(
        *pair, max_num_seqs=3, max_model_len=256, prefill_chunk=24, max_num_speculative_tokens=LONGEST
    )


@pytest.fixture(scope="module")
def engine(config: VllmEngineConfig) -> VllmEngine:
    return VllmEngine(config)


def params(number: int, **more: object) -> SamplingParams:
    """A greedy one, then three that sample."""
    hottest: list[dict[str, float]] = [
        {},
        {"temperature": 0.6},
        {"temperature": 1.0},
        {"temperature": 1.2, "top_k": 50, "top_p": 0.9},
    ]
    return SamplingParams(**{"seed": number, "max_tokens": 24, "ignore_eos": True} | hottest[number % 4] | more)


def texts(engine: VllmEngine | Engine, prompts: Prompts, **more: object) -> list[tuple[int, ...]]:
    names = [engine.add_request(prompt, params(number, **more)) for number, prompt in enumerate(prompts)]
    while engine.has_work:
        engine.step()
    return [engine.take_result(name).token_ids for name in names]


def test_one_seed_has_one_text(
    engine: VllmEngine, config: VllmEngineConfig, pair: Pair, evaluation_prompts: Prompts
) -> None:
    """Without speculation, with drafts of every kind, and in the embedded engine."""
    prompts = evaluation_prompts[:8]
    plain = VllmEngine(VllmEngineConfig(config.target, None, 3, 256, 24, scheduler=STOCK))
    expected = texts(plain, prompts)
    assert all(len(text) == 24 for text in expected)
    controllers: list[Controller] = [*map(ConstantController, (0, 1, LONGEST)), RandomEach()]
    for controller in controllers:
        engine.controller = controller
        assert texts(engine, prompts) == expected
    embedded = Engine(pair, EngineConfig(max_num_seqs=3, max_num_speculative_tokens=LONGEST))
    assert texts(embedded, prompts) == expected


def test_other_seeds_have_other_texts_and_greedy_requests_none(engine: VllmEngine, evaluation_prompts: Prompts) -> None:
    engine.controller = ConstantController(2)
    prompts = [evaluation_prompts[0]] * 8  # Each temperature twice, seeds 0 ... 7.
    found = texts(engine, prompts)
    assert found[0] == found[4] and all(found[n] != found[n + 4] for n in (1, 2, 3))


def test_without_a_seed_texts_are_as_different_as_vllm_makes_them(
    engine: VllmEngine, evaluation_prompts: Prompts
) -> None:
    engine.controller = ConstantController(2)
    prompts = evaluation_prompts[:4]
    one, other = (texts(engine, prompts, seed=None) for _ in range(2))
    assert one[0] == other[0] and any(one[n] != other[n] for n in (1, 2, 3))


def test_ended_and_cancelled_requests_are_forgotten(engine: VllmEngine, evaluation_prompts: Prompts) -> None:
    engine.controller = ConstantController(2)
    names = [engine.add_request(evaluation_prompts[n], params(n, max_tokens=60)) for n in (1, 2)]
    engine.step()
    assert set(engine._seeded._requests) == set(names)
    assert engine.cancel(names[0])
    while engine.has_work:
        engine.step()
    assert not engine._seeded._requests
    assert len(engine.take_result(names[1]).token_ids) == 60 > len(engine.take_result(names[0]).token_ids)
