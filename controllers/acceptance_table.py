"""An acceptance predictor as a table, where it reads margin and agreement alone: looked up instead of worked out.

A question between two draft levels of a small drafter must not take long; a look-up takes a tenth of the network.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .controller import FloatArray, IntArray

DEPTHS = 16
"""Deeper tokens count as the last of them."""
MAX_MARGIN = 16.0
STEPS = 32
"""Per unit of the margin's square root, which is finer where a little more margin means most."""
MAX_TEMPERATURES = 64
"""Tables that are kept at a time."""
MAX_SEEN = 1024
MARGINS = round(math.sqrt(MAX_MARGIN) * STEPS) + 1
Network = Callable[[NDArray[np.float32], FloatArray, FloatArray], tuple[NDArray[np.float32], NDArray[np.float32]]]


def step_of(margin: float) -> int:
    """Where a margin lies in the table."""
    return int(math.sqrt(min(max(margin, 0.0), MAX_MARGIN)) * STEPS + 0.5)


class AcceptanceTable:
    """Both chances of a drafted token by temperature, depth, agreement and margin.

    A temperature's part is filled when it is first seen. Margins are rounded to the next step, temperatures to
    hundredths.
    """

    def __init__(self, network: Network) -> None:
        """``network``: `AcceptancePredictor.level` for ``confidence`` ``[N, 4]``, ``temperature`` and ``depth``."""
        self._network = network
        self._rows = dict[float, int]()
        self._seen = dict[float, int]()  # The same, by temperatures as they were given.
        self.chances = np.zeros((0, DEPTHS, 3, MARGINS, 2), dtype=np.float32)
        """By row, depth - 1, agreement + 1 and `step_of` the margin: of the token, and of the next one."""

    def rows(self, temperature: FloatArray) -> IntArray:
        """``[B]`` row of each temperature; holds until this is called again."""
        given: list[float] = temperature.tolist()
        try:
            return np.asarray([self._seen[own] for own in given], dtype=np.int64)
        except KeyError:
            self._add([round(own, 2) for own in given])
        if len(self._seen) > MAX_SEEN:
            self._seen.clear()
        self._seen |= {own: self._rows[round(own, 2)] for own in given}
        return self.rows(temperature)

    def level(
        self, rows: IntArray, margin: ArrayLike, agreement: ArrayLike, depth: ArrayLike
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`AcceptancePredictor.level`; what is given broadcasts. NaN where margin or agreement is."""
        margins, agreements = np.asarray(margin, dtype=np.float64), np.asarray(agreement, dtype=np.float64)
        unknown = margins + agreements
        if np.isnan(unknown).any():
            known = np.nan_to_num(margins), np.nan_to_num(agreements)
            chances = self.level(rows, *known, depth)
            hide = np.where(np.isnan(unknown), np.float32(np.nan), np.float32(0))
            return chances[0] + hide, chances[1] + hide
        step = (np.sqrt(np.minimum(np.maximum(margins, 0.0), MAX_MARGIN)) * STEPS + 0.5).astype(np.int64)
        depths = depth - 1 if isinstance(depth, int) else np.asarray(depth, dtype=np.int64) - 1
        found = self.chances[rows, np.minimum(depths, DEPTHS - 1), (agreements + 1.5).astype(np.int64), step]
        return found[..., 0], found[..., 1]

    def _add(self, keys: list[float]) -> None:
        new = sorted(set(keys) - set(self._rows))
        if not new:
            return
        if len(self._rows) + len(new) > MAX_TEMPERATURES:
            self._rows.clear()
            self._seen.clear()
            new, self.chances = sorted(set(keys)), self.chances[:0]
        parts = [self.chances]
        for key in new:
            self._rows[key] = len(self._rows)
            parts.append(self._part(key)[None])
        self.chances = np.concatenate(parts)

    def _part(self, temperature: float) -> NDArray[np.float32]:
        """``[DEPTHS, 3, MARGINS, 2]``.

        Depth by depth: a product of many rows at once would wake a second thread of NumPy's OpenBLAS, which then spins
        for tens of milliseconds on a core that the engine's next passes need (they take twice as long meanwhile).
        """
        agreement, step = (own.ravel() for own in np.meshgrid([-1, 0, 1], np.arange(MARGINS), indexing="ij"))
        told = np.zeros((len(step), 4), dtype=np.float32)
        told[:, 2], told[:, 3] = (step / STEPS) ** 2, agreement
        same = np.full(len(step), temperature)
        chances = [np.stack(self._network(told, same, np.full(len(step), own)), -1) for own in range(1, DEPTHS + 1)]
        return np.reshape(chances, (DEPTHS, 3, MARGINS, 2)).astype(np.float32, copy=False)
