"""Named features as a Gymnasium space, and as the table of a manual."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from gymnasium.spaces import Box, Space
from numpy.typing import ArrayLike, NDArray

from ..controllers.observation import Feature


class FeatureSpace:
    """Features in order; observations are cut to their ranges."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self.features = tuple(features)
        self._low = np.asarray([own.low for own in features], dtype=np.float32)
        self._high = np.asarray([own.high for own in features], dtype=np.float32)

    def box(self) -> Space[NDArray[np.float32]]:
        """The space of one observation, float32."""
        return cast("Space[NDArray[np.float32]]", Box(self._low, self._high, dtype=np.float32))

    def observation(self, values: ArrayLike) -> NDArray[np.float32]:
        """``values`` ``[..., F]`` as an element of the space (or a batch of them)."""
        return np.clip(np.asarray(values, dtype=np.float32), self._low, self._high)


def feature_rows(features: Sequence[Feature], start: int = 0) -> list[str]:
    """The observation table of a docstring, one line a feature: index, name, unit, low, high."""
    return [
        f"| {index} | {own.name} | {own.unit} | {own.low:g} | {own.high:g} |"
        for index, own in enumerate(features, start)
    ]
