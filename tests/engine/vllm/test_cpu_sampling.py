"""Sampling with speculation on vLLM's CPU build gives the target's distribution."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

vllm = pytest.importorskip("vllm")

from scipy.stats import chisquare  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402
from vllm.v1.sample import rejection_sampler  # noqa: E402

from specpilot.engine.vllm import cpu_sampling  # noqa: E402
from specpilot.engine.vllm.cpu_sampling import expanded, fault  # noqa: E402

from ...support.vllm_engine import CommandedEngine  # noqa: E402

TEMPERATURE, TOP_K, NUM_TOKENS, NUM_SAMPLES = 0.7, 4, 3, 1500


@pytest.fixture(scope="module", autouse=True)
def installed() -> None:
    assert cpu_sampling.install()


@pytest.fixture(scope="module")
def prompt(evaluation_prompts: list[list[int]]) -> list[int]:
    return evaluation_prompts[3][:40]


@pytest.fixture(scope="module")
def engine(pair_directory: Path) -> CommandedEngine:
    return CommandedEngine(pair_directory, max_num_seqs=64)


@pytest.fixture(scope="module")
def expected(pair_directory: Path, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Exact probability of each text of `NUM_TOKENS` tokens after the prompt, from the target model itself."""
    model = AutoModelForCausalLM.from_pretrained(pair_directory / "target", dtype=torch.float32)
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(NUM_TOKENS):
        texts = list(found)
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + list(text) for text in texts])).logits[:, -1]
        best = logits.topk(TOP_K)
        probabilities = torch.softmax(best.values / TEMPERATURE, dim=-1)
        found = {
            (*text, int(best.indices[i, j])): found[text] * float(probabilities[i, j])
            for (i, text), j in itertools.product(enumerate(texts), range(TOP_K))
        }
    return found


def sampled(engine: CommandedEngine, prompt: list[int]) -> Counter[tuple[int, ...]]:
    requests = [
        (
            0,
            prompt,
            vllm.SamplingParams(
                temperature=TEMPERATURE, top_k=TOP_K, max_tokens=NUM_TOKENS, seed=i, ignore_eos=True, detokenize=False
            ),
        )
        for i in range(NUM_SAMPLES)
    ]
    return Counter(tuple(text) for text in engine.serve(requests).texts.values())


def p_value(counts: Counter[tuple[int, ...]], expected: dict[tuple[int, ...], float]) -> float:
    """Of a chi-square test; texts of fewer than 5 expected samples, and impossible ones, share a cell."""
    frequent = [text for text, probability in expected.items() if probability * NUM_SAMPLES >= 5]
    observed = np.array([counts[text] for text in frequent] + [0.0])
    wanted = np.array([expected[text] * NUM_SAMPLES for text in frequent] + [0.0])
    observed[-1], wanted[-1] = NUM_SAMPLES - observed.sum(), max(NUM_SAMPLES - wanted.sum(), 1e-3)
    return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)


def test_samples_with_speculation_have_the_target_s_distribution(
    engine: CommandedEngine, prompt: list[int], expected: dict[tuple[int, ...], float]
) -> None:
    counts = sampled(engine, prompt)
    assert len(counts) > 10, "the prompt leaves nothing to chance"
    assert p_value(counts, expected) > 1e-3


@pytest.mark.parametrize("wrong", [lambda x: torch.full_like(x, 2)], ids=["2"])
def test_a_broken_repair_is_found_out(
    engine: CommandedEngine, prompt: list[int], expected: dict[tuple[int, ...], float], monkeypatch: Any, wrong: Any
) -> None:
    """Every temperature and top-k is 2 in place of the request's."""
    monkeypatch.setattr(
        rejection_sampler,
        "expand_batch_to_tokens",
        lambda x, cumulative, count, **named: wrong(x.new_empty(count)),
    )
    assert p_value(sampled(engine, prompt), expected) < 1e-6


def test_a_drafter_that_is_the_target_has_every_draft_accepted(
    pair_directory: Path, evaluation_prompts: list[list[int]]
) -> None:
    engine = CommandedEngine(pair_directory, drafter="target", speculative={"draft_sample_method": "probabilistic"})
    parameters = vllm.SamplingParams(temperature=0.8, max_tokens=40, seed=1, ignore_eos=True, detokenize=False)
    recording = engine.serve([(0, prompt, parameters) for prompt in evaluation_prompts[:8]])
    drafted = sum(min(len(recording.drafts[key]), 4) for key in recording.accepted)
    assert drafted > 200
    assert sum(recording.accepted.values()) >= 0.99 * drafted


def test_temperatures_are_spread_over_each_request_s_tokens() -> None:
    given = expanded(torch.tensor([0.5, 0.0, 2.0]), torch.tensor([2, 2, 5]), 5, 0, 1)
    assert given.tolist() == [0.5, 0.5, 2.0, 2.0, 2.0]
    assert expanded(torch.tensor([0.0, 3.0]), torch.tensor([1, 3]), 3, 0, 1).tolist() == [1.0, 3.0, 3.0]
    assert expanded(torch.tensor([7]), torch.tensor([0]), 0).tolist() == []


def test_what_is_used_on_cpu_passes_the_check_and_what_is_wrong_does_not() -> None:
    assert fault(rejection_sampler.expand_batch_to_tokens) is None
    assert fault(expanded_with_vllm_s_names) is None
    assert fault(lambda x, cumulative, count, **named: x.new_empty(count)) is not None
    assert fault(lambda x, cumulative, count, **named: x.new_ones(count)) is not None


def expanded_with_vllm_s_names(x: Any, cu_num_tokens: Any, num_tokens: int, **named: int) -> Any:
    return expanded(x, cu_num_tokens, num_tokens, **named)


def test_a_vllm_that_is_right_is_left_alone_and_one_that_is_wrong_is_repaired_with_one_line(caplog: Any) -> None:
    values, cumulative = torch.tensor([0.5, 2.0]), torch.tensor([1, 3], dtype=torch.int32)
    right = cpu_sampling._CheckedExpand(expanded_with_vllm_s_names, lambda: True)
    assert right(values, cumulative, 3).tolist() == [0.5, 2.0, 2.0]
    assert not caplog.records
    wrong = cpu_sampling._CheckedExpand(lambda x, cumulative, count, **named: x.new_zeros(count), lambda: True)
    for _ in range(3):
        assert wrong(values, cumulative, 3).tolist() == [0.5, 2.0, 2.0]
    assert [record.message for record in caplog.records if "55005" in record.message] and len(caplog.records) == 1


def test_installing_twice_wraps_once() -> None:
    wrapped = rejection_sampler.expand_batch_to_tokens
    assert cpu_sampling.install()
    assert rejection_sampler.expand_batch_to_tokens is wrapped
