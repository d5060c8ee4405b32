"""Features to numbers of mean 0 and spread 1, the same in training and in the controller that comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Normaliser:
    """``clip((features - mean) / scale, -clip, clip)``; ``[F]`` each."""

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    clip: float = 5.0

    @classmethod
    def fit(cls, features: NDArray[np.float64]) -> Normaliser:
        """From samples ``[N, F]``; a feature that never changed keeps scale 1."""
        scale = features.std(axis=0)
        return cls(features.mean(axis=0), np.where(scale > 1e-6, scale, 1.0))

    def __call__(self, features: NDArray[np.float64]) -> NDArray[np.float32]:
        """Normalise ``[..., F]``."""
        return np.clip((features - self.mean) / self.scale, -self.clip, self.clip).astype(np.float32)

    def document(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {"mean": self.mean.tolist(), "scale": self.scale.tolist(), "clip": self.clip}

    @classmethod
    def parse(cls, document: dict[str, Any]) -> Normaliser:
        """Read what `document` gave."""
        return cls(np.asarray(document["mean"]), np.asarray(document["scale"]), float(document["clip"]))
