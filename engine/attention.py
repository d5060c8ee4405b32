"""Attention of packed queries over the slot cache: the one implementation that every model runner calls."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .forward_batch import ForwardBatch
from .kv_cache import KVCache


def attend(
    query: torch.Tensor,  # [N, num_heads, head_dim]
    key_value: torch.Tensor,  # [N, 2 * num_kv_heads, head_dim], keys first
    cache: KVCache,
    layer: int,
    batch: ForwardBatch,
    scale: float,
) -> torch.Tensor:
    """Store the new keys and values, then attend over context and tree ancestors. ``[N, num_heads * head_dim]``.

    Heads that share a key head are folded into the query dimension (grouped-query attention without repeating the
    cache).
    """
    cache.write(layer, batch.cache_index, key_value)
    num_heads, head_dim = query.shape[1:]
    num_kv_heads = key_value.shape[1] // 2
    repeats = num_heads // num_kv_heads
    rows, width = batch.rows, batch.max_queries
    if batch.padded_index is not None:  # Copies of a query as padding: a quarter of the time of zeros to copy into.
        query = query.index_select(0, batch.padded_index)
    if width == 1:  # the same as below, with fewer operations: this is every decode step
        folded = query.view(rows, num_kv_heads, repeats, head_dim)
    else:
        folded = query.view(rows, width, num_kv_heads, repeats, head_dim).transpose(1, 2).flatten(2, 3)
    key, value = cache.view(layer, batch.first_slot, rows, batch.length)
    mask = batch.additive_mask(repeats, query.dtype)
    # [rows, num_kv_heads, width * repeats, head_dim]
    output = F.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    if width > 1:
        output = output.view(rows, num_kv_heads, width, repeats, head_dim).transpose(1, 2)
    output = output.reshape(rows * width, num_heads * head_dim)
    return output if batch.query_index is None else output.index_select(0, batch.query_index)
