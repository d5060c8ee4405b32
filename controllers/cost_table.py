"""A cost surface baked into dense tables: look-ups in nanoseconds for replay, a microsecond for controllers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .controller import FloatArray
from .cost_surface import CostSurface

CONTEXT_STEP = 32
CHUNK_STEP = 16


class CostTable(NamedTuple):
    """Seconds of passes at whole batches; between table points everything is linear, as in the surface itself.

    Exact where the surface's own grid points are multiples of the steps (those of `CostGrid` are). A named tuple of
    arrays, so that compiled code can take it as it is.
    """

    draft: FloatArray
    """``[B + 1, 3, C]`` by batch, tokens per request (0, 1, 2) and context / `CONTEXT_STEP`; 0 without a model."""
    verify: FloatArray
    """``[B + 1, K + 3, C]`` by batch, tokens per request (0 … K + 2) and context."""
    catch_up: FloatArray
    """``[B + 1, M, C]`` by batch, tokens per request / `CHUNK_STEP` and context."""
    prefill: FloatArray
    """As ``catch_up``."""
    overhead: FloatArray
    """Coefficients of `RoundOverhead`, seconds, in the order of its fields."""
    drafts_whole_batch: bool = False
    """As of `CostSurface`: then ``draft`` is to be read at the batch of the round."""

    @property
    def max_batch(self) -> int:
        """Largest batch in the table."""
        return len(self.verify) - 1

    @property
    def max_num_speculative_tokens(self) -> int:
        """K."""
        return int(self.verify.shape[1]) - 3

    @classmethod
    def bake(cls, surface: CostSurface, max_batch: int, max_num_speculative_tokens: int, max_context: int) -> CostTable:
        """Evaluate ``surface`` on the table's points; its overhead's factors are multiplied in."""
        overhead = surface.overhead
        contexts = np.arange(0, max_context + 2 * CONTEXT_STEP, CONTEXT_STEP)
        chunks = np.arange(0, max_context + 2 * CHUNK_STEP, CHUNK_STEP)
        axes = {
            "draft": np.arange(3),
            "verify": np.arange(max_num_speculative_tokens + 3),
            "catch_up": chunks,
            "prefill": chunks,
        }
        batches = np.arange(max_batch + 1)
        tables = {}
        for kind, tokens in axes.items():
            if kind in surface.costs:
                seconds = surface.seconds(kind, batches[:, None, None], tokens[:, None], contexts)
                tables[kind] = np.ascontiguousarray(seconds * overhead.factor(kind))
            else:
                tables[kind] = np.zeros((len(batches), len(tokens), len(contexts)))
        return cls(**tables, overhead=overhead.coefficients(), drafts_whole_batch=surface.drafts_whole_batch)


def interpolate(table: FloatArray, batch: int, tokens: float, context: float) -> float:
    """Seconds of a pass from one table of `CostTable`; ``tokens`` in the table's steps, ``context`` in tokens.

    Plain arithmetic, so that it runs as Python and compiled alike.
    """
    row = min(int(tokens), table.shape[1] - 2)
    where = context / CONTEXT_STEP
    column = min(int(where), table.shape[2] - 2)
    down, right = tokens - row, where - column
    low = table[batch, row, column] + right * (table[batch, row, column + 1] - table[batch, row, column])
    row += 1
    high = table[batch, row, column] + right * (table[batch, row, column + 1] - table[batch, row, column])
    return low + down * (high - low)  # type: ignore[no-any-return]
