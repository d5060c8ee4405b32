"""Keys, and uniform numbers from them on a CPU, each in one compiled pass.

A request that samples needs a row of the whole vocabulary for every token drafted or verified: pass by pass, in torch
or NumPy, that takes ten times as long and up to a tenth of a small pair's round.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..controllers.compiled import compiled


@compiled
def _splitmix(value: np.uint64) -> np.uint64:
    """The finaliser of SplitMix64 (Steele et al. 2014): a bijection of 64 bits with full avalanche."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@compiled
def mixed_keys(seeds: NDArray[np.uint64], positions: NDArray[np.uint64], tail: int) -> NDArray[np.uint64]:
    """``[N]`` 64-bit keys of ``seeds`` ``[N]``, ``positions`` ``[N]`` and ``tail``."""
    keys = np.empty(len(seeds), dtype=np.uint64)
    for at in range(len(seeds)):
        keys[at] = _splitmix(_splitmix(_splitmix(seeds[at]) ^ positions[at]) ^ np.uint64(tail))
    return keys


@compiled
def _lowbias32(value: np.uint32) -> np.uint32:
    """Wellons' lowbias32 integer hash."""
    value ^= value >> np.uint32(16)
    value = np.uint32(value * np.uint32(0x7FEB352D))
    value ^= value >> np.uint32(15)
    value = np.uint32(value * np.uint32(0x846CA68B))
    return value ^ (value >> np.uint32(16))


@compiled
def uniform_rows(halves: NDArray[np.uint32], vocab_size: int) -> NDArray[np.float32]:
    """``[R, vocab_size]`` uniform in (0, 1), both ends excluded; ``halves`` ``[R, 2]``: each row's key, 64 bits."""
    uniform = np.empty((len(halves), vocab_size), dtype=np.float32)
    for row in range(len(halves)):
        first, second = halves[row]
        for token in range(vocab_size):
            value = _lowbias32(_lowbias32(np.uint32(np.uint32(token) + first)) ^ second)
            # 23 bits, not 24: float32 rounds 2**24 - 0.5 up, and a uniform of exactly 1 would be infinite noise.
            number = np.float32(np.int32(value >> np.uint32(9))) + np.float32(0.5)
            uniform[row, token] = number * np.float32(2.0**-23)
    return uniform
