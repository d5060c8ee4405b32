"""The target's Gumbel noise of one round, shared by drafter and verification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from .noise import TARGET_STREAM, gumbel_noise, noise_keys
from .request import Request
from .sampler import RowSampling

ROWS_AT_ONCE = 12
"""So few rows take hardly longer than one: then those of the next depths are made with them."""


class RoundNoise:
    """Every entry is computed at most once, when the drafter or verification asks.

    Noise for the whole vocabulary is dear on a CPU, so greedy requests and depths that no draft reaches must not pay
    for it. Entries lie depth by depth: where all requests draft, a level's noise is a view.
    """

    def __init__(
        self, requests: Sequence[Request], sampling: RowSampling, width: int, vocab_size: int, device: torch.device
    ) -> None:
        """``width``: the deepest token that may be asked for."""
        self._batch, self._seed = len(requests), sampling.seed
        self._ahead = np.asarray([len(request.token_ids) for request in requests])
        self._known = np.tile(sampling.temperature == 0, width)  # [width * B]; greedy: zeros
        self._table: torch.Tensor | None = None  # [width * B, vocab_size]; entry d * B + r: r's token d + 1 ahead
        if not sampling.all_greedy:
            self._table = torch.empty(width * len(requests), vocab_size, device=device)
            greedy = np.flatnonzero(self._known)
            if greedy.size:
                self._table[torch.from_numpy(greedy)] = 0.0

    def at(self, rows: NDArray[np.int64], depth: int | NDArray[np.int64]) -> torch.Tensor | None:
        """Noise ``[len(rows), vocab_size]`` of the token ``depth`` ahead (scalar or per row); None if all are greedy.

        Not to be written to.
        """
        if self._table is None:
            return None
        entries = rows + (depth - 1) * self._batch
        new = entries[~self._known[entries]]
        if new.size:
            self._make(self._table, self._with_next(new))
        return _select(self._table, entries)

    def _make(self, table: torch.Tensor, entries: NDArray[np.int64]) -> None:
        depth, row = np.divmod(entries, self._batch)
        keys = noise_keys(self._seed[row], self._ahead[row] + depth, TARGET_STREAM)
        noise = gumbel_noise(keys, table.shape[1], table.device)
        if _is_range(entries):
            table[entries.item(0) : entries.item(-1) + 1] = noise
        else:
            table[torch.from_numpy(entries)] = noise
        self._known[entries] = True

    def _with_next(self, new: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same entries and, where they are few, those of the same requests' next depths."""
        depths = ROWS_AT_ONCE // len(new)
        if depths < 2:
            return new
        several = (new + self._batch * np.arange(depths)[:, None]).ravel()
        several = several[several < len(self._known)]
        return np.unique(several[~self._known[several]])


def _is_range(entries: NDArray[np.int64]) -> bool:
    """Whether they follow one another without a gap."""
    return bool((entries[1:] - entries[:-1] == 1).all())


def _select(table: torch.Tensor, entries: NDArray[np.int64]) -> torch.Tensor:
    if _is_range(entries):
        return table[entries.item(0) : entries.item(-1) + 1]
    return table.index_select(0, torch.from_numpy(entries).to(table.device))
