"""Coupled verification: for a seed the text is that of plain decoding, token for token, whatever is drafted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from specpilot.controllers import ConstantController
from specpilot.engine import Engine, EngineConfig, FinishReason, Pair, RequestOutput, SamplingParams

from ..support.controllers import RandomController, TrimmingController
from ..support.ties import assert_same_text

NUM_PROMPTS = 224
STOPS: tuple[tuple[str, ...], ...] = ((), (), (), ("\n\n",), (), ("self.", "return"), (), (":",))


@dataclass(frozen=True)
class Workload:
    """Requests of every kind and what plain decoding makes of them."""

    prompts: list[list[int]]
    params: list[SamplingParams]
    plain: list[RequestOutput]


def mixed_params(index: int, rng: np.random.Generator) -> SamplingParams:
    """Temperatures 0, 0.6 and 1 in turn, filters on half of the sampled requests, stop strings on some."""
    temperature = (0.0, 0.6, 1.0)[index % 3]
    filters = [{}, {"top_p": 0.9}, {}, {"top_k": 20}, {}, {"top_p": 0.8, "top_k": 50}][index // 3 % 6]
    return SamplingParams(
        temperature=temperature,
        seed=int(rng.integers(2**62)),
        max_tokens=int(rng.integers(8, 49)),
        stop=STOPS[index % len(STOPS)],
        **filters,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def workload(pair: Pair, evaluation_prompts: list[list[int]]) -> Workload:
    rng = np.random.default_rng(7)
    prompts = evaluation_prompts[:NUM_PROMPTS]
    params = [mixed_params(index, rng) for index in range(len(prompts))]
    engine = Engine(pair, EngineConfig(max_num_seqs=8, max_model_len=256), ConstantController(0))
    return Workload(prompts, params, engine.generate(prompts, params))


def serve_staggered(
    engine: Engine, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], rng: np.random.Generator
) -> tuple[list[RequestOutput], set[int]]:
    """Add requests between steps, more than there are slots; cancel one in ten at a random time."""
    doomed = {index for index in range(len(prompts)) if rng.random() < 0.1}
    when = {index: int(rng.integers(0, 12)) for index in doomed}
    ids: list[str] = []
    age: dict[int, int] = {}
    while len(ids) < len(prompts) or engine.has_work:
        for _ in range(int(rng.integers(0, 4))):
            if len(ids) < len(prompts):
                ids.append(engine.add_request(prompts[len(ids)], params[len(ids)]))
        engine.step()
        for index in doomed:
            if index < len(ids):
                age[index] = age.get(index, 0) + 1
                if age[index] > when[index]:
                    engine.cancel(ids[index])
    return [engine.take_result(request_id) for request_id in ids], doomed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafter", "num_candidates"), [("model", 1), ("model", 3), ("ngram", 1)], ids=["model", "candidates", "ngram"]
)
def test_any_controller_leaves_the_text_as_plain_decoding_has_it(
    pair: Pair, workload: Workload, drafter: str, num_candidates: int
) -> None:
    config = EngineConfig(max_num_seqs=8, max_model_len=256, drafter=drafter, num_candidates=num_candidates)
    engine = Engine(pair, config, RandomController(seed=11))
    outputs, doomed = serve_staggered(engine, workload.prompts, workload.params, np.random.default_rng(3))
    ties = cancelled = 0
    for index, (output, plain) in enumerate(zip(outputs, workload.plain, strict=True)):
        was_cancelled = output.finish_reason is FinishReason.CANCELLED
        cancelled += was_cancelled
        assert not was_cancelled or index in doomed
        params = workload.params[index]
        assert params.seed is not None
        tie = assert_same_text(
            pair, workload.prompts[index], plain.token_ids, output.token_ids, params, params.seed, was_cancelled
        )
        ties += tie
        if not tie and not was_cancelled:
            assert (output.text, output.finish_reason) == (plain.text, plain.finish_reason)
    print(
        f"{drafter}/{num_candidates}: {ties} ties, {cancelled} cancelled, {len(outputs)} requests, "
        f"accepted length {engine.stats.mean_accepted_length:.2f}"
    )
    assert ties <= len(outputs) // 100
    assert cancelled > 0
    assert engine.stats.num_accepted > 0
    assert {0, 1, 8} <= {drafted for record in engine.stats.rounds for drafted in record.num_drafted}


@pytest.mark.parametrize(
    ("drafter", "num_candidates", "stop_probability"),
    [("model", 1, 0.15), ("model", 1, 0.0), ("model", 3, 0.15), ("ngram", 1, 0.0)],
    ids=["model", "unasked", "candidates", "ngram"],
)
def test_trimming_leaves_the_text_as_plain_decoding_has_it(
    tiny_pair: Pair, drafter: str, num_candidates: int, stop_probability: float
) -> None:
    rng = np.random.default_rng(17)
    prompts = [rng.integers(1, tiny_pair.vocab_size, size=size).tolist() for size in rng.integers(1, 30, size=36)]
    params = [
        SamplingParams(temperature=(0.0, 0.6, 1.0)[index % 3], seed=index, max_tokens=60, ignore_eos=index % 2 == 0)
        for index in range(len(prompts))
    ]
    plain = Engine(tiny_pair, EngineConfig(max_num_seqs=8, max_model_len=128)).generate(prompts, params)
    controller = TrimmingController(seed=5, stop_probability=stop_probability)
    config = EngineConfig(max_num_seqs=8, max_model_len=128, drafter=drafter, num_candidates=num_candidates)
    engine = Engine(tiny_pair, config, controller)
    outputs, _ = serve_staggered(engine, prompts, params, np.random.default_rng(3))
    for index, (output, expected) in enumerate(zip(outputs, plain, strict=True)):
        cancelled = output.finish_reason is FinishReason.CANCELLED
        assert_same_text(
            tiny_pair, prompts[index], expected.token_ids, output.token_ids, params[index], index, cancelled
        )
    stats = engine.stats
    assert stats.num_drafted - stats.num_verified == controller.num_trimmed > 0
    assert 0 < stats.num_accepted <= stats.num_verified
    assert stats.wasted_draft_ratio == 1 - stats.num_accepted / stats.num_drafted


def test_the_workload_holds_every_kind_of_ending(workload: Workload) -> None:
    reasons = {output.finish_reason for output in workload.plain}
    assert reasons == {FinishReason.STOP, FinishReason.LENGTH}
    assert len({params.temperature for params in workload.params}) == 3


@torch.inference_mode()
def transformers_greedy(pair: Pair, prompt: Sequence[int], max_tokens: int) -> list[int]:
    """What ``generate`` of transformers makes of a prompt."""
    eos = sorted(pair.eos_token_ids)
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_tokens, eos_token_id=eos or None, pad_token_id=eos[0] if eos else 0
    )
    ids = torch.tensor([list(prompt)])
    generated: torch.Tensor = pair.target.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
    return [int(token) for token in generated[0, len(prompt) :]]


@pytest.mark.slow
def test_greedy_text_is_that_of_transformers_generate(pair: Pair, evaluation_prompts: list[list[int]]) -> None:
    prompts = evaluation_prompts[:32]
    engine = Engine(pair, EngineConfig(max_num_seqs=8, max_model_len=256, num_candidates=2), RandomController(seed=5))
    params = SamplingParams(max_tokens=32)
    outputs = engine.generate(prompts, params)
    ties = sum(
        assert_same_text(pair, prompt, transformers_greedy(pair, prompt, 32), output.token_ids, params, 0)
        for prompt, output in zip(prompts, outputs, strict=True)
    )
    print(f"{ties} ties")
    assert ties == 0


def test_greedy_text_ends_where_transformers_generate_meets_the_end_of_text(tiny_pair: Pair) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(1, tiny_pair.vocab_size, size=size).tolist() for size in rng.integers(1, 30, size=60)]
    engine = Engine(tiny_pair, EngineConfig(max_num_seqs=16, max_model_len=128), RandomController(seed=5))
    outputs = engine.generate(prompts, SamplingParams(max_tokens=60))
    for prompt, output in zip(prompts, outputs, strict=True):
        assert list(output.token_ids) == transformers_greedy(tiny_pair, prompt, 60)
    reasons = [output.finish_reason for output in outputs]
    assert FinishReason.STOP in reasons and FinishReason.LENGTH in reasons


def test_engine_seeds_give_the_same_text_at_any_length(tiny_pair: Pair) -> None:
    prompts = [[1 + index, 5, 9] for index in range(24)]
    texts = []
    for controller in (ConstantController(0), ConstantController(3), RandomController(seed=1)):
        engine = Engine(tiny_pair, EngineConfig(max_model_len=128, seed=4), controller)
        outputs = engine.generate(prompts, SamplingParams(temperature=1, max_tokens=60))
        texts.append([output.token_ids for output in outputs])
    assert texts[0] == texts[1] == texts[2]
    assert len(set(texts[0])) == len(prompts)


@pytest.mark.parametrize("wrong", [1, 7])
def test_a_difference_that_is_no_tie_is_found(pair: Pair, evaluation_prompts: list[list[int]], wrong: int) -> None:
    prompt = evaluation_prompts[0]
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=8)
    tokens = list(Engine(pair, EngineConfig(max_model_len=256)).generate([prompt], params)[0].token_ids)
    changed = [*tokens]
    changed[wrong] = (tokens[wrong] + 1) % pair.vocab_size
    assert assert_same_text(pair, prompt, tokens, tokens, params, 3) == 0
    with pytest.raises(AssertionError, match="no tie"):
        assert_same_text(pair, prompt, tokens, changed, params, 3)
    with pytest.raises(AssertionError, match="ends at"):
        assert_same_text(pair, prompt, tokens, tokens[:-1], params, 3)
