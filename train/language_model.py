"""Train one small causal language model: resumable, on CPU or GPU, with any loss of (model, batch of token windows)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

Model = Callable[..., Any]
"""A model or its compiled form: called with ``input_ids``, returns an object with ``logits``."""
Loss = Callable[[Model, torch.Tensor], torch.Tensor]
Batches = Callable[[int], torch.Tensor]


@dataclass(frozen=True)
class ModelSettings:
    """Shape and schedule of one model of the pair."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    steps: int
    """Optimizer steps."""
    batch_size: int
    """Windows per step."""
    sequence_length: int
    """Tokens per window."""
    learning_rate: float
    """Peak; warmed up over the first 3 % of the steps, then a cosine to a twentieth."""

    def build(self, vocab_size: int, end_of_text: int, max_position_embeddings: int) -> LlamaForCausalLM:
        """Build the model with fresh weights."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab_size,
                hidden_size=self.hidden_size,
                num_hidden_layers=self.num_hidden_layers,
                num_attention_heads=self.num_attention_heads,
                num_key_value_heads=self.num_key_value_heads,
                intermediate_size=self.intermediate_size,
                max_position_embeddings=max_position_embeddings,
                tie_word_embeddings=True,
                bos_token_id=end_of_text,
                eos_token_id=end_of_text,
                pad_token_id=end_of_text,
            )
        )


def _training_attention(
    module: torch.nn.Module,
    query: torch.Tensor,  # [B, H, S, D]
    key: torch.Tensor,  # [B, G, S, D]
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention as two plain matrix products.

    The backward pass of torch's fused CPU attention took 40 % of a training step; two bf16 products and a softmax
    take a third of that.
    """
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    repeats = heads // groups
    mask = torch.full((length, length), -1e9, dtype=torch.bfloat16).triu(1).repeat(repeats, 1)
    folded = (query * scaling).bfloat16().reshape(batch * groups, repeats * length, dim)
    key = key.bfloat16().reshape(batch * groups, length, dim)
    value = value.bfloat16().reshape(batch * groups, length, dim)
    weights = torch.softmax(torch.baddbmm(mask, folded, key.transpose(1, 2)), -1)
    output = torch.bmm(weights, value).view(batch, heads, length, dim).transpose(1, 2)
    return output.to(query.dtype), None


AttentionInterface.register("specpilot_training", _training_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register("specpilot_training", lambda *args, **kwargs: None)


def move_model(model: LlamaForCausalLM, device: str, dtype: torch.dtype = torch.float32) -> None:
    """Move a model in place."""
    torch.nn.Module.to(model, device, dtype)


def windows(stream: np.ndarray, length: int, count: int, seed: int, step: int) -> torch.Tensor:
    """Draw ``count`` random windows ``[count, length]`` (int64); a function of (seed, step), so a resume repeats it."""
    starts = np.random.default_rng((seed, step)).integers(0, len(stream) - length, size=count)
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]).astype(np.int64))


def next_token_loss(model: Model, batch: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy (nats per token) of each token given those before it."""
    logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def learning_rate_scale(step: int, steps: int) -> float:
    """Warm-up over 3 % of the steps, then a cosine to a twentieth of the peak."""
    warmup = max(1, int(0.03 * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def train_model(
    model: LlamaForCausalLM,
    settings: ModelSettings,
    batches: Batches,
    validation: torch.Tensor,
    loss: Loss,
    workdir: Path,
    device: str,
    compile_model: bool = True,
) -> list[dict[str, float]]:
    """Train ``model`` in place for ``settings.steps`` steps and return the log (step, train and validation loss).

    Interrupted, it resumes from ``workdir`` at the last hundredth step, with the same batches in the same order.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    state_path = workdir / "state.pt"
    if device == "cpu":
        model.set_attn_implementation("specpilot_training")
    model.train()
    move_model(model, device)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    first, log = 0, list[dict[str, float]]()
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, log = state["step"], state["log"]
    forward: Model = torch.compile(model) if compile_model else model
    recent: list[float] = []
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, desc=workdir.name, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * learning_rate_scale(step, settings.steps)
        with torch.autocast(device, torch.bfloat16):
            value = loss(forward, batches(step).to(device))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        recent.append(float(value.detach()))
        if (step + 1) % 100 == 0 or step + 1 == settings.steps:
            held_out = _validate(forward, validation, loss, settings.batch_size, device)
            entry = {"step": step + 1, "train_loss": sum(recent) / len(recent), "validation_loss": held_out}
            log.append(entry)
            recent.clear()
            bar.set_postfix(train=f"{entry['train_loss']:.3f}", validation=f"{held_out:.3f}")
            _save_state(
                state_path,
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "log": log},
            )
            (workdir / "log.json").write_text(json.dumps(log, indent=1))
    model.eval()
    return log


def _validate(model: Model, validation: torch.Tensor, loss: Loss, batch_size: int, device: str) -> float:
    with torch.no_grad(), torch.autocast(device, torch.bfloat16):
        parts = [float(loss(model, part.to(device))) for part in validation.split(batch_size)]
    return sum(parts) / len(parts)


def _save_state(path: Path, state: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)
