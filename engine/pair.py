"""A pair: a target model and a drafter that share a vocabulary, loaded from directories or hub ids."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .models import StockRunner

SHIPPED_PAIR = Path(__file__).resolve().parent.parent / "pairs" / "pystdlib"
"""Directory of the pair that ships with the package, with ``target/`` and ``drafter/``."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

logger = logging.getLogger(__name__)


class PairError(ValueError):
    """A pair cannot be loaded; the message names what is wrong and the fix."""


@dataclass(frozen=True)
class Pair:
    """A loaded pair. ``drafter`` is None where drafting needs no model (n-gram prompt lookup)."""

    target: PreTrainedModel
    drafter: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    """Tokens both models know; logits beyond it (padding of an embedding table) are never sampled."""

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """Tokens that end a text."""
        config = self.target.generation_config
        ids = self.tokenizer.eos_token_id if config is None or config.eos_token_id is None else config.eos_token_id
        return frozenset(ids if isinstance(ids, list) else [] if ids is None else [ids])


def load_pair(
    target: str | Path = SHIPPED_PAIR / "target",
    drafter: str | Path | None = SHIPPED_PAIR / "drafter",
    device: str = "cpu",
    dtype: str = "float32",
) -> Pair:
    """Load a target and a drafter (None: no drafter model) on ``device`` in ``dtype``; each a directory or a hub id.

    Weights are read from safetensors only and no code of the repository is run. Raises `PairError` where files are
    missing, the vocabularies differ, or a model does not use transformers' attention interface.
    """
    if dtype not in DTYPES:
        raise PairError(f"dtype must be one of {sorted(DTYPES)}, got {dtype!r}")
    target_model = _load_model(target, device, DTYPES[dtype])
    tokenizer = _load_tokenizer(target)
    if tokenizer is None:
        raise PairError(f"{target}: no tokenizer found beside the target's weights")
    vocab_size = int(target_model.config.get_text_config().vocab_size)
    if drafter is None:
        return Pair(target_model, None, tokenizer, vocab_size)
    drafter_model = _load_model(drafter, device, DTYPES[dtype])
    drafter_size = int(drafter_model.config.get_text_config().vocab_size)
    _check_vocabulary(target, drafter, tokenizer, vocab_size, drafter_size)
    return Pair(target_model, drafter_model, tokenizer, min(vocab_size, drafter_size))


def _load_model(name: str | Path, device: str, dtype: torch.dtype) -> PreTrainedModel:
    path = Path(name)
    if path.is_absolute() and not (path / "config.json").is_file():
        raise PairError(f"{name}: no model here (config.json is missing); give a directory in Hugging Face format")
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            str(name), dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise PairError(f"{name}: cannot be loaded as a causal LM with safetensors weights ({first})") from None
    model: PreTrainedModel = loaded.to(device).eval()
    reason = StockRunner.unsupported_reason(model)
    if reason is not None:
        raise PairError(f"{name}: {reason}")
    return model


def _load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(name), trust_remote_code=False)
    except (OSError, ValueError):
        return None
    return tokenizer


def _check_vocabulary(
    target: str | Path, drafter: str | Path, tokenizer: PreTrainedTokenizerBase, target_size: int, drafter_size: int
) -> None:
    """Models of one family may pad their embeddings differently, so the tokenizers decide, not the sizes."""
    other = _load_tokenizer(drafter)
    if other is None:
        if target_size != drafter_size:
            raise PairError(
                f"{drafter} has {drafter_size} tokens and no tokenizer, {target} has {target_size}: "
                "the pair must share a vocabulary"
            )
        logger.warning("%s has no tokenizer; taking its %d tokens to be the target's", drafter, drafter_size)
        return
    if tokenizer.get_vocab() != other.get_vocab():
        differing = len(set(tokenizer.get_vocab().items()) ^ set(other.get_vocab().items()))
        raise PairError(
            f"{target} and {drafter} do not share a vocabulary ({differing} entries differ); "
            "choose a drafter of the target's family"
        )
    if min(target_size, drafter_size) < len(tokenizer):
        raise PairError(
            f"{drafter if drafter_size < target_size else target} knows {min(target_size, drafter_size)} tokens, "
            f"fewer than the tokenizer's {len(tokenizer)}"
        )
