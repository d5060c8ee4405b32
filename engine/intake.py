"""Checks a prompt at the door."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .pair import Pair
from .sampling_params import RequestError

Prompt = str | Sequence[int] | NDArray[np.integer[Any]]
"""Text, or token ids."""


def read_prompt(prompt: Prompt, pair: Pair, max_model_len: int, max_tokens: int) -> list[int]:
    """Turn a prompt into token ids. Raises `RequestError` where it is empty, foreign or can never fit."""
    tokens = _token_ids(prompt, pair)
    if not tokens:
        raise RequestError("the prompt is empty; give at least one token")
    outside = [token for token in tokens if not 0 <= token < pair.vocab_size]
    if outside:
        raise RequestError(f"token id {outside[0]} is outside the vocabulary of {pair.vocab_size}")
    if len(tokens) >= max_model_len:
        raise RequestError(
            f"the prompt has {len(tokens)} tokens, the engine takes at most {max_model_len - 1} "
            "(max_model_len - 1); shorten it"
        )
    if len(tokens) + max_tokens > max_model_len:
        raise RequestError(
            f"prompt ({len(tokens)}) plus max_tokens ({max_tokens}) exceed the KV capacity of a request "
            f"({max_model_len} tokens); lower max_tokens to {max_model_len - len(tokens)}"
        )
    return tokens


def _token_ids(prompt: Prompt, pair: Pair) -> list[int]:
    if isinstance(prompt, str):
        try:
            encoded: list[int] = pair.tokenizer(prompt)["input_ids"]
        except (TypeError, UnicodeError):  # a lone surrogate is no text, and tokenizers says so in its own words
            raise RequestError(f"the prompt is not valid Unicode text: {prompt!r:.80}") from None
        return encoded
    valid = isinstance(prompt, Sequence | np.ndarray) and all(
        isinstance(token, int | np.integer) and not isinstance(token, bool) for token in prompt
    )
    if not valid:
        raise RequestError(f"a prompt is a string or a sequence of token ids (integers), got {prompt!r:.80}")
    return [int(token) for token in prompt]
