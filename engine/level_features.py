"""What a controller is told about a draft level, computed as far as it asked for it."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import DraftLevel


def draft_level(
    depth: int,
    requests: NDArray[np.int64],
    tempered: torch.Tensor,
    margin: NDArray[np.float64] | None,
    features: Collection[str],
    agreement: NDArray[np.float64],
) -> DraftLevel:
    """Describe the level ``depth`` of ``A`` requests.

    ``tempered`` is ``[A, vocab_size]``: the drafter's logits after filters and temperature. ``margin`` and
    ``agreement`` are ``[A]``. What is not in ``features`` is NaN.
    """
    unknown = np.full(len(requests), np.nan)
    known = {"top1_probability": unknown, "entropy": unknown}
    if columns := _confidence(tempered, features):  # One transfer for all: each would wait for the device.
        told = torch.stack(list(columns.values())).cpu().numpy().astype(np.float64)
        known |= zip(columns, told, strict=True)
    return DraftLevel(
        depth,
        requests,
        **known,
        margin=unknown if margin is None else margin,
        agreement=agreement,
    )


def _confidence(tempered: torch.Tensor, features: Collection[str]) -> dict[str, torch.Tensor]:
    columns = {}
    if "top1_probability" in features or "entropy" in features:
        log_probability = tempered.log_softmax(-1)
        if "top1_probability" in features:
            columns["top1_probability"] = log_probability.amax(-1).exp()
        if "entropy" in features:
            # Tokens that a filter has cut: 0 * -inf would be NaN.
            columns["entropy"] = -(log_probability.exp() * log_probability.clamp_min(-1e9)).sum(-1)
    return columns
