"""A round's noise: whatever is asked for in whatever order, it is that of the request's seed and position."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from specpilot.engine.noise import TARGET_STREAM, gumbel_noise, noise_keys
from specpilot.engine.round_noise import RoundNoise
from specpilot.engine.sampler import RowSampling
from specpilot.engine.sampling_params import SamplingParams

CPU, VOCAB, WIDTH = torch.device("cpu"), 96, 9


def requests(batch: int) -> list[Any]:
    return [SimpleNamespace(token_ids=[0] * (5 + 3 * row)) for row in range(batch)]


def sampling(temperatures: list[float]) -> RowSampling:
    params = [SamplingParams(temperature=own) for own in temperatures]
    return RowSampling.of(params, range(100, 100 + len(params)))


@pytest.mark.parametrize("temperatures", [[0.6], [1.0] * 3, [0.6, 0.0, 1.0, 0.0, 0.3], [0.5] * 20])
def test_every_entry_is_the_noise_of_its_seed_and_position(temperatures: list[float]) -> None:
    batch, rng = len(temperatures), np.random.default_rng(len(temperatures))
    for _ in range(20):
        noise = RoundNoise(requests(batch), sampling(temperatures), WIDTH, VOCAB, CPU)
        for _ in range(12):
            rows = np.sort(rng.choice(batch, int(rng.integers(1, batch + 1)), replace=False))
            depth: Any = int(rng.integers(1, WIDTH + 1))
            if rng.random() < 0.3:  # As verification asks.
                rows = np.repeat(rows, rng.integers(1, 4, len(rows)))
                depth = rng.integers(1, WIDTH + 1, len(rows))
            found = noise.at(rows, depth)
            assert found is not None
            for at, (row, own) in enumerate(zip(rows, np.broadcast_to(depth, rows.shape), strict=True)):
                keys = noise_keys(np.asarray([100 + row]), np.asarray([5 + 3 * row + own - 1]), TARGET_STREAM)
                expected = gumbel_noise(keys, VOCAB, CPU)[0] if temperatures[row] > 0 else torch.zeros(VOCAB)
                assert torch.equal(found[at], expected)


def test_greedy_requests_have_none() -> None:
    assert RoundNoise(requests(2), sampling([0.0, 0.0]), WIDTH, VOCAB, CPU).at(np.arange(2), 1) is None
