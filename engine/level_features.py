"""What a controller is told about a draft level, computed as far as it asked for it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import DraftLevel


def draft_level(
    depth: int,
    requests: NDArray[np.int64],
    tempered: torch.Tensor,
    margin: torch.Tensor | None,
    features: Collection[str],
    agreement: Sequence[int] | None,
) -> DraftLevel:
    """Describe the level ``depth`` of ``A`` requests.

    ``tempered`` is ``[A, vocab_size]``: the drafter's logits after filters and temperature. ``margin`` and
    ``agreement`` are ``[A]``. What is not in ``features`` is NaN.
    """
    columns = _confidence(tempered, features)
    if margin is not None and not columns:
        known = {"margin": margin.cpu().numpy().astype(np.float64)}
    else:
        if margin is not None:
            columns["margin"] = margin
        # One transfer for all columns: each would wait for the device.
        values = torch.stack(list(columns.values())).cpu().numpy().astype(np.float64) if columns else ()
        known = dict(zip(columns, values, strict=True))
    unknown = np.full(len(requests), np.nan)
    return DraftLevel(
        depth=depth,
        requests=requests,
        top1_probability=known.get("top1_probability", unknown),
        entropy=known.get("entropy", unknown),
        margin=known.get("margin", unknown),
        agreement=unknown if agreement is None else np.asarray(agreement, dtype=np.float64),
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
