"""From logits to the distribution a request asked for, and to its perturbed logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from .noise import gumbel_noise, noise_keys
from .sampling_params import SamplingParams

MIN_TEMPERATURE = 1e-6
"""Below it sampling is greedy: dividing by less overflows float32, and the choice is the same."""


@dataclass(frozen=True)
class RowSampling:
    """Sampling of the rows of a logits tensor, one request per row. Arrays are ``[N]``."""

    temperature: NDArray[np.float32]
    top_k: NDArray[np.int64]
    top_p: NDArray[np.float32]
    seed: NDArray[np.int64]

    @classmethod
    def of(cls, params: Sequence[SamplingParams], seeds: Sequence[int]) -> RowSampling:
        """Gather the parameters of several requests."""
        return cls(
            np.asarray([p.temperature if p.temperature >= MIN_TEMPERATURE else 0.0 for p in params], dtype=np.float32),
            np.asarray([p.top_k for p in params], dtype=np.int64),
            np.asarray([p.top_p for p in params], dtype=np.float32),
            np.asarray(seeds, dtype=np.int64),
        )

    @classmethod
    def greedy(cls, count: int) -> RowSampling:
        """``count`` rows that take the most likely token."""
        return cls.of([SamplingParams()] * count, [0] * count)

    def take(self, rows: NDArray[np.int64]) -> RowSampling:
        """Select (or repeat) rows."""
        return RowSampling(self.temperature[rows], self.top_k[rows], self.top_p[rows], self.seed[rows])

    @cached_property
    def scale(self) -> torch.Tensor:
        """``[N, 1]`` float32 divisors of the logits: the temperature, 1 in greedy rows. Made once for all levels."""
        return torch.from_numpy(np.where(self.temperature > 0, self.temperature, 1.0).astype(np.float32))[:, None]

    @cached_property
    def filtered(self) -> NDArray[np.int64]:
        """Rows that sample with top-k or top-p."""
        return np.flatnonzero((self.temperature > 0) & ((self.top_k > 0) | (self.top_p < 1)))

    @cached_property
    def all_greedy(self) -> bool:
        """True if no row samples."""
        return not self.temperature.any()

    def noise(
        self, positions: NDArray[np.int64], vocab_size: int, device: torch.device, stream: int, draw: int = 0
    ) -> torch.Tensor | None:
        """Gumbel noise ``[*positions.shape, vocab_size]``, 0 in greedy rows; None if every row is greedy.

        ``positions`` is ``[N]``, or ``[N, W]`` for several positions of each row.
        """
        if self.all_greedy:
            return None
        seeds = self.seed.reshape(-1, *[1] * (positions.ndim - 1))
        noise = gumbel_noise(noise_keys(seeds, positions, stream, draw), vocab_size, device)
        if not self.temperature.all():
            noise *= torch.from_numpy(self.temperature > 0).to(device).view(-1, *[1] * positions.ndim)
        return noise


def temper(logits: torch.Tensor, sampling: RowSampling) -> torch.Tensor:
    """Apply top-k and top-p (cut tokens become -inf), then divide by the temperature; greedy rows stay as they are.

    ``logits`` is float32 ``[N, vocab_size]`` and is not changed. Top-p is measured at the request's temperature, as
    the usual samplers do.
    """
    if sampling.all_greedy:
        return logits
    device = logits.device
    logits = logits / sampling.scale.to(device)
    cut = sampling.filtered
    if cut.size:
        rows = torch.from_numpy(cut).to(device)
        logits[rows] = _filtered(logits[rows], sampling.take(cut))
    return logits


def _filtered(logits: torch.Tensor, sampling: RowSampling) -> torch.Tensor:
    """Top-k, then top-p on what is left. Ties at the cut are broken by the stable sort: exactly k tokens stay."""
    vocab_size = logits.shape[-1]
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    top_k = torch.from_numpy(np.where(sampling.top_k > 0, sampling.top_k, vocab_size)).to(logits.device)
    rank = torch.arange(vocab_size, device=logits.device)
    ordered = ordered.masked_fill(rank >= top_k[:, None], -torch.inf)
    probability = ordered.softmax(-1)
    before = probability.cumsum(-1) - probability  # mass of the more likely tokens
    top_p = torch.from_numpy(sampling.top_p).to(logits.device)
    # A row without top-p must keep every token: in float32 the mass before the last ones can round up to 1.
    drop = (before >= top_p[:, None]) & (top_p < 1)[:, None]
    drop[:, 0] = False
    return torch.empty_like(logits).scatter_(-1, order, ordered.masked_fill(drop, -torch.inf))


def probabilities(logits: torch.Tensor, sampling: RowSampling) -> torch.Tensor:
    """The distribution each row samples from, float64 ``[N, vocab_size]``; greedy rows are one-hot."""
    distribution = temper(logits, sampling).double().softmax(-1)
    greedy = np.flatnonzero(sampling.temperature == 0)
    if greedy.size:
        rows = torch.from_numpy(greedy).to(logits.device)
        best = logits[rows].argmax(-1, keepdim=True)
        distribution[rows] = torch.zeros_like(distribution[rows]).scatter_(-1, best, 1.0)
    return distribution
