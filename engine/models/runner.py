"""The interface of a model runner and the choice between the fused path and transformers' own classes."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from transformers import PreTrainedModel

from ..forward_batch import ForwardBatch
from ..kv_cache import KVCache


class UnsupportedModelError(ValueError):
    """The model cannot be run over the engine's cache; the message says why."""


class ModelRunner(ABC):
    """Runs one causal LM over a `KVCache`."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config.get_text_config()
        self.num_layers: int = config.num_hidden_layers
        self.num_heads: int = config.num_attention_heads
        self.num_kv_heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self.head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.vocab_size: int = config.vocab_size
        self.max_position_embeddings: int = config.max_position_embeddings
        self.dtype: torch.dtype = model.dtype
        self.device: torch.device = model.device

    def new_cache(self, num_slots: int, slot_length: int) -> KVCache:
        """Allocate a cache of the model's shape."""
        return KVCache(
            self.num_layers, num_slots, slot_length, self.num_kv_heads, self.head_dim, self.dtype, self.device
        )

    def cache_bytes_per_slot(self, slot_length: int) -> int:
        """Memory in bytes that a cache of the model's shape takes for one request."""
        return self.num_layers * slot_length * 2 * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    @abstractmethod
    def forward(self, batch: ForwardBatch, cache: KVCache, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Run the model on a batch, storing its keys and values.

        ``rows`` ``[M]`` (int64) selects the tokens whose logits are wanted (None: all; empty: none, the head is
        skipped). Returns float32 logits ``[M, vocab_size]``.
        """


def build_runner(model: PreTrainedModel, fused: bool | None = None) -> ModelRunner:
    """Choose a runner: the fused Llama/Qwen path where it applies (or ``fused=True`` demands it), else stock classes.

    Raises `UnsupportedModelError` where neither can run the model.
    """
    from .llama import LlamaRunner
    from .stock import StockRunner

    reason = StockRunner.unsupported_reason(model)
    if reason is not None:
        raise UnsupportedModelError(reason)
    reason = LlamaRunner.unsupported_reason(model)
    if fused and reason is not None:
        raise UnsupportedModelError(f"the fused path cannot run this model: {reason}; use fused=None")
    return LlamaRunner(model) if reason is None and fused is not False else StockRunner(model)
