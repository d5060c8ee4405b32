"""One forward pass as data: packed ragged tokens, where they go in the cache, and what each may attend to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .token_tree import TokenTree

IntArray = NDArray[np.int64]


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
    padded_index: torch.Tensor | None
    """``[rows * max_queries]`` int64: token of each row in that layout; padding repeats the first one."""
    in_order: bool
    """The requests lie in the cache's rows in the order of their tokens, one in each."""
    _folded: dict[tuple[int, torch.dtype], torch.Tensor | None]

    @property
    def rows(self) -> int:
        """Number of cache rows the pass attends over."""
        return self.last_slot - self.first_slot

    def advance(self, token_ids: torch.Tensor, last: torch.Tensor | None = None) -> ForwardBatch:
        """The next step of these requests, one token ``token_ids`` ``[A]`` each, made on the device from this one.

        ``last`` ``[A]`` int64: the tokens of this pass, by index, that they follow; None: every token of this pass is
        followed by one. Whose last token is not among them sits out. A batch that is built takes several times as long.
        """
        positions, cache_index = self.positions, self.cache_index
        query_index, padded_index = self.query_index, self.padded_index
        if last is not None or self.max_queries > 1:
            places = query_index
            if last is not None:
                positions, cache_index = positions.index_select(0, last), cache_index.index_select(0, last)
                places = last if places is None else places.index_select(0, last)
            query_index = padded_index = None
            if places is not None and not (self.in_order and len(places) == self.rows):
                query_index = places.div(self.max_queries, rounding_mode="floor") if self.max_queries > 1 else places
                order = torch.arange(len(query_index), device=query_index.device)
                padded_index = order.new_zeros(self.rows).index_copy_(0, query_index, order)
        positions, mask = positions + 1, None
        if self.rows > 1 and (self.mask is not None or query_index is not None):
            newest = positions
            if query_index is not None:
                newest = positions.new_zeros(self.rows).index_copy_(0, query_index, positions)
            columns = torch.arange(self.length + 1, device=positions.device)
            mask = (columns <= newest[:, None])[:, None, None, :]
        # Not `dataclasses.replace`, which takes as long as two small tensor operations.
        return ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            cache_index=cache_index + 1,
            first_slot=self.first_slot,
            last_slot=self.last_slot,
            max_queries=1,
            length=self.length + 1,
            mask=mask,
            query_index=query_index,
            padded_index=padded_index,
            in_order=self.in_order,
            _folded={},
        )

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
    """Pack ``segments`` (any order, distinct slots) into a `ForwardBatch`."""
    return _assemble(
        tokens=[token for segment in segments for token in segment.tree.tokens],
        slots=np.asarray([segment.slot for segment in segments]),
        contexts=np.asarray([segment.context_length for segment in segments]),
        sizes=np.asarray([len(segment.tree) for segment in segments]),
        trees=[segment.tree for segment in segments],
        slot_length=slot_length,
        device=device,
    )


def build_step(
    tokens: Sequence[int] | torch.Tensor,
    slots: Sequence[int],
    contexts: Sequence[int],
    slot_length: int,
    device: torch.device,
) -> ForwardBatch:
    """One token per request: what every draft level is, without a tree object for each."""
    sizes = np.ones(len(tokens), dtype=np.int64)
    return _assemble(tokens, np.asarray(slots), np.asarray(contexts), sizes, (), slot_length, device)


def _assemble(
    tokens: Sequence[int] | torch.Tensor,
    slots: IntArray,  # [B]
    contexts: IntArray,
    sizes: IntArray,
    trees: Sequence[TokenTree],
    slot_length: int,
    device: torch.device,
) -> ForwardBatch:
    """The one place where positions, cache indices and masks are made. Without ``trees`` every size is 1."""
    if len(slots) == 1 and (not trees or trees[0].is_chain):
        return _single_chain(tokens, int(slots[0]), int(contexts[0]), slot_length, device)
    first_slot, last_slot = int(slots.min()), int(slots.max()) + 1
    rows, max_queries, length = last_slot - first_slot, int(sizes.max()), int((contexts + sizes).max())
    ragged = max_queries > 1
    branched = [index for index, tree in enumerate(trees) if not tree.is_chain] if ragged else []
    # Per token: its request, its index within the tree, its depth.
    owner = np.repeat(np.arange(len(slots)), sizes) if ragged else slice(None)
    node = np.arange(len(tokens)) - np.repeat(np.cumsum(sizes) - sizes, sizes) if ragged else 0
    depth = np.concatenate([tree.depths() for tree in trees]) if branched else node
    query_index = padded_index = None
    in_order = len(slots) == rows and bool((np.diff(slots) == 1).all())
    if not (in_order and (sizes == max_queries).all()):
        padded = ((slots - first_slot) * max_queries)[owner] + node
        sources = np.zeros(rows * max_queries, dtype=np.int64)
        sources[padded] = np.arange(len(tokens))
        query_index, padded_index = torch.from_numpy(padded).to(device), torch.from_numpy(sources).to(device)
    mask: torch.Tensor | None = None
    if max_queries > 1 or (contexts + 1 != length).any() or len(slots) != rows:
        seen = _chain_mask(slots - first_slot, contexts, rows, max_queries, length)
        for index in branched:
            row, start, size = slots[index] - first_slot, contexts[index], sizes[index]
            seen[row, 0, :size, start : start + size] = trees[index].ancestors()
        mask = torch.from_numpy(seen).to(device)
    return ForwardBatch(
        token_ids=tokens if isinstance(tokens, torch.Tensor) else torch.tensor(tokens, device=device),
        positions=torch.from_numpy(contexts[owner] + depth).to(device),
        cache_index=torch.from_numpy((slots * slot_length + contexts)[owner] + node).to(device),
        first_slot=first_slot,
        last_slot=last_slot,
        max_queries=max_queries,
        length=length,
        mask=mask,
        query_index=query_index,
        padded_index=padded_index,
        in_order=in_order,
        _folded={},
    )


def _single_chain(
    tokens: Sequence[int] | torch.Tensor, slot: int, context: int, slot_length: int, device: torch.device
) -> ForwardBatch:
    """What `_assemble` makes of one request's chain, in half the time: at batch 1 that shows in every level drafted."""
    count, length = len(tokens), context + len(tokens)
    positions = torch.arange(context, length, device=device)
    mask: torch.Tensor | None = None
    if count > 1:
        mask = (torch.arange(length, device=device) <= positions[:, None])[None, None]
    return ForwardBatch(
        token_ids=tokens if isinstance(tokens, torch.Tensor) else torch.tensor(tokens, device=device),
        positions=positions,
        cache_index=positions + slot * slot_length,
        first_slot=slot,
        last_slot=slot + 1,
        max_queries=count,
        length=length,
        mask=mask,
        query_index=None,
        padded_index=None,
        in_order=True,
        _folded={},
    )


def _chain_mask(rows_used: IntArray, contexts: IntArray, rows: int, max_queries: int, length: int) -> NDArray[np.bool_]:
    """``[rows, 1, max_queries, length]``: query q of a request sees its context, itself and the q tokens before it.

    Padded queries and unused rows see at least one token, so that their softmax is finite; nobody reads it.
    """
    newest = np.zeros(rows, dtype=np.int64)
    newest[rows_used] = contexts
    return np.arange(length) <= (newest[:, None] + np.arange(max_queries))[:, None, :, None]
