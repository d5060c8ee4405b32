"""Recording from vLLM: the trace says what real rounds accept, and costs come out of step times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from specpilot.controllers import ConstantController, RoundOutcome
from specpilot.engine import EngineConfig, SamplingParams
from specpilot.engine.vllm.engine import VllmEngine, VllmEngineConfig
from specpilot.envs.live import recorded_params
from specpilot.envs.trace import Trace
from specpilot.train.recording import RecordingError, TextRequest
from specpilot.train.vllm_costs import StepGrid, StepTime, measure_steps, sampling_overhead, surface_of
from specpilot.train.vllm_recording import VllmRecorder

LONGEST = 4
TEMPERATURES = (0.0, 0.6, 1.0, 0.0, 0.6, 1.0)
FIELDS = {"hardware": "none", "dtype": "float32", "versions": "none"}


@pytest.fixture(scope="module")
def recorder(pair_directory: Path) -> VllmRecorder:
    pytest.importorskip("vllm")
    sizes = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=LONGEST)
    return VllmRecorder(str(pair_directory / "target"), str(pair_directory / "drafter"), sizes, "float32")


@pytest.fixture(scope="module")
def trace(recorder: VllmRecorder, evaluation_prompts: list[list[int]]) -> Trace:
    requests = [
        TextRequest(
            tuple(prompt),
            SamplingParams(temperature=TEMPERATURES[number], seed=number, max_tokens=40),
            "code" if number % 2 else "prose",
        )
        for number, prompt in enumerate(evaluation_prompts[:6])
    ]
    return recorder.record(requests)


class Outcomes(ConstantController):
    """A constant that notes what was accepted of what."""

    def __init__(self, length: int) -> None:
        super().__init__(length)
        self.rounds = list[tuple[int, int]]()

    def observe(self, outcome: RoundOutcome) -> None:
        self.rounds.append((int(outcome.num_verified[0]), int(outcome.accepted_length[0])))


@pytest.mark.parametrize("length", [1, LONGEST])
def test_rounds_accept_what_the_recording_says(trace: Trace, pair_directory: Path, length: int) -> None:
    """One request at a time, of every temperature, through the steered engine: every round's outcome, read from the
    trace beforehand."""
    directory = str(pair_directory / "target"), str(pair_directory / "drafter")
    engine = VllmEngine(VllmEngineConfig(*directory, max_num_seqs=1, max_num_speculative_tokens=LONGEST))
    for request in range(3):
        engine.controller = controller = Outcomes(length)
        limit = int(trace.token_limit[request])
        name = engine.add_request(trace.prompt(request), recorded_params(trace, request))
        while engine.has_work:
            engine.step()
        tokens = len(engine.take_result(name).token_ids)
        assert tokens == trace.output_tokens[request]
        at = 1
        assert controller.rounds[0] == (0, 0), "the prefill's step verifies nothing and gains the first token"
        for verified, accepted in controller.rounds[1:]:
            assert verified == length or at + length >= limit - 1, "only the end of a request cuts a draft"
            assert accepted == min(verified, int(trace.accepted_length[trace.first[request] + at]))
            at += accepted + 1
        assert at >= tokens


def test_nothing_is_accepted_before_the_first_token(trace: Trace) -> None:
    assert trace.tokens_from_prefill == 1 and not trace.has_draft()[trace.first].any()
    assert (trace.accepted_length[trace.first] == 0).all() and trace.accepted_length.max() == LONGEST
    assert trace.facts["engine"] == "vllm" and trace.confidence is None and set(trace.categories) == {"code", "prose"}


def test_spoiled_drafts_are_never_accepted(recorder: VllmRecorder, evaluation_prompts: list[list[int]]) -> None:
    engine = recorder.engine
    name = engine.add_request(evaluation_prompts[0], SamplingParams(max_tokens=30, ignore_eos=True))
    engine.scheduler.length, engine.scheduler.verify = LONGEST, True
    steps = 0
    while engine.has_work:
        assert [len(chunk.token_ids) for chunk in engine.step()] == [1]
        steps += 1
    assert steps == 30 == len(engine.take_result(name).token_ids)


def test_a_request_that_ends_with_its_first_token_is_left_out(
    recorder: VllmRecorder, evaluation_prompts: list[list[int]]
) -> None:
    requests = [
        TextRequest(tuple(prompt), SamplingParams(max_tokens=count))
        for prompt, count in zip(evaluation_prompts, (1, 5), strict=False)
    ]
    found = recorder.record(requests)
    assert found.output_tokens.tolist() == [5] and found.prompt(0) == evaluation_prompts[1]
    with pytest.raises(RecordingError, match="ends with its first token"):
        recorder.record(requests[:1])


def test_requests_that_sample_without_a_seed_accept_as_much_as_the_recording_says(
    recorder: VllmRecorder, pair_directory: Path, evaluation_prompts: list[list[int]]
) -> None:
    """vLLM's own verification, other texts, the same law: tokens per round over some thousand rounds, within four
    standard errors."""
    params = SamplingParams(temperature=0.8, max_tokens=96, ignore_eos=True)
    prompts = evaluation_prompts[:24]
    seeded = [TextRequest(tuple(prompt), replace(params, seed=number)) for number, prompt in enumerate(prompts)]
    trace = recorder.record(seeded)
    assert set(trace.temperature.tolist()) == {np.float32(0.8)} and (trace.output_tokens == 96).all()
    recorded = list[float]()
    for first in trace.first.tolist():
        at, rounds = 1, 0
        while at < 96 - LONGEST:
            at += 1 + int(trace.accepted_length[first + at])
            rounds += 1
        recorded.append((at - 1) / rounds)
    directory = str(pair_directory / "target"), str(pair_directory / "drafter")
    engine = VllmEngine(VllmEngineConfig(*directory, max_num_seqs=1, max_num_speculative_tokens=LONGEST))
    served = list[float]()
    for prompt in prompts:
        engine.controller = controller = Outcomes(LONGEST)
        name = engine.add_request(prompt, params)
        while engine.has_work:
            engine.step()
        engine.take_result(name)
        whole = [accepted for verified, accepted in controller.rounds[1:] if verified == LONGEST]
        served.append(1 + float(np.mean(whole)))
    error = np.hypot(np.std(recorded), np.std(served)) / np.sqrt(len(prompts))
    assert error < 0.25 and abs(np.mean(recorded) - np.mean(served)) < 4 * error
    assert 1 + 4 * error < np.mean(recorded) < 1 + LONGEST - 4 * error, (
        "a law that accepts all or nothing is told apart"
    )


def test_drafts_that_are_sampled_are_refused_above_temperature_0(
    recorder: VllmRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = recorder.engine.scheduler.vllm_config.speculative_config
    monkeypatch.setattr(own, "draft_sample_method", "probabilistic")
    with pytest.raises(RecordingError, match=r"temperature 0\.6.*draft_sample_method to greedy"):
        recorder.record([TextRequest((1, 2), SamplingParams(temperature=0.6, seed=1))])


def test_steps_of_vllm_are_measured(recorder: VllmRecorder, trace: Trace, tmp_path: Path) -> None:
    grid = StepGrid(batches=(1, 4), contexts=(16, 32), chunk_tokens=(8, 16), steps=2, sweeps=1)
    surface = measure_steps(recorder.engine, grid=grid)
    assert not recorder.engine.has_work and "vllm" in surface.fields["versions"]
    assert set(surface.costs) == {"draft", "verify", "catch_up", "prefill"}
    assert surface.costs["verify"].axes == ((1, 4), (1, 2, 3, 5), (16, 32))
    assert surface.drafts_whole_batch
    surface.save(tmp_path / "cost_surface.json")
    assert type(surface).load(tmp_path / "cost_surface.json").fingerprint == surface.fingerprint


def test_sampling_costs_what_most_steps_say_by_row_and_by_round_with_drafts() -> None:
    rows = [
        (batch * (length + 1), length > 0, 3e-5 * batch * (length + 1) + 2e-3 * (length > 0))
        for batch in (1, 4, 32)
        for length in (0, 2, 8)
    ]
    found = sampling_overhead([*rows, (4, False, 1.0), (2, True, -1.0)])
    assert found == {"per_noise_row": pytest.approx(3e-5), "noisy_drafting": pytest.approx(2e-3)}
    found = sampling_overhead([(4, False, -1e-3), (8, True, -1e-3)])
    assert found == {"per_noise_row": 0.0, "noisy_drafting": 0.0}


def test_the_surface_gives_back_the_steps_it_was_made_of() -> None:
    """Steps of known seconds: rounds of every length are predicted by the surface, on and off the grid."""
    grid = StepGrid(batches=(1, 8), contexts=(64, 256), chunk_batches=(1,), chunk_tokens=(16, 64))

    def rest(batch: int, length: int, context: int) -> float:
        return 0.01 + 1e-4 * batch * (length + 1) + 1e-6 * context * batch

    def draft(batch: int, length: int) -> float:
        return 0.0 if length == 0 else 2e-3 + length * (1e-3 + 1e-5 * batch) + 2e-5 * batch * length

    times = {
        (batch, context): {
            length: [StepTime(draft(batch, length), rest(batch, length, context))] * 3 for length in grid.lengths
        }
        for batch in grid.batches
        for context in grid.contexts
    }
    surface = surface_of(grid, times, {(1, n): [(1e-3 * n, 1e-4 * n)] * 3 for n in grid.chunk_tokens}, FIELDS)
    for batch, context in ((1, 64), (4, 128), (8, 256)):
        for length in (0, 1, 3, 8):
            found = surface.round_seconds([length] * batch, [context] * batch, [1] * batch)
            assert found == pytest.approx(rest(batch, length, context) + draft(batch, length), rel=0.02)
    assert surface.seconds("prefill", 1, 16, 0) == pytest.approx(0.016)
    assert surface.seconds("catch_up", 1, 64, 0) == pytest.approx(0.0064)
    assert np.isfinite(surface.overhead.coefficients()).all()
