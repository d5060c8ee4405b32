"""Fused forward pass for the Llama and Qwen family: fewer, larger operations over the preallocated cache.

At batch 1 a small model's time goes to the number of operations, nearly whatever their width. This path folds the
three attention projections into one, adds residuals inside the output projections, rotates with one complex product
instead of five real operations, and on the CPU normalises with three operations instead of ten, the norms' weights
multiplied into the matrices that follow them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ..attention import attend
from ..forward_batch import ForwardBatch
from ..kv_cache import KVCache
from .runner import ModelRunner

SUPPORTED_MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})


@dataclass
class _Layer:
    """Weights of one decoder layer, fused; matrices are ``[in, out]`` (see `_transposed`)."""

    input_norm: torch.Tensor | None
    """None where it is folded into ``qkv`` (see `LlamaRunner._norm`); ``post_norm`` likewise, into gate and up."""
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: torch.Tensor
    post_norm: torch.Tensor | None
    gate: torch.Tensor
    """Not fused with ``up``: rows of twice the length made a pass 10 to 20 % slower, at 1 as at 144 tokens."""
    up: torch.Tensor
    down: torch.Tensor


def _transposed(weight: torch.Tensor) -> torch.Tensor:
    """``[out, in]`` to contiguous ``[in, out]``: at 5 to 30 tokens a pass MKL multiplies it up to twice as fast."""
    return weight.detach().t().contiguous()


class LlamaRunner(ModelRunner):
    """Runs ``LlamaForCausalLM``, ``MistralForCausalLM``, ``Qwen2ForCausalLM`` and ``Qwen3ForCausalLM``."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        body: Any = model.model
        head: Any = model.lm_head
        self.eps = float(model.config.rms_norm_eps)
        self.scale = self.head_dim**-0.5
        self.embedding: torch.Tensor = body.embed_tokens.weight.detach()
        # A GPU has a fused kernel, and bf16 weights would be rounded once more.
        self.folds_norms = self.device.type == "cpu" and self.dtype == torch.float32
        hidden_size = self.embedding.shape[1]
        self._norm_gain = math.sqrt(hidden_size)
        self._norm_floor = torch.tensor(math.sqrt(hidden_size * self.eps))
        self.final_norm, self.head = self._normed(body.norm, _transposed(head.weight))
        self.rotation = self._rotation_table(body.rotary_emb)
        # Rotary pairs (i, i + D/2) become neighbours, as complex numbers want them; q·k does not change.
        order = torch.arange(self.head_dim, device=self.device).view(2, -1).t().flatten()
        self.layers = [self._fuse(layer, order) for layer in body.layers]

    @staticmethod
    def unsupported_reason(model: PreTrainedModel) -> str | None:
        """Say why the fused path cannot run ``model``; None if it can."""
        config = model.config
        if config.model_type not in SUPPORTED_MODEL_TYPES:
            return f"model type {config.model_type!r} is not one of {sorted(SUPPORTED_MODEL_TYPES)}"
        if config.hidden_act != "silu":
            return f"activation {config.hidden_act!r} is not 'silu'"
        if getattr(config, "mlp_bias", False):
            return "its MLP has biases"
        rope = (config.rope_parameters or {}).get("rope_type", "default")
        if rope not in {"default", "linear", "llama3"}:
            return f"rotary type {rope!r} depends on the sequence length"
        if getattr(config, "sliding_window", None) is not None:
            return "it has sliding-window attention"
        if any(getattr(layer.self_attn.o_proj, "bias", None) is not None for layer in model.model.layers):
            return "its attention output has a bias"
        return None

    def _rotation_table(self, rotary: Any) -> torch.Tensor:
        """Complex ``[max_position_embeddings, 1, head_dim / 2]``: cos + i sin of every position."""
        positions = torch.arange(self.max_position_embeddings, device=self.device)[None]
        cos, sin = rotary(torch.zeros(1, device=self.device), positions)
        half = self.head_dim // 2
        return torch.complex(cos[0, :, :half].float(), sin[0, :, :half].float())[:, None, :].contiguous()

    def _fuse(self, layer: Any, order: torch.Tensor) -> _Layer:
        attention, mlp = layer.self_attn, layer.mlp

        def heads_reordered(tensor: torch.Tensor) -> torch.Tensor:
            shape = tensor.shape
            return tensor.view(-1, self.head_dim, *shape[1:])[:, order].reshape(shape)

        def fused(name: str) -> torch.Tensor:
            query, key, value = (
                getattr(projection, name).detach()
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            return torch.cat([heads_reordered(query), heads_reordered(key), value])

        def norm(name: str) -> torch.Tensor | None:
            module = getattr(attention, name, None)
            return None if module is None else module.weight.detach()[order]

        input_norm, qkv = self._normed(layer.input_layernorm, _transposed(fused("weight")))
        post_norm, gate = self._normed(layer.post_attention_layernorm, _transposed(mlp.gate_proj.weight))
        _, up = self._normed(layer.post_attention_layernorm, _transposed(mlp.up_proj.weight))
        return _Layer(
            input_norm=input_norm,
            qkv=qkv,
            qkv_bias=None if attention.q_proj.bias is None else fused("bias"),
            query_norm=norm("q_norm"),
            key_norm=norm("k_norm"),
            output=_transposed(attention.o_proj.weight),
            post_norm=post_norm,
            gate=gate,
            up=up,
            down=_transposed(mlp.down_proj.weight),
        )

    def _normed(self, norm: Any, matrix: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor]:
        """A norm's weight and the matrix ``[in, out]`` behind it; None and their product where norms are folded."""
        weight = norm.weight.detach()
        return (None, matrix * (weight * self._norm_gain)[:, None]) if self.folds_norms else (weight, matrix)

    @torch.inference_mode()
    def forward(self, batch: ForwardBatch, cache: KVCache, rows: torch.Tensor | None = None) -> torch.Tensor:
        """See `ModelRunner.forward`."""
        hidden = self.embedding.index_select(0, batch.token_ids)  # [N, hidden]
        rotation = self.rotation.index_select(0, batch.positions)  # [N, 1, head_dim / 2]
        for index, layer in enumerate(self.layers):
            hidden = self._layer(index, layer, hidden, rotation, batch, cache)
        if rows is not None:
            if rows.numel() == 0:
                return hidden.new_zeros(0, self.vocab_size)
            hidden = hidden.index_select(0, rows)
        return torch.mm(self._norm(hidden, self.final_norm), self.head).float()

    def _layer(
        self,
        index: int,
        layer: _Layer,
        hidden: torch.Tensor,
        rotation: torch.Tensor,
        batch: ForwardBatch,
        cache: KVCache,
    ) -> torch.Tensor:
        num_tokens, rotated_heads = hidden.shape[0], self.num_heads + self.num_kv_heads
        normed = self._norm(hidden, layer.input_norm)
        qkv = torch.mm(normed, layer.qkv) if layer.qkv_bias is None else torch.addmm(layer.qkv_bias, normed, layer.qkv)
        qkv = qkv.view(num_tokens, rotated_heads + self.num_kv_heads, self.head_dim)
        if layer.query_norm is not None and layer.key_norm is not None:
            for heads, weight in (
                (qkv[:, : self.num_heads], layer.query_norm),
                (qkv[:, self.num_heads : rotated_heads], layer.key_norm),
            ):
                heads.copy_(F.rms_norm(heads, weight.shape, weight, self.eps))
        self._rotate(qkv[:, :rotated_heads], rotation)
        attended = attend(qkv[:, : self.num_heads], qkv[:, self.num_heads :], cache, index, batch, self.scale)
        hidden = torch.addmm(hidden, attended, layer.output)
        normed = self._norm(hidden, layer.post_norm)
        return torch.addmm(
            hidden, F.silu(torch.mm(normed, layer.gate), inplace=True).mul_(torch.mm(normed, layer.up)), layer.down
        )

    def _norm(self, hidden: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """RMS norm (arXiv:1910.07467) of ``hidden`` ``[N, hidden]``.

        Folded (``weight`` None) it is x / sqrt(|x|^2 + n eps), and the matrix behind it holds sqrt(n) times the weight.
        """
        if weight is not None:
            return F.rms_norm(hidden, weight.shape, weight, self.eps)
        length: torch.Tensor = torch.linalg.vector_norm(hidden, dim=-1, keepdim=True)
        return hidden / length.hypot_(self._norm_floor)

    def _rotate(self, heads: torch.Tensor, rotation: torch.Tensor) -> None:
        """Rotate ``heads`` ``[N, h, head_dim]`` in place by ``rotation`` ``[N, 1, head_dim / 2]``."""
        if heads.dtype == torch.float32:
            heads.view(torch.complex64).mul_(rotation)
        else:  # There is no bf16 complex; transformers rotates in the model's dtype, this is a little more exact.
            pairs = heads.view(*heads.shape[:-1], -1, 2)
            pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))
