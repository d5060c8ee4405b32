"""The noise is Gumbel, and a function of seed, position and stream alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from specpilot.engine.noise import (
    ACCEPT_STREAM,
    DRAFT_STREAM,
    TARGET_STREAM,
    _uniform_on_device,
    coins,
    gumbel_noise,
    noise_keys,
)
from specpilot.engine.noise_kernel import uniform_rows

CPU = torch.device("cpu")


def noise(seeds: object, positions: object, stream: int = TARGET_STREAM, draw: int = 0, size: int = 64) -> torch.Tensor:
    return gumbel_noise(noise_keys(np.asarray(seeds), np.asarray(positions), stream, draw), size, CPU)


def test_noise_does_not_depend_on_the_batch_it_is_drawn_in() -> None:
    seeds, positions = np.arange(12), np.arange(100, 112)
    whole = noise(seeds, positions)
    for row in range(12):
        assert torch.equal(noise(seeds[row : row + 1], positions[row : row + 1])[0], whole[row])
    table = noise(seeds[:, None], positions[:5] + np.zeros((12, 1), dtype=np.int64))
    assert table.shape == (12, 5, 64)
    assert torch.equal(table[7, 3], noise([7], [103])[0])
    assert torch.equal(noise([3], [9], size=16)[0], noise([3], [9], size=64)[0, :16])


def test_noise_is_the_same_on_every_run() -> None:
    """Recordings are only worth something while these numbers stay."""
    keys = noise_keys(np.asarray([0, 1, 2**62]), np.asarray([0, 5, 1000]), TARGET_STREAM)
    assert np.array_equal(keys, noise_keys(np.asarray([0, 1, 2**62]), np.asarray([0, 5, 1000]), TARGET_STREAM))
    assert len(set(keys.tolist())) == 3


def test_the_compiled_noise_is_that_of_other_devices() -> None:
    keys = np.random.default_rng(0).integers(0, 2**64, 300, dtype=np.uint64)
    halves = keys.view(np.int32).reshape(-1, 2)
    compiled = torch.from_numpy(uniform_rows(halves.view(np.uint32), 2048))
    assert torch.equal(compiled, _uniform_on_device(torch.from_numpy(halves), 2048))


def test_keys_are_the_same_as_ever() -> None:
    """SplitMix64 by hand: texts and recordings depend on these numbers."""

    def mix(value: int) -> int:
        value = (value + 0x9E3779B97F4A7C15) % 2**64
        value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
        return value ^ (value >> 31)

    for seed, position, draw in ((0, 0, 0), (2**62, 7, 0), (12345, 999, 3)):
        expected = mix(mix(mix(seed) ^ position) ^ (draw << 2 | DRAFT_STREAM))
        assert int(noise_keys(np.asarray([seed]), np.asarray([position]), DRAFT_STREAM, draw)[0]) == expected


def test_noise_is_gumbel() -> None:
    sample = noise(np.arange(500), np.arange(500), size=400).flatten().double().numpy()
    assert stats.kstest(sample, "gumbel_r").pvalue > 1e-3


def test_noise_is_finite_at_both_ends_of_the_generator() -> None:
    """The extreme outputs of the 32-bit hash are rare, so many numbers are drawn: none may be infinite."""
    for start in range(0, 24_000, 4000):
        assert torch.isfinite(noise(np.arange(start, start + 4000), np.zeros(4000, dtype=np.int64), size=2048)).all()


def test_the_best_of_perturbed_logits_is_a_sample_of_their_softmax() -> None:
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0, -3.0])
    choice = (logits + noise(np.arange(40_000), np.full(40_000, 17), size=5)).argmax(-1)
    counts = np.bincount(choice.numpy(), minlength=5)
    assert stats.chisquare(counts, logits.double().softmax(-1).numpy() * counts.sum()).pvalue > 1e-3


@pytest.mark.parametrize(
    "other",
    [
        lambda s, p: noise(s, p + 1),
        lambda s, p: noise(s + 1, p),
        lambda s, p: noise(s, p, DRAFT_STREAM),
        lambda s, p: noise(s, p, ACCEPT_STREAM),
        lambda s, p: noise(s, p, TARGET_STREAM, draw=1),
        lambda s, p: noise(p, s),
        lambda s, p: noise(s, p).roll(1, dims=-1),
    ],
    ids=["position", "seed", "draft stream", "accept stream", "draw", "swapped", "token"],
)
def test_different_keys_give_uncorrelated_noise(other: object) -> None:
    seeds, positions = np.arange(1000), np.arange(5000, 6000)
    ours = noise(seeds, positions).flatten().numpy()
    theirs = other(seeds, positions).flatten().numpy()  # type: ignore[operator]
    assert abs(stats.spearmanr(ours, theirs).statistic) < 4 / np.sqrt(ours.size)


def test_neighbouring_seeds_and_positions_have_distinct_keys() -> None:
    seeds, positions = np.meshgrid(np.arange(300), np.arange(300))
    keys = [noise_keys(seeds, positions, stream, draw) for stream in range(3) for draw in range(3)]
    assert len(np.unique(np.stack(keys))) == 9 * 300 * 300


def test_coins_are_fresh_each_round_and_repeatable() -> None:
    first = coins(5, 10, 0).random(4)
    assert (coins(5, 10, 0).random(4) == first).all()
    assert not np.isin(coins(5, 10, 1).random(4), first).any()
    assert not np.isin(coins(5, 11, 0).random(4), first).any()
