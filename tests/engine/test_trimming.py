"""Verifying less than was drafted: who is asked when, what is counted, and what the drafter still knows afterwards."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from specpilot.controllers import Controller, Decision, DraftLevel, RoundOutcome, RoundState
from specpilot.engine import ControllerError, Engine, EngineConfig, Pair, SamplingParams, TokenTree
from specpilot.tests.support.rounds import seen_rate

from ..support.controllers import TrimmingController

PARAMS = SamplingParams(max_tokens=40, temperature=1.0, seed=1, ignore_eos=True)


class Watching(TrimmingController):
    """A trimming controller that keeps what it saw."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.states: list[RoundState] = []
        self.outcomes: list[RoundOutcome] = []

    def decide(self, state: RoundState) -> Decision:
        self.states.append(state)
        return super().decide(state)

    def observe(self, outcome: RoundOutcome) -> None:
        self.outcomes.append(outcome)


@pytest.mark.parametrize("num_candidates", [1, 3])
def test_counts_history_and_lag_follow_what_was_verified(tiny_pair: Pair, num_candidates: int) -> None:
    controller = Watching(seed=4)
    config = EngineConfig(max_num_seqs=4, max_model_len=96, num_candidates=num_candidates)
    engine = Engine(tiny_pair, config, controller)
    engine.generate([[3 + n, 5, 9] for n in range(12)], [PARAMS] * 12)
    rates = dict[str, float]()
    exact_lag = dict[str, int]()
    fully_kept = 0
    for state, outcome, record in zip(controller.states, controller.outcomes, engine.stats.rounds, strict=True):
        assert record.num_verified == tuple(outcome.num_verified.tolist())
        for row, request_id in enumerate(state.request_ids):
            drafted, verified = int(outcome.num_drafted[row]), int(outcome.num_verified[row])
            kept = int(outcome.accepted_length[row])
            assert 0 <= kept <= verified <= drafted
            assert state.acceptance_rate[row] == pytest.approx(rates.get(request_id, float("nan")), nan_ok=True)
            if num_candidates == 1 and request_id in exact_lag:
                assert state.lag[row] == exact_lag[request_id]
            if verified:
                rates[request_id] = seen_rate(rates.get(request_id), kept, verified)
            if drafted:  # the drafter has fed itself all but its last token
                exact_lag[request_id] = 1 if kept == drafted else 0
            elif request_id in exact_lag:
                exact_lag[request_id] += 1
            fully_kept += 0 < kept == verified < drafted
    assert fully_kept > 10


@pytest.mark.parametrize("num_candidates", [1, 2])
def test_drafts_after_trims_are_as_good_as_without(tiny_pair: Pair, num_candidates: int) -> None:
    """The target drafts for itself: with its cache right, every token that is verified is accepted."""
    itself = type(tiny_pair)(tiny_pair.target, tiny_pair.target, tiny_pair.tokenizer, tiny_pair.vocab_size)
    config = EngineConfig(max_num_seqs=4, max_model_len=128, num_candidates=num_candidates)
    engine = Engine(itself, config, TrimmingController(seed=8))
    params = [SamplingParams(max_tokens=90, temperature=n % 2, seed=n, ignore_eos=True) for n in range(8)]
    engine.generate([[3 + n, 5, 9] for n in range(8)], params)
    stats = engine.stats
    assert stats.num_drafted > stats.num_verified > 100
    assert stats.num_accepted >= 0.99 * stats.num_verified


def test_everything_drafted_is_verified_in_rejection_mode(tiny_pair: Pair) -> None:
    class Forbidden(TrimmingController):
        def verify_lengths(self, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
            raise AssertionError("asked in rejection mode")

        def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
            assert (level.depth < self._lengths[level.requests]).all(), "a request at its length was asked about"
            return super().new_lengths(level)

    engine = Engine(tiny_pair, EngineConfig(max_model_len=64, verification="rejection"), Forbidden(seed=0))
    engine.generate([[1, 2, 3]] * 6, PARAMS)
    assert engine.stats.num_verified == engine.stats.num_drafted > 0


class Returning(Controller):
    """Drafts three tokens and trims to what it is told."""

    trims = True

    def __init__(self, value: Any) -> None:
        self.value = value

    def decide(self, state: RoundState) -> Decision:
        return Decision(np.full(len(state.request_ids), 3))

    def verify_lengths(self, num_drafted: NDArray[np.int64]) -> Any:
        num_drafted[:] = -7  # a copy: the engine's own counts stay
        return self.value


BAD_ANSWERS: dict[str, Any] = {
    "negative": np.asarray([1, -1]),
    "too long": np.asarray([4, 0]),
    "too few": np.asarray([1]),
    "a scalar": 1,
    "floats": np.asarray([1.0, 1.0]),
    "booleans": np.asarray([True, False]),
    "None": None,
}


@pytest.mark.parametrize("name", BAD_ANSWERS)
def test_a_bad_answer_is_an_error_and_the_round_can_be_repeated(tiny_pair: Pair, name: str) -> None:
    config = EngineConfig(max_model_len=64, prefill_chunk=4)
    prompts = [[3, 5, 9, 4], [8, 1, 7]]
    plain = Engine(tiny_pair, config).generate(prompts, [PARAMS] * 2)
    engine = Engine(tiny_pair, config)
    ids = [engine.add_request(prompt, PARAMS) for prompt in prompts]
    while len(engine.scheduler.decoding()) < 2:
        engine.step()
    before = engine.stats.num_committed
    engine.controller = Returning(BAD_ANSWERS[name])
    for _ in range(2):
        with pytest.raises(ControllerError, match=r"Returning\.verify_lengths"):
            engine.step()
    assert engine.stats.num_committed == before and engine.stats.num_drafted == 0
    engine.controller = Returning(np.asarray([3, 0]))
    engine.step()
    assert (engine.stats.rounds[-1].num_drafted, engine.stats.rounds[-1].num_verified) == ((3, 3), (3, 0))
    engine.controller = TrimmingController(seed=2)
    while engine.has_work:
        engine.step()
    outputs = [engine.take_result(request_id) for request_id in ids]
    assert [output.token_ids for output in outputs] == [output.token_ids for output in plain]
    # What the failed rounds did is counted: the prompts were prefilled once, and the drafter has caught up.
    assert engine.stats.prefill_tokens == sum(len(prompt) - 1 for prompt in prompts)
    assert engine.stats.catch_up_tokens == sum(output.stats.num_catch_up_tokens for output in outputs) > 0


def test_prefill_and_catch_up_of_a_failed_first_round_are_counted(tiny_pair: Pair) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), Returning(None))
    request_id = engine.add_request(list(range(1, 20)), PARAMS)
    with pytest.raises(ControllerError):
        engine.step()
    assert engine.stats.prefill_tokens == 18 and engine.stats.rounds[-1].catch_up_tokens >= 17
    engine.controller = TrimmingController(seed=1)
    while engine.has_work:
        engine.step()
    assert engine.stats.catch_up_tokens == engine.take_result(request_id).stats.num_catch_up_tokens


def test_a_round_without_drafts_is_not_asked(tiny_pair: Pair) -> None:
    class Off(Returning):
        def decide(self, state: RoundState) -> Decision:
            return Decision(np.zeros(len(state.request_ids), dtype=np.int64))

        def verify_lengths(self, num_drafted: NDArray[np.int64]) -> Any:
            raise AssertionError("asked")

    Engine(tiny_pair, EngineConfig(max_model_len=64), Off(None)).generate([[1, 2, 3]], PARAMS)


def test_a_tree_is_cut_by_depth() -> None:
    tree = TokenTree([9, 1, 2, 3, 4, 5], [-1, 0, 0, 1, 1, 3])
    assert [list(tree.cut(depth).tokens) for depth in range(4)] == [[9], [9, 1, 2], [9, 1, 2, 3, 4], [9, 1, 2, 3, 4, 5]]
    assert tree.cut(1).parents == [-1, 0, 0]
    assert list(TokenTree.chain([7, 8, 9]).cut(1).tokens) == [7, 8]
    with pytest.raises(ValueError, match="level by level"):
        TokenTree([9, 1, 2, 3], [-1, 0, 1, 0]).cut(1)
