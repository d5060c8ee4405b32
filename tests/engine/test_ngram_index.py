"""The n-gram index and the agreement of drafts with the text are what a search through the text finds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from specpilot.controllers import EVERY_LEVEL, ConstantController, DraftLevel, RoundState
from specpilot.controllers.controller import Decision
from specpilot.engine import Draft, DraftContext, Engine, EngineConfig, Pair, SamplingParams
from specpilot.engine.model_drafter import ModelDrafter
from specpilot.engine.ngram_index import NgramIndex
from specpilot.engine.request import Request

from ..support.controllers import RandomController


def search(text: Sequence[int], suffix: Sequence[int], sizes: Sequence[int] = (4, 3, 2)) -> int | None:
    """Position of the token after the last occurrence of the longest suffix, by trying every position."""
    for size in sizes:
        wanted = list(suffix[-size:])
        ends = [end for end in range(size, len(text)) if list(text[end - size : end]) == wanted]
        if ends and len(wanted) == size:
            return ends[-1]
    return None


@pytest.mark.parametrize("sizes", [(4, 3, 2), (1,), (5, 4, 3, 2, 1)])
def test_lookup_finds_what_a_search_finds(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    found = 0
    for _ in range(30):
        text = rng.integers(0, 4, size=60).tolist()
        index = NgramIndex(sizes[-1], sizes[0])
        for length in np.unique(rng.integers(0, 61, size=12)).tolist():
            index.update(text[:length])
            for suffix in (text[:length], text[:length][-4:] + rng.integers(0, 4, size=2).tolist(), [], [1]):
                position = index.lookup(suffix)
                assert position == search(text[:length], suffix, sizes)
                found += position is not None
    assert found > 300


class Asking(RandomController):
    """Random lengths; asks for agreement from a round on, and keeps what it was told."""

    def __init__(self, first_round: int) -> None:
        super().__init__(seed=first_round, max_length=6)
        self.first_round = first_round
        self.num_rounds = 0
        self.told: dict[tuple[str, int, int], float] = {}
        self._state: RoundState

    def decide(self, state: RoundState) -> Decision:
        self._state = state
        self.num_rounds += 1
        self.level_features = ("agreement",) if self.num_rounds > self.first_round else ("margin",)
        return super().decide(state)

    def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
        if "agreement" in self.level_features:
            for row, value in zip(level.requests.tolist(), level.agreement.tolist(), strict=True):
                key = (self._state.request_ids[row], int(self._state.context_length[row]), level.depth)
                self.told[key] = value
        else:
            assert np.isnan(level.agreement).all()
        return super().new_lengths(level)


class Remembering(ModelDrafter):
    """The real drafter, with a memory of its drafts and moves."""

    def __init__(self, own: ModelDrafter, vocab_size: int, num_candidates: int) -> None:
        super().__init__(own.runner, own.cache.num_slots, own.cache.slot_length, vocab_size, num_candidates)
        self.chains: dict[tuple[str, int], list[int]] = {}
        self.num_moves = 0

    def move_slot(self, source: int, destination: int) -> None:
        super().move_slot(source, destination)
        self.num_moves += 1

    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        drafts = super().propose(requests, lengths, context)
        for request, draft in zip(requests, drafts, strict=True):
            chain = [draft.tree.tokens[node] for node in draft.main_chain]
            self.chains[request.request_id, len(request.token_ids)] = chain
        return drafts


@pytest.mark.parametrize(("first_round", "num_candidates"), [(0, 1), (25, 1), (0, 2)])
def test_agreement_is_what_a_search_through_the_committed_text_finds(
    micro_pair: Pair, first_round: int, num_candidates: int
) -> None:
    """Also where requests change slots, and where it is asked for first in the middle of a request."""
    controller = Asking(first_round)
    config = EngineConfig(max_num_seqs=4, max_model_len=160, num_candidates=num_candidates)
    engine = Engine(micro_pair, config, controller)
    assert isinstance(engine.drafter, ModelDrafter)
    drafter = Remembering(engine.drafter, micro_pair.vocab_size, num_candidates)
    engine.drafter = engine.speculator.drafter = drafter
    rng = np.random.default_rng(1)
    ids = [f"r{index}" for index in range(12)]
    for index, request_id in enumerate(ids):
        prompt = rng.integers(0, 16, size=int(rng.integers(1, 40))).tolist()
        params = SamplingParams(temperature=(0.0, 0.8)[index % 2], seed=index, max_tokens=int(rng.integers(20, 90)))
        engine.add_request(prompt, params, request_id)
    while engine.has_work:
        engine.step()
    assert not drafter._agreement.num_known and drafter.num_moves > 3
    outputs = {request_id: engine.take_result(request_id) for request_id in ids}
    for (request_id, context, depth), value in controller.told.items():
        output = outputs[request_id]
        text = [*output.prompt_token_ids, *output.token_ids][:context]
        chain = drafter.chains[request_id, context]
        position = search(text, [*text, *chain[: depth - 1]])
        expected = 0 if position is None else 1 if text[position] == chain[depth - 1] else -1
        assert value == expected
    assert {-1.0, 0.0, 1.0} == set(controller.told.values())


def test_no_index_is_kept_unless_asked_for(micro_pair: Pair) -> None:
    class Margin(ConstantController):
        asked_levels = EVERY_LEVEL
        level_features = ("margin",)

    for controller in (ConstantController(3), Margin(3)):
        engine = Engine(micro_pair, EngineConfig(max_model_len=64), controller)
        engine.add_request([1, 2, 3], SamplingParams(max_tokens=20))
        engine.step()
        assert isinstance(engine.drafter, ModelDrafter) and not engine.drafter._agreement.num_known
