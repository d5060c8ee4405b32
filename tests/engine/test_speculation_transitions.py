"""Changing the speculation length costs what it says and nothing else: the drafter never works on a stale cache.

After every change the drafts are compared with those of a fresh drafter that read the whole text from the start.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from specpilot.controllers import EVERY_LEVEL, ConstantController, Decision, DraftLevel, RoundState
from specpilot.engine import Draft, DraftContext, Engine, EngineConfig, Pair, RequestOutput, SamplingParams
from specpilot.engine.model_drafter import ModelDrafter
from specpilot.engine.noise import TARGET_STREAM
from specpilot.engine.request import Request
from specpilot.engine.sampler import RowSampling

from ..support.controllers import RandomController, ScriptedController
from ..support.ties import TOLERANCE, assert_same_text

MAX_LENGTH = 8


@dataclass(frozen=True)
class Proposal:
    """What a drafter was asked and what it answered."""

    request_id: str
    token_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    length: int
    draw: int
    draft: Draft


class RecordingDrafter(ModelDrafter):
    """The real drafter, with a memory."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.proposals: list[Proposal] = []

    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        drafts = super().propose(requests, lengths, context)
        for request, length, draft in zip(requests, lengths.tolist(), drafts, strict=True):
            text = tuple(request.token_ids)
            self.proposals.append(
                Proposal(request.request_id, text, request.params, request.seed, length, context.draw, draft)
            )
        return drafts


def recording_engine(pair: Pair, config: EngineConfig, script: dict[str, list[int]]) -> tuple[Engine, RecordingDrafter]:
    engine = Engine(pair, config, ScriptedController(script))
    own = engine.drafter
    assert isinstance(own, ModelDrafter)
    drafter = RecordingDrafter(
        own.runner,
        own.cache.num_slots,
        own.cache.slot_length,
        pair.vocab_size,
        config.num_candidates,
        config.catch_up_chunk,
    )
    engine.drafter = engine.speculator.drafter = drafter
    return engine, drafter


def fresh_draft(pair: Pair, config: EngineConfig, drafter: ModelDrafter, proposal: Proposal) -> Draft:
    """The draft of a drafter that has never seen the request before."""
    fresh = ModelDrafter(
        drafter.runner, 1, drafter.cache.slot_length, pair.vocab_size, config.num_candidates, catch_up_chunk=10_000
    )
    tokens = list(proposal.token_ids)
    request = Request("fresh", tokens, len(tokens), proposal.params, proposal.seed, slot=0)
    fresh.start(request)
    fresh.catch_up([request])
    sampling = RowSampling.of([proposal.params], [proposal.seed])

    def shared_noise(rows: NDArray[np.int64], depth: int) -> torch.Tensor | None:
        position = np.asarray([len(tokens) + depth - 1])
        return sampling.noise(position, pair.vocab_size, pair.target.device, TARGET_STREAM)

    context = DraftContext(sampling, proposal.draw, shared_noise if config.verification == "coupled" else None, None)
    return fresh.propose([request], np.asarray([proposal.length]), context)[0]


def same_draft(first: Draft, second: Draft) -> bool:
    """Same tree, and same probabilities but for rounding."""
    return (
        list(first.tree.tokens) == list(second.tree.tokens)
        and list(first.tree.parents) == list(second.tree.parents)
        and first.probabilities.keys() == second.probabilities.keys()
        and all(
            np.allclose(first.probabilities[n], second.probabilities[n], atol=TOLERANCE) for n in first.probabilities
        )
    )


def all_transitions(seed: int) -> list[int]:
    """Lengths 0 … 8 in an order in which every length follows every length (an Eulerian path), 82 rounds."""
    rng = np.random.default_rng(seed)
    left = {length: rng.permutation(MAX_LENGTH + 1).tolist() for length in range(MAX_LENGTH + 1)}
    stack, path = [0], []
    while stack:
        if left[stack[-1]]:
            stack.append(left[stack[-1]].pop())
        else:
            path.append(stack.pop())
    assert len({*itertools.pairwise(path)}) == (MAX_LENGTH + 1) ** 2
    return path[::-1]


def run_script(
    engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], ids: Sequence[str], rounds: int
) -> list[RequestOutput]:
    """Serve until every request has had its rounds (or ended)."""
    for prompt, own, request_id in zip(prompts, params, ids, strict=True):
        engine.add_request(prompt, own, request_id)
    left = dict.fromkeys(ids, rounds)
    while engine.has_work:
        for chunk in engine.step():
            left[chunk.request_id] -= 1
            if left[chunk.request_id] == 0:
                engine.cancel(chunk.request_id)
    return [engine.take_result(request_id) for request_id in ids]


@dataclass(frozen=True)
class Script:
    """A run through every transition."""

    engine: Engine
    drafter: RecordingDrafter
    outputs: dict[str, RequestOutput]


def script_params(index: int) -> SamplingParams:
    return SamplingParams(temperature=index % 2, seed=100 + index, max_tokens=750, ignore_eos=True)


def run_all_transitions(pair: Pair, prompts: Sequence[Sequence[int]], config: EngineConfig) -> Script:
    ids = [f"r{index}" for index in range(len(prompts))]
    script = {request_id: all_transitions(index) for index, request_id in enumerate(ids)}
    params = [script_params(index) for index in range(len(prompts))]
    engine, drafter = recording_engine(pair, config, script)
    outputs = run_script(engine, prompts, params, ids, rounds=82)
    return Script(engine, drafter, dict(zip(ids, outputs, strict=True)))


CONFIGS = {
    "coupled": EngineConfig(max_num_seqs=4),
    "candidates": EngineConfig(max_num_seqs=4, num_candidates=3),
    "rejection": EngineConfig(max_num_seqs=4, verification="rejection"),
    "chunked": EngineConfig(max_num_seqs=3, catch_up_chunk=3, prefill_chunk=7),
}


@pytest.fixture(scope="module", params=CONFIGS)
def transitions(request: pytest.FixtureRequest, pair: Pair, evaluation_prompts: list[list[int]]) -> tuple[str, Script]:
    prompts = [prompt[:40] for prompt in evaluation_prompts[:4]]
    return request.param, run_all_transitions(pair, prompts, CONFIGS[request.param])


@pytest.mark.slow
def test_drafts_after_every_transition_are_those_of_a_fresh_drafter(
    pair: Pair, transitions: tuple[str, Script]
) -> None:
    name, script = transitions
    assert len(script.drafter.proposals) >= 4 * 60
    for proposal in script.drafter.proposals:
        assert same_draft(proposal.draft, fresh_draft(pair, CONFIGS[name], script.drafter, proposal))


@pytest.mark.slow
def test_acceptance_after_every_transition_is_what_the_text_says(transitions: tuple[str, Script]) -> None:
    """In coupled mode the accepted length is the number of leading drafts that the final text holds: exact replay."""
    name, script = transitions
    if CONFIGS[name].verification != "coupled":
        pytest.skip("in rejection mode acceptance is drawn")
    accepted = [
        {
            id_: (drafted, kept)
            for id_, drafted, kept in zip(r.request_ids, r.num_drafted, r.accepted_length, strict=True)
        }
        for r in script.engine.stats.rounds
    ]
    checked = 0
    for proposal in script.drafter.proposals:
        output = script.outputs[proposal.request_id]
        text = [*output.prompt_token_ids, *output.token_ids][len(proposal.token_ids) :]
        node, expected = 0, 0
        for token in text:
            matching = [c for c in proposal.draft.tree.children(node) if proposal.draft.tree.tokens[c] == token]
            if not matching:
                break
            node, expected = matching[0], expected + 1
        drafted, kept = accepted[proposal.draw][proposal.request_id]
        assert (drafted, kept) == (proposal.length, expected)
        checked += expected > 0
    assert checked > 10


@pytest.mark.slow
def test_lag_is_what_was_committed_while_off(transitions: tuple[str, Script]) -> None:
    name, script = transitions
    if CONFIGS[name].num_candidates > 1:
        pytest.skip("an accepted side branch is lag too")
    lag = {request_id: len(output.prompt_token_ids) - 1 for request_id, output in script.outputs.items()}
    switches, last = 0, dict[str, int]()
    for record in script.engine.stats.rounds:
        catch_up = 0
        for row, request_id in enumerate(record.request_ids):
            drafted, kept = record.num_drafted[row], record.accepted_length[row]
            assert record.lag[row] == lag[request_id]
            catch_up += lag[request_id] if drafted and lag[request_id] > 1 else 0
            lag[request_id] = (1 if kept == drafted else 0) if drafted else lag[request_id] + 1
            switches += request_id in last and (last[request_id] > 0) != (drafted > 0)
            last[request_id] = drafted
        # A chunk may end one token short of a request's lag; the first level feeds that token.
        assert catch_up - len(record.request_ids) <= record.catch_up_tokens <= catch_up
        assert (record.catch_up_tokens > 0) == (catch_up > 0)
        if record.catch_up_tokens:
            assert record.catch_up_seconds > 0
    stats = script.engine.stats
    assert stats.catch_up_tokens == sum(record.catch_up_tokens for record in stats.rounds) > 0
    assert stats.catch_up_tokens == sum(output.stats.num_catch_up_tokens for output in script.outputs.values())
    assert stats.switches == switches == sum(output.stats.num_switches for output in script.outputs.values())


def test_chunked_catch_up_drafts_what_unchunked_does(tiny_pair: Pair) -> None:
    texts, drafts = [], []
    for chunk in (1, 2, 5, 10_000):
        config = EngineConfig(max_num_seqs=4, max_model_len=200, catch_up_chunk=chunk)
        ids = [f"r{index}" for index in range(4)]
        script = {request_id: [0, 0, 3, 0, 0, 0, 0, 0, 0, 8, 1, 0, 0, 2] * 4 for request_id in ids}
        engine, drafter = recording_engine(tiny_pair, config, script)
        prompts = [list(range(1, 20 + 7 * index)) for index in range(4)]
        params = [SamplingParams(temperature=1, seed=index, max_tokens=100, ignore_eos=True) for index in range(4)]
        outputs = run_script(engine, prompts, params, ids, rounds=56)
        texts.append([output.token_ids for output in outputs])
        drafts.append([(p.request_id, p.token_ids, list(p.draft.tree.tokens)) for p in drafter.proposals])
        assert engine.stats.catch_up_tokens > 0
    assert all(text == texts[0] for text in texts)
    assert all(draft == drafts[0] for draft in drafts)


def test_a_fresh_engine_given_the_text_as_its_prompt_drafts_the_same(tiny_pair: Pair) -> None:
    """The same comparison from outside: the committed text as a prompt, with the same seed."""
    config = EngineConfig(max_num_seqs=16, max_model_len=256)
    prompts = [list(range(1, 12)), list(range(30, 35)), [7, 8] * 9]
    ids = [f"r{index}" for index in range(3)]
    engine, drafter = recording_engine(tiny_pair, config, {id_: all_transitions(n) for n, id_ in enumerate(ids)})
    params = [SamplingParams(temperature=n % 2, seed=n, max_tokens=230, ignore_eos=True) for n in range(3)]
    run_script(engine, prompts, params, ids, rounds=60)
    asked = drafter.proposals[::2]
    again, fresh = recording_engine(tiny_pair, config, {f"p{n}": [p.length] for n, p in enumerate(asked)})
    for index, proposal in enumerate(asked):
        limited = replace(proposal.params, max_tokens=proposal.length + 1, seed=proposal.seed)
        again.add_request(proposal.token_ids, limited, f"p{index}")
    while again.has_work:
        again.step()
    first = {p.request_id: p for p in reversed(fresh.proposals)}
    for index, proposal in enumerate(asked):
        assert same_draft(first[f"p{index}"].draft, proposal.draft)


@pytest.mark.slow
def test_a_drafter_that_pretends_to_catch_up_is_found(
    pair: Pair, evaluation_prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target drafts for itself: it is always right, so all that it loses is lost to the stale cache."""
    prompts = [prompt[:40] for prompt in evaluation_prompts[:4]]
    config, itself = CONFIGS["coupled"], replace(pair, drafter=pair.target)
    honest = run_all_transitions(itself, prompts, config)

    def pretend(self: ModelDrafter, requests: Sequence[Request]) -> int:
        total = 0
        for request in requests:
            lag = self.lag(request)
            if lag > 1:
                self._seen[request.slot] += lag
                total += lag
        return total

    with monkeypatch.context() as patch:
        patch.setattr(ModelDrafter, "catch_up", pretend)
        broken = run_all_transitions(itself, prompts, config)
    for script, right in ((honest, True), (broken, False)):
        asked = script.drafter.proposals[::6]
        same = sum(same_draft(p.draft, fresh_draft(itself, config, script.drafter, p)) for p in asked)
        assert same == len(asked) if right else same < 0.8 * len(asked)
        accepted = script.engine.stats.num_accepted / script.engine.stats.num_drafted
        assert accepted > 0.99 if right else accepted < 0.85
    for index, (request_id, output) in enumerate(honest.outputs.items()):  # slow, but still lossless
        own, size = broken.outputs[request_id], len(broken.outputs[request_id].token_ids)
        assert size < len(output.token_ids)
        params = script_params(index)
        assert_same_text(pair, prompts[index], output.token_ids[:size], own.token_ids, params, 100 + index)


def forbid_drafting(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(engine.drafter, ModelDrafter)

    def forward(*args: object, **kwargs: object) -> torch.Tensor:
        raise AssertionError("the drafter ran")

    monkeypatch.setattr(engine.drafter.runner, "forward", forward)


def test_off_never_runs_the_drafter(tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), ConstantController(0))
    forbid_drafting(engine, monkeypatch)
    outputs = engine.generate([[1, 2, 3]] * 6, SamplingParams(max_tokens=12, ignore_eos=True))
    assert all(len(output.token_ids) == 12 for output in outputs)
    assert engine.stats.num_drafted == engine.stats.catch_up_tokens == 0
    assert all(record.num_drafted == (0,) * len(record.request_ids) for record in engine.stats.rounds)


def test_a_request_that_forbids_speculation_never_runs_the_drafter(
    tiny_pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), ConstantController(8))
    forbid_drafting(engine, monkeypatch)
    engine.generate([[1, 2, 3]] * 3, SamplingParams(max_tokens=12, num_speculative_tokens=0))


def test_drafting_stops_where_max_tokens_ends(tiny_pair: Pair) -> None:
    """The last token needs no draft, so a request of one token never speculates."""
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), ConstantController(8))
    outputs = engine.generate(
        [[1, 2, 3]] * 5, [SamplingParams(max_tokens=size, ignore_eos=True) for size in (1, 2, 3, 4, 5)]
    )
    assert [len(output.token_ids) for output in outputs] == [1, 2, 3, 4, 5]
    assert outputs[0].stats.num_drafted == 0
    assert engine.stats.rounds[0].num_drafted == (0, 1, 2, 3, 4)


def test_a_request_outside_the_drafting_ones_is_not_caught_up(tiny_pair: Pair) -> None:
    engine, _ = recording_engine(tiny_pair, EngineConfig(max_model_len=128), {"on": [4], "off": [0]})
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    engine.add_request([1, 2, 3, 4], params, "on")
    engine.add_request(list(range(1, 31)), params, "off")
    while engine.has_work:
        engine.step()
    on, off = engine.take_result("on"), engine.take_result("off")
    assert on.stats.num_catch_up_tokens == engine.stats.catch_up_tokens == 3
    assert off.stats.num_catch_up_tokens == 0
    last = next(record for record in reversed(engine.stats.rounds) if "off" in record.request_ids)
    assert last.lag[last.request_ids.index("off")] == 29 + 19


def test_stop_or_continue_is_asked_about_the_requests_of_the_round(tiny_pair: Pair) -> None:
    """`DraftLevel.requests` are rows of the `RoundState`, also where some of its requests do not draft."""

    class Asking(RandomController):
        def __init__(self) -> None:
            super().__init__(seed=0)
            self.asked_levels = EVERY_LEVEL
            self.rows: set[int] = set()
            self.ids: tuple[str, ...] = ()

        def decide(self, state: object) -> Decision:
            assert isinstance(state, RoundState)
            self.ids = state.request_ids
            return Decision(np.asarray([0 if "off" in request_id else 4 for request_id in state.request_ids]))

        def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
            assert not any("off" in self.ids[row] for row in level.requests)
            self.rows.update(level.requests.tolist())
            return super().new_lengths(level)

    controller = Asking()
    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), controller)
    for request_id in ("off-0", "on-1", "off-2", "on-3"):
        engine.add_request([1, 2, 3], SamplingParams(max_tokens=10, ignore_eos=True), request_id)
    engine.step()
    assert controller.rows == {1, 3}


def test_stop_or_continue_stops_one_request_while_another_goes_on(tiny_pair: Pair) -> None:
    class StopsFirst(ConstantController):
        asked_levels = EVERY_LEVEL

        def new_lengths(self, level: DraftLevel) -> NDArray[np.int64]:
            assert (level.top1_probability > 0).all() and (level.top1_probability <= 1).all()
            assert (level.entropy >= 0).all() and (level.margin >= 0).all()
            return level.going_on(np.asarray([row != 0 or level.depth < 2 for row in level.requests]))

    engine = Engine(tiny_pair, EngineConfig(max_model_len=64), StopsFirst(5))
    for temperature in (0.0, 1.0):
        engine.add_request([1, 2, 3], SamplingParams(max_tokens=10, temperature=temperature, ignore_eos=True))
    engine.step()
    assert engine.stats.rounds[0].num_drafted == (2, 5)
