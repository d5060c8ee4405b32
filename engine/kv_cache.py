"""Preallocated key/value cache: one slot per request, dense slots, no copy per step."""

from __future__ import annotations

import torch


class KVCache:
    """Keys and values of one model for up to ``num_slots`` requests of ``slot_length`` tokens.

    Storage is one tensor per layer, ``[num_slots, slot_length, 2, num_kv_heads, head_dim]``, allocated once. Slots in
    use are always ``0 … n-1`` (the engine moves the last slot into a hole when a request leaves), so the rows of a
    batch are a view of the storage and attention reads it without a copy. Rejected tokens cost nothing: they are
    overwritten by the next round.
    """

    def __init__(
        self,
        num_layers: int,
        num_slots: int,
        slot_length: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._num_kv_heads, self._head_dim = num_kv_heads, head_dim
        self.num_slots = num_slots
        self.slot_length = slot_length
        shape = (num_slots, slot_length, 2, num_kv_heads, head_dim)
        # Zeros, not empty: masked positions are multiplied by a weight of 0, and 0 * NaN would be NaN.
        self.layers = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
        self._strides = (
            slot_length * 2 * num_kv_heads * head_dim,
            2 * num_kv_heads * head_dim,
            num_kv_heads * head_dim,
            head_dim,
            1,
        )
        self._flat = [layer.view(num_slots * slot_length, 2 * num_kv_heads, head_dim) for layer in self.layers]

    @property
    def num_bytes(self) -> int:
        """Memory of the whole cache in bytes."""
        return sum(layer.numel() * layer.element_size() for layer in self.layers)

    def write(self, layer: int, index: torch.Tensor, key_value: torch.Tensor) -> None:
        """Store ``key_value`` ``[N, 2 * num_kv_heads, head_dim]``, keys first, at flat indices ``index`` ``[N]``."""
        self._flat[layer].index_copy_(0, index, key_value)

    def view(self, layer: int, first: int, rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of ``rows`` slots from ``first`` on, as views ``[rows, num_kv_heads, length, head_dim]``."""
        storage, (slot, token, kind, head, _) = self.layers[layer], self._strides
        size, stride, offset = (rows, self._num_kv_heads, length, self._head_dim), (slot, head, token, 1), first * slot
        # One as_strided each instead of four slicing calls: at batch 1 every operation counts.
        return storage.as_strided(size, stride, offset), storage.as_strided(size, stride, offset + kind)

    def move_slot(self, source: int, destination: int, length: int) -> None:
        """Copy the first ``length`` tokens of slot ``source`` to ``destination`` (when a request leaves a hole)."""
        for layer in self.layers:
            layer[destination, :length] = layer[source, :length]

    def move_tokens(self, slot: int, sources: list[int], destination: int) -> None:
        """Move the tokens at ``sources`` of a slot to ``destination …``: an accepted path that left the main chain."""
        index = torch.tensor(sources, device=self.layers[0].device)
        for layer in self.layers:
            layer[slot, destination : destination + len(sources)] = layer[slot].index_select(0, index)
