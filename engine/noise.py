"""Counter-based random numbers: noise that is a function of (seed, position, stream) alone, on any device.

The Gumbel coupling (drafter-invariant speculative decoding, arXiv 2408.07978) needs the target and the drafter to
see the same noise at the same position of a request, however the text got there; a stateful generator cannot give it.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

TARGET_STREAM = 0
"""Noise of the text itself; in ``coupled`` mode the drafter shares it."""
DRAFT_STREAM = 1
"""The drafter's own noise in ``rejection`` mode."""
ACCEPT_STREAM = 2
"""Accept/reject coins and residual draws in ``rejection`` mode."""


@functools.cache
def _kernel() -> Any:
    """The compiled functions. Imported when they are first needed: where vLLM alone makes the texts, they never are."""
    from . import noise_kernel

    return noise_kernel


def noise_keys(
    seeds: NDArray[np.int64], positions: NDArray[np.int64], stream: int, draw: int = 0
) -> NDArray[np.uint64]:
    """Mix (seed, position, stream, draw) to 64-bit keys; arrays broadcast. ``draw`` tells repeated draws apart."""
    shape = np.broadcast_shapes(np.shape(seeds), np.shape(positions))
    own, at = (np.broadcast_to(value, shape).astype(np.uint64).ravel() for value in (seeds, positions))
    keys: NDArray[np.uint64] = _kernel().mixed_keys(own, at, (draw << 2) | stream).reshape(shape)
    return keys


def gumbel_noise(keys: NDArray[np.uint64], vocab_size: int, device: torch.device) -> torch.Tensor:
    """Standard Gumbel noise, float32 ``[*keys.shape, vocab_size]``; the same on every run and for any batch."""
    halves = np.ascontiguousarray(keys).view(np.int32).reshape(-1, 2)
    if device.type == "cpu":
        uniform = torch.from_numpy(_kernel().uniform_rows(halves.view(np.uint32), vocab_size))
    else:
        uniform = _uniform_on_device(torch.from_numpy(halves).to(device), vocab_size)
    return uniform.log_().neg_().log_().neg_().view(*keys.shape, vocab_size)


def _uniform_on_device(halves: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """`uniform_rows` in two dozen passes over the rows, on any device."""
    value = torch.arange(vocab_size, dtype=torch.int32, device=halves.device) + halves[:, :1]
    value = _lowbias32(value)
    value ^= halves[:, 1:]
    value = _lowbias32(value)
    return (value >> 9).bitwise_and_(0x7FFFFF).float().add_(0.5).mul_(2.0**-23)


def _lowbias32(value: torch.Tensor) -> torch.Tensor:
    """Wellons' lowbias32 integer hash, in place on int32 (shifts made logical by masking)."""
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    value *= 0x7FEB352D
    value ^= (value >> 15).bitwise_and_(0x1FFFF)
    value *= 0x846CA68B - (1 << 32)
    value ^= (value >> 16).bitwise_and_(0xFFFF)
    return value


def coins(seed: int, position: int, draw: int) -> np.random.Generator:
    """A numpy generator for the accept/reject coins of one request's round (``rejection`` mode)."""
    key = noise_keys(np.asarray([seed]), np.asarray([position]), ACCEPT_STREAM, draw)
    return np.random.Generator(np.random.Philox(key=int(key[0])))
