"""From tokens to text as they come: whole characters only, cut at the first stop string."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from .request import FinishReason, Request

_UNFINISHED = "\ufffd"


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Decode generated tokens, special tokens left out."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def cut_at_stop(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string in it; None if there is none."""
    found = [position for position in (text.find(stop) for stop in stops) if position >= 0]
    return text[: min(found)] if found else None


def stop_text(tokenizer: PreTrainedTokenizerBase, request: Request) -> str | None:
    """The request's text cut at its first stop string, or None while none has appeared.

    The tail is decoded first, so that the cost of a token does not grow with the text.
    """
    stops = request.params.stop_strings
    if not stops:
        return None
    # A token is at least one byte of text or part of a character: this many tokens hold the longest stop string
    # that the newest token can have completed, and four more the characters cut at the window's start.
    window = max(len(stop.encode()) for stop in stops) + 4
    special, start = frozenset(tokenizer.all_special_ids), len(request.token_ids)
    while start > request.num_prompt_tokens and window:
        start -= 1
        window -= request.token_ids[start] not in special  # special tokens leave no text
    if cut_at_stop(decode(tokenizer, request.token_ids[start:]), stops) is None:
        return None
    return cut_at_stop(decode(tokenizer, request.output_token_ids), stops)


def commit_tokens(
    request: Request, tokens: Sequence[int], tokenizer: PreTrainedTokenizerBase, end_of_text: frozenset[int]
) -> list[int]:
    """Append ``tokens`` one by one until the request ends, and return those taken.

    What comes after the end is dropped, so that the speculation length never shows in the text.
    """
    if request.num_generated == 0:
        request.stats.first_token_seconds = time.perf_counter() - request.arrival
    taken = []
    for token in tokens:
        request.token_ids.append(token)
        taken.append(token)
        if token in end_of_text and not request.params.ignore_eos:
            request.finish_reason = FinishReason.STOP
        elif (text := stop_text(tokenizer, request)) is not None:
            request.text, request.finish_reason = text, FinishReason.STOP
        elif request.num_generated >= request.params.max_tokens:
            request.finish_reason = FinishReason.LENGTH
        if request.finish_reason is not None:
            break
    return taken


@dataclass
class TextStream:
    """Emits a request's text piece by piece; what it emits is a prefix of the final text."""

    tokenizer: PreTrainedTokenizerBase
    stops: tuple[str, ...]
    emitted: int = 0

    def push(self, request: Request, final_text: str | None) -> str:
        """Text that has become certain. ``final_text`` ends the stream (the result's text)."""
        if final_text is not None:
            piece, self.emitted = final_text[self.emitted :], len(final_text)
            return piece
        text = decode(self.tokenizer, request.output_token_ids).rstrip(_UNFINISHED)
        safe = len(text) - self._held_back(text)
        piece = text[self.emitted : safe]
        self.emitted = max(self.emitted, safe)
        return piece

    def _held_back(self, text: str) -> int:
        """Characters at the end that may be the beginning of a stop string."""
        longest = 0
        for stop in self.stops:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest
