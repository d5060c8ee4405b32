"""Any causal LM of transformers, run by its own classes: only its attention is redirected to the engine's cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ..attention import attend
from ..forward_batch import ForwardBatch
from ..kv_cache import KVCache
from .runner import ModelRunner, UnsupportedModelError

ATTENTION_NAME = "specpilot"
UNSUPPORTED_ARGUMENTS = ("softcap", "s_aux", "position_bias")


@dataclass
class _Pass:
    """The pass in flight; transformers' attention functions have no channel of their own for it."""

    batch: ForwardBatch
    cache: KVCache


_current: _Pass | None = None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [1, num_heads, N, head_dim]
    key: torch.Tensor,  # [1, num_kv_heads, N, head_dim]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    assert _current is not None, "the specpilot attention runs only inside StockRunner.forward"
    used = [name for name in UNSUPPORTED_ARGUMENTS if kwargs.get(name) is not None]
    if used:
        raise UnsupportedModelError(f"{type(module).__name__} passes {used} to attention, which the engine cannot do")
    if sliding_window is not None and _current.batch.length > sliding_window:
        raise UnsupportedModelError(
            f"context of {_current.batch.length} tokens exceeds the model's sliding window of {sliding_window}; "
            f"set max_model_len to at most {sliding_window}"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    key_value = torch.cat([key[0], value[0]]).transpose(0, 1)  # [N, 2 * num_kv_heads, head_dim]
    layer: int = module.layer_idx  # type: ignore[assignment]
    output = attend(query[0].transpose(0, 1), key_value, _current.cache, layer, _current.batch, scale)
    return output.view(1, *query.shape[2:0:-1], query.shape[-1]), None  # [1, N, num_heads, head_dim]


AttentionInterface.register(ATTENTION_NAME, _attention)
# The mask is the engine's business (`build_batch`), so transformers is told to make none.
ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION_NAME, lambda *args, **kwargs: None)


class StockRunner(ModelRunner):
    """Runs a model through its own ``forward`` with all requests' tokens packed into one row.

    The model object itself is left as it was between passes, so that the same object can serve ``generate`` too.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        reason = self.unsupported_reason(model)
        if reason is not None:
            raise UnsupportedModelError(reason)
        super().__init__(model)
        self.model: Any = model

    @staticmethod
    def unsupported_reason(model: PreTrainedModel) -> str | None:
        """Say why the engine cannot run ``model`` at all; None if it can."""
        name = type(model).__name__
        if not model._supports_attention_backend:
            return f"{name} does not use transformers' attention interface, which the engine needs for its KV cache"
        if model.get_output_embeddings() is None:
            return f"{name} has no language-model head; load it as a causal LM"
        if model._is_stateful:
            return f"{name} keeps state other than keys and values, which rejected tokens would spoil"
        mixed = set(getattr(model.config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
        if mixed:
            return f"{name} has layers of type {sorted(mixed)}, which keep state other than keys and values"
        return None

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KVCache, rows: torch.Tensor | None = None) -> torch.Tensor:
        """See `ModelRunner.forward`."""
        global _current
        config = self.model.config
        before = config._attn_implementation
        keep: Any = 0 if rows is None else rows if rows.numel() else torch.zeros(1, dtype=torch.long)
        _current = _Pass(batch, cache)
        config._attn_implementation = ATTENTION_NAME
        try:
            logits: torch.Tensor = self.model(
                input_ids=batch.token_ids[None],
                position_ids=batch.positions[None],
                use_cache=False,
                logits_to_keep=keep,
            ).logits[0]
        finally:
            config._attn_implementation = before
            _current = None
        return logits.float() if rows is None or rows.numel() else logits[:0].float()
