"""Filters and temperature against transformers' own logits warpers, with different requests in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from specpilot.engine import SamplingParams
from specpilot.engine.noise import TARGET_STREAM
from specpilot.engine.sampler import RowSampling, probabilities, temper

KINDS: list[dict[str, float]] = [
    {"temperature": 1.0},
    {"temperature": 0.6},
    {"temperature": 1.7, "top_k": 5},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.0, "top_p": 0.3, "top_k": 20},
    {"temperature": 0.0},
    {"temperature": 0.0, "top_k": 3, "top_p": 0.5},
    {"temperature": 1.0, "top_k": 1},
    {"temperature": 1.0, "top_k": 10_000},
    {"temperature": 2.0, "top_p": 1e-6},
]


def rows(num_rows: int, size: int = 200, seed: int = 0) -> tuple[torch.Tensor, list[SamplingParams], RowSampling]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_rows, size, generator=generator) * 4
    params = [SamplingParams(**KINDS[row % len(KINDS)]) for row in range(num_rows)]  # type: ignore[arg-type]
    return logits, params, RowSampling.of(params, list(range(num_rows)))


def warped(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """One row through transformers' warpers, in the order its ``generate`` uses."""
    scores, ids = logits[None], torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(float(params.temperature))(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    result: torch.Tensor = scores[0]
    return result


@pytest.mark.parametrize("seed", range(5))
def test_filters_are_those_of_transformers(seed: int) -> None:
    logits, params, sampling = rows(40, seed=seed)
    before = logits.clone()
    tempered = temper(logits, sampling)
    assert torch.equal(logits, before), "the caller's logits must stay"
    for row, own in enumerate(params):
        expected = logits[row] if own.temperature == 0 else warped(logits[row], own)
        torch.testing.assert_close(tempered[row], expected, rtol=1e-5, atol=1e-5)


def test_probabilities_are_the_softmax_of_the_filtered_logits() -> None:
    logits, params, sampling = rows(20)
    distribution = probabilities(logits, sampling)
    assert distribution.dtype == torch.float64
    for row, own in enumerate(params):
        if own.temperature == 0:
            assert distribution[row].argmax() == logits[row].argmax() and distribution[row].max() == 1
        else:
            torch.testing.assert_close(distribution[row], warped(logits[row], own).double().softmax(-1))
    torch.testing.assert_close(distribution.sum(-1), torch.ones(20, dtype=torch.float64))


def test_rows_do_not_influence_each_other() -> None:
    logits, _, sampling = rows(30)
    whole, distribution = temper(logits, sampling), probabilities(logits, sampling)
    for row in range(30):
        alone = sampling.take(np.asarray([row]))
        assert torch.equal(temper(logits[row : row + 1], alone)[0], whole[row])
        assert torch.equal(probabilities(logits[row : row + 1], alone)[0], distribution[row])


def test_top_k_keeps_exactly_k_where_logits_tie() -> None:
    sampling = RowSampling.of([SamplingParams(temperature=1.0, top_k=3)], [0])
    assert int(torch.isfinite(temper(torch.zeros(1, 10), sampling)).sum()) == 3


@pytest.mark.parametrize("top_p", [1e-9, 0.01, 0.999999])
def test_top_p_always_keeps_the_best_token(top_p: float) -> None:
    sampling = RowSampling.of([SamplingParams(temperature=1.0, top_p=top_p)], [0])
    tempered = temper(torch.tensor([[0.0, 5.0, 1.0]]), sampling)
    assert tempered.argmax() == 1 and torch.isfinite(tempered[0, 1])


def test_top_p_of_one_keeps_every_token_of_a_large_vocabulary() -> None:
    sampling = RowSampling.of([SamplingParams(temperature=1.0, top_p=1.0, top_k=200_000)], [0])
    assert torch.isfinite(temper(torch.randn(1, 150_000), sampling)).all()


@pytest.mark.parametrize("temperature", [1e-3, 1e-12, 1e-30, 1e-38, 1e-44, 1e-300])
def test_a_tiny_temperature_chooses_the_best_token(temperature: float) -> None:
    logits = torch.tensor([[1.0, 8.0, 20.0, 19.0]])
    sampling = RowSampling.of([SamplingParams(temperature=temperature)], [1])
    scores = temper(logits, sampling)
    noise = sampling.noise(np.asarray([3]), 4, logits.device, TARGET_STREAM)
    assert int((scores if noise is None else scores + noise).argmax()) == 2
    assert probabilities(logits, sampling)[0].argmax() == 2
    assert torch.isfinite(probabilities(logits, sampling)).all()


def test_greedy_rows_get_no_noise() -> None:
    sampling = RowSampling.of([SamplingParams(), SamplingParams(temperature=1.0), SamplingParams()], [1, 1, 1])
    noise = sampling.noise(np.asarray([4, 4, 4]), 50, torch.device("cpu"), TARGET_STREAM)
    assert noise is not None
    assert not noise[0].any() and not noise[2].any() and noise[1].all()
    assert sampling.take(np.asarray([0, 2])).noise(np.asarray([4, 4]), 50, torch.device("cpu"), TARGET_STREAM) is None


def gather(params: Sequence[SamplingParams]) -> RowSampling:
    return RowSampling.of(params, list(range(len(params))))


def test_taking_rows_repeats_them() -> None:
    taken = gather([SamplingParams(temperature=0.5, top_k=2), SamplingParams(top_p=0.5)]).take(np.asarray([1, 0, 0]))
    assert taken.top_k.tolist() == [0, 2, 2] and taken.seed.tolist() == [1, 0, 0]
    assert taken.temperature.tolist() == [0.0, 0.5, 0.5]
