"""A decision's own looks are asked what the controller would be asked, and the round is the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specpilot.controllers import (
    Action,
    ConstantController,
    Controller,
    Decision,
    DraftLevel,
    FixedPolicy,
    PricedController,
    RoundState,
)
from specpilot.controllers.guard import GuardedController
from specpilot.engine import ControllerError, Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.draft_kernel import best_two
from specpilot.tests.support.priced import controller, random_predictor
from specpilot.tests.support.rounds import moderate

PARAMS = SamplingParams(max_tokens=40, ignore_eos=True)


def looking(hold: int) -> PricedController:
    """Plans with looks at margin and agreement; stops and trims by them."""
    weights = random_predictor(5).weights
    weights["hidden_weight"][[0, 1, 6, 7]] = 0.0
    predictor = type(random_predictor())(weights)
    assert predictor.table is not None and set(predictor.level_features) == {"margin", "agreement"}
    return controller(FixedPolicy(Action(6, 1.0, 4)), moderate(), predictor=predictor, max_context=256, hold=hold)


class Detour(Controller):
    """Keeps the decisions' looks from the engine, which then asks the controller."""

    def __init__(self, inner: PricedController) -> None:
        self.inner, self.level_features = inner, inner.level_features
        self.num_looks = self.num_trims = 0

    def decide(self, state: RoundState) -> Decision:
        decision = self.inner.decide(state)
        self.num_looks += decision.looks is not None
        self.asked_levels, self.trims = self.inner.asked_levels, self.inner.trims
        return replace(decision, looks=None)

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        lengths = self.inner.new_lengths(level)
        self.trims = self.inner.trims
        return lengths

    def verify_lengths(self, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
        self.num_trims += 1
        return self.inner.verify_lengths(num_drafted)


@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.parametrize("hold", [1, 4])
def test_the_engine_plays_the_same_rounds_with_and_without_the_detour(
    hold: int, guarded: bool, pair: Pair, evaluation_prompts: list[list[int]]
) -> None:
    def serve(own: Controller) -> tuple[list[Any], list[Any]]:
        engine = Engine(pair, EngineConfig(max_num_seqs=5, max_model_len=256), own)
        prompts = [prompt[:48] for prompt in evaluation_prompts[:9]]
        params = [replace(PARAMS, temperature=(0.0, 0.6, 1.0)[n % 3], seed=n) for n in range(9)]
        texts = [output.token_ids for output in engine.generate(prompts, params)]
        return texts, [(own.num_drafted, own.num_verified, own.accepted_length) for own in engine.stats.rounds]

    detour = Detour(looking(hold))
    expected = serve(detour)
    direct = looking(hold)
    assert serve(GuardedController(direct) if guarded else direct) == expected
    assert detour.num_looks > 20 and detour.num_trims > 0
    rounds = np.concatenate([np.stack(own) for own in expected[1]], axis=1)
    assert len(set(rounds[0])) > 3 and (rounds[0] > rounds[1]).any()


def test_what_asking_takes_is_told_and_part_of_drafting(pair: Pair, evaluation_prompts: list[list[int]]) -> None:
    for own, asks in ((looking(2), True), (ConstantController(3), False)):
        engine = Engine(pair, EngineConfig(max_num_seqs=2, max_model_len=256), own)
        engine.generate([prompt[:48] for prompt in evaluation_prompts[:2]], PARAMS)
        rounds = [record for record in engine.stats.rounds if any(record.num_drafted)]
        assert len(rounds) > 5
        assert all((record.asking_seconds > 0) == asks for record in rounds)
        assert all(record.asking_seconds <= record.draft_seconds for record in rounds)


class Never(Controller):
    """Decides on looks that answer nonsense."""

    def __init__(self, answer: list[int]) -> None:
        self.answer = answer
        self.levels, self.trims = 1, False

    def decide(self, state: RoundState) -> Decision:
        return Decision(np.full(len(state.request_ids), 3), self)

    def after(self, depth: int, requests: object, margin: object, agreement: object) -> NDArray[np.int64]:
        return np.asarray(self.answer)

    def verified(self, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
        return num_drafted


@pytest.mark.parametrize("answer", [[0], [1, 1, 1], []])
def test_an_answer_of_looks_that_is_none_is_refused_and_the_round_can_be_repeated(
    answer: list[int], tiny_pair: Pair
) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), Never(answer))
    name = engine.add_request([3, 5, 9], PARAMS)
    with pytest.raises(ControllerError, match=r"Never\.after"):
        while engine.has_work:
            engine.step()
    engine.controller = Never([2])
    while engine.has_work:
        engine.step()
    assert len(engine.take_result(name).token_ids) == 40


def test_the_two_best_scores_of_a_row_are_those_of_a_sort() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(50, 300, generator=generator).numpy()
    scores[::7, 5] = scores[::7].max(axis=1)  # Ties: the first counts.
    scores[3, 1:] = -np.inf
    tokens, margins = np.empty(50, dtype=np.int64), np.empty(50)
    best_two(scores, tokens, margins)
    ordered = np.sort(scores.astype(np.float64), axis=1)
    assert (tokens == scores.argmax(axis=1)).all()
    np.testing.assert_array_equal(margins, ordered[:, -1] - ordered[:, -2])
