"""What a controller is asked after the draft levels of one round, and what it is told of them."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers.controller import IntArray
from .draft_growth import ChosenTokens
from .drafter import DraftContext
from .level_features import draft_level
from .request import Request
from .text_agreement import TextAgreement


class LevelQuestions:
    """Asks about the ``B`` requests that draft in a round, after each of the levels that the controller wants."""

    def __init__(
        self, context: DraftContext, requests: Sequence[Request], bound: IntArray, agreement: TextAgreement
    ) -> None:
        """``bound`` ``[B]``: most tokens of each."""
        start = time.perf_counter()
        self._context, self._bound, self._agreement = context, bound, agreement
        self._shortest = int(bound.min())
        self._unknown = np.full(len(bound), np.nan)
        self._drafted: IntArray | None = None
        if "agreement" in context.level_features:
            self._slots = agreement.update(requests)
            self._drafted = np.empty((len(bound), min(int(bound.max()), context.asked_levels)), dtype=np.int64)
        context.asking.seconds += time.perf_counter() - start

    def after(self, depth: int, rows: IntArray, chosen: ChosenTokens, tempered: torch.Tensor) -> IntArray:
        """``[A]`` lengths after level ``depth`` of ``rows`` ``[A]``, which drafted at it; ``depth``: stop.

        ``tempered`` ``[A, vocab_size]``: the drafter's logits after filters and temperature. Who has all its tokens is
        not asked about, unless the controller wants to know of the last level too.
        """
        start = time.perf_counter()
        lengths = self._answers(depth, rows, chosen, tempered)
        self._context.asking.seconds += time.perf_counter() - start
        return lengths

    def _answers(self, depth: int, rows: IntArray, chosen: ChosenTokens, tempered: torch.Tensor) -> IntArray:
        if self._drafted is not None:
            self._drafted[rows, depth - 1] = chosen.on_host()
        if depth < self._shortest or self._context.asks_last_level:
            bound = self._bound if len(rows) == len(self._bound) else self._bound[rows]
            return np.minimum(self._ask(depth, rows, tempered, chosen.margin), bound)
        lengths, able = np.full(len(rows), depth), np.flatnonzero(self._bound[rows] > depth)
        if able.size:
            own, margin = rows[able], None if chosen.margin is None else chosen.margin[able]
            tempered = tempered[torch.from_numpy(able).to(tempered.device)]
            lengths[able] = np.minimum(self._ask(depth, own, tempered, margin), self._bound[own])
        return lengths

    def _ask(self, depth: int, rows: IntArray, tempered: torch.Tensor, margin: NDArray[np.float64] | None) -> IntArray:
        context, agreement = self._context, self._unknown[: len(rows)]
        if self._drafted is not None:
            agreement = self._agreement.of(self._slots, self._drafted, rows, depth)
        if context.after_level is not None:
            return context.after_level(depth, rows, self._unknown[: len(rows)] if margin is None else margin, agreement)
        return context.new_lengths(draft_level(depth, rows, tempered, margin, context.level_features, agreement))
