"""Random-weight pairs that are small enough for statistics and stress tests, and a byte-level tokenizer for them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from specpilot.engine import Pair

END_OF_TEXT = "<|endoftext|>"
# Byte-level BPE writes every byte as one printable character; these are the bytes of "é", "€" and "😀".
MULTI_BYTE_TEXT = "é€😀"
TEXT_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;()[]{}=+-*/_'\"#"
MERGES = [("d", "e"), ("de", "f"), ("i", "n"), ("r", "e"), ("t", "h"), ("o", "n")]


def byte_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of exactly ``vocab_size`` tokens (at most 73); token 0 ends a text."""
    multi_byte = sorted({_TABLE[byte] for byte in MULTI_BYTE_TEXT.encode()})
    characters = [_TABLE[byte] for byte in TEXT_CHARACTERS.encode()]
    head = [END_OF_TEXT, *characters[:8]] if vocab_size < 64 else [END_OF_TEXT, *multi_byte]
    tokens = [*head, *(c for c in characters if c not in head), *("".join(merge) for merge in MERGES)]
    vocab = {token: index for index, token in enumerate(tokens[:vocab_size])}
    assert len(vocab) == vocab_size, f"at most {len(tokens)} tokens"
    merges = [merge for merge in MERGES if "".join(merge) in vocab]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )


def _byte_table() -> dict[int, str]:
    """The printable stand-in of every byte, as GPT-2 defined it."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + index) for index, byte in enumerate(others)}


_TABLE = _byte_table()


def tiny_llama(
    vocab_size: int, num_layers: int, seed: int, max_position_embeddings: int = 256, initializer_range: float = 0.3
) -> LlamaForCausalLM:
    """A Llama of width 32 with random weights: entropies between those of a trained model and of a coin."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=32,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=64,
            max_position_embeddings=max_position_embeddings,
            initializer_range=initializer_range,
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=0,
        )
    )
    return model.eval()


def build_tiny_pair(vocab_size: int = 73, seed: int = 0, noise: float = 0.02, eos: int | None = 0) -> Pair:
    """A target of two layers and a drafter of one, made from the target's weights plus noise, so that they agree often.

    ``eos=None``: no token ends a text.
    """
    target = tiny_llama(vocab_size, 2, seed)
    drafter = tiny_llama(vocab_size, 1, seed + 1)
    generator = torch.Generator().manual_seed(seed + 2)
    with torch.no_grad():
        for layer in target.model.layers[1:]:  # what the drafter lacks must not be everything
            layer.self_attn.o_proj.weight *= 0.4
            layer.mlp.down_proj.weight *= 0.4
        target.lm_head.weight *= 1.3
        state = target.state_dict()
        for name, parameter in drafter.named_parameters():
            parameter.copy_(state[name] + noise * torch.randn(parameter.shape, generator=generator))
    tokenizer = byte_tokenizer(vocab_size)
    for model in (target, drafter):
        model.generation_config.eos_token_id = eos
        model.generation_config.pad_token_id = 0
        model.config.eos_token_id = eos
    if eos is None:
        tokenizer.eos_token = None
    return Pair(target, drafter, tokenizer, vocab_size)
