"""One forward pass as data: packed ragged tokens, where they go in the cache, and what each may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .token_tree import TokenTree


@dataclass(frozen=True)
class Segment:
    """The tokens that one request adds in a pass, as a tree that hangs on ``context_length`` cached tokens."""

    slot: int
    context_length: int
    tree: TokenTree


@dataclass
class ForwardBatch:
    """Input of a model runner. ``N`` tokens of all requests lie one after the other; nothing is padded but attention.

    Attention runs over the rows ``first_slot … last_slot-1`` of the cache, with queries padded to ``max_queries``.
    """

    token_ids: torch.Tensor
    """``[N]`` int64."""
    positions: torch.Tensor
    """``[N]`` int64: context length + depth in the tree."""
    cache_index: torch.Tensor
    """``[N]`` int64: flat index ``slot * slot_length + offset`` where a token's key and value are stored."""
    first_slot: int
    last_slot: int
    max_queries: int
    length: int
    """Cached tokens to attend over: the longest context plus its new tokens."""
    mask: torch.Tensor | None
    """``[rows, 1, max_queries, length]`` bool, True = may attend; None where everything may be attended to."""
    query_index: torch.Tensor | None
    """``[N]`` int64: row of each token in the padded ``[rows * max_queries]`` layout; None if nothing is padded."""
    _folded: dict[tuple[int, torch.dtype], torch.Tensor | None]

    @property
    def rows(self) -> int:
        """Number of cache rows the pass attends over."""
        return self.last_slot - self.first_slot

    def additive_mask(self, repeats: int, dtype: torch.dtype) -> torch.Tensor | None:
        """The mask as 0 / -inf with each query repeated for the ``repeats`` heads that share a key head.

        Shape ``[rows, 1, max_queries * repeats, length]``; built once per pass and shared by all layers.
        """
        key = (repeats, dtype)
        if key not in self._folded:
            folded = None
            if self.mask is not None:
                folded = torch.zeros(self.mask.shape, dtype=dtype, device=self.mask.device)
                folded.masked_fill_(~self.mask, -torch.inf)
                folded = folded.repeat_interleave(repeats, dim=2) if repeats > 1 else folded
            self._folded[key] = folded
        return self._folded[key]


def build_batch(segments: Sequence[Segment], slot_length: int, device: torch.device) -> ForwardBatch:
    """Pack ``segments`` (any order, distinct slots) into a `ForwardBatch`. The one place where masks are built."""
    sizes = [len(segment.tree) for segment in segments]
    slots = [segment.slot for segment in segments]
    first_slot, last_slot, max_queries = min(slots), max(slots) + 1, max(sizes)
    rows = last_slot - first_slot
    length = max(segment.context_length + size for segment, size in zip(segments, sizes, strict=True))
    tokens: list[int] = []
    positions, cache_index = [], []
    for segment, size in zip(segments, sizes, strict=True):
        tokens.extend(segment.tree.tokens)
        positions.append(segment.tree.depths() + segment.context_length)
        cache_index.append(np.arange(size) + (segment.slot * slot_length + segment.context_length))
    mask: torch.Tensor | None = None
    if any(size > 1 for size in sizes) or any(segment.context_length + 1 != length for segment in segments):
        mask = torch.from_numpy(_mask(segments, first_slot, rows, max_queries, length)).to(device)
    query_index: torch.Tensor | None = None
    dense = len(slots) == rows and all(size == max_queries for size in sizes)
    if not (dense and all(slot == first_slot + row for row, slot in enumerate(slots))):
        offsets = [np.arange(size) + (slot - first_slot) * max_queries for slot, size in zip(slots, sizes, strict=True)]
        query_index = torch.from_numpy(np.concatenate(offsets)).to(device)
    return ForwardBatch(
        token_ids=torch.tensor(tokens, device=device),
        positions=torch.from_numpy(np.concatenate(positions)).to(device),
        cache_index=torch.from_numpy(np.concatenate(cache_index)).to(device),
        first_slot=first_slot,
        last_slot=last_slot,
        max_queries=max_queries,
        length=length,
        mask=mask,
        query_index=query_index,
        _folded={},
    )


def _mask(segments: Sequence[Segment], first_slot: int, rows: int, max_queries: int, length: int) -> np.ndarray:
    """``[rows, 1, max_queries, length]``: a query sees its request's context and, of the new tokens, its ancestors."""
    mask = np.zeros((rows, 1, max_queries, length), dtype=np.bool_)
    mask[..., 0] = True  # Padded queries attend to something, so that their softmax is finite; nobody reads it.
    for segment in segments:
        row, context, size = segment.slot - first_slot, segment.context_length, len(segment.tree)
        mask[row, 0, :size, :context] = True
        mask[row, 0, :size, context : context + size] = segment.tree.ancestors()
    return mask
