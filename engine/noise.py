"""Counter-based random numbers: noise that is a function of (seed, position, stream) alone, on any device.

The Gumbel coupling (drafter-invariant speculative decoding, arXiv 2408.07978) needs the target and the drafter to
see the same noise at the same position of a request, however the text got there; a stateful generator cannot give it.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

TARGET_STREAM = 0
"""Noise of the text itself; in ``coupled`` mode the drafter shares it."""
DRAFT_STREAM = 1
"""The drafter's own noise in ``rejection`` mode."""
ACCEPT_STREAM = 2
"""Accept/reject coins and residual draws in ``rejection`` mode."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _splitmix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits with full avalanche."""
    with np.errstate(over="ignore"):
        value = value + _GOLDEN
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


def noise_keys(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], stream: int, draw: int = 0
) -> NDArray[np.uint64]:
    """Mix (seed, position, stream, draw) to 64-bit keys; arrays broadcast. ``draw`` tells repeated draws apart."""
    key = _splitmix(np.asarray(seeds).astype(np.uint64))
    key = _splitmix(key ^ np.asarray(positions).astype(np.uint64))
    return _splitmix(key ^ np.uint64((draw << 2) | stream))


def _lowbias32(value: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32 integer hash, in place on int32 (shifts made logical by masking)."""
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    value *= 0x7FEB352D
    value ^= (value >> 15).bitwise_and_(0x1FFFF)
    value *= 0x846CA68B - (1 << 32)
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    return value


def gumbel_noise(keys: NDArray[np.uint64], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise, float32 ``[*keys.shape, vocab_size]``; the same on every run and for any batch."""
    flat = torch.from_numpy(np.ascontiguousarray(keys).view(np.int32).reshape(-1, 2)).to(device)
    # On a CPU some rows at a time, so that the two dozen passes over them stay in its cache.
    rows = max(1, 2**15 // vocab_size) if device.type == "cpu" else len(flat)
    parts = [_gumbel_rows(part, vocab_size) for part in flat.split(max(rows, 1))]
    noise = parts[0] if len(parts) == 1 else torch.cat(parts)
    return noise.view(*keys.shape, vocab_size)


def _gumbel_rows(halves: torch.Tensor, vocab_size: int) -> torch.Tensor:
    value = torch.arange(vocab_size, dtype=torch.int32, device=halves.device) + halves[:, :1]
    value = _lowbias32(value)
    value ^= halves[:, 1:]
    value = _lowbias32(value)
    # 23 bits, not 24: float32 rounds 2**24 - 0.5 up, and a uniform of exactly 1 would be infinite noise.
    uniform = ((value >> 9).bitwise_and_(0x7FFFFF)).float().add_(0.5).mul_(2.0**-23)  # in (0, 1), both ends excluded
    return uniform.log_().neg_().log_().neg_()


def coins(seed: int, position: int, draw: int) -> np.random.Generator:
    """A numpy generator for the accept/reject coins of one request's round (``rejection`` mode)."""
    key = noise_keys(np.asarray([seed]), np.asarray([position]), ACCEPT_STREAM, draw)
    return np.random.Generator(np.random.Philox(key=int(key[0])))
