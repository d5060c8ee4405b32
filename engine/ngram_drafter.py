"""Prompt lookup: draft what followed the last occurrence of the same few tokens. No model, no cache, no lag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .drafter import Draft, DraftContext, Drafter
from .request import Request
from .token_tree import TokenTree


class NgramDrafter(Drafter):
    """Looks for the longest suffix of ``max_ngram … min_ngram`` tokens that occurred before in the request.

    The method is known as prompt lookup decoding (Saxena 2023). Each request keeps an index of its own n-grams, which
    grows with the text, so a look-up costs the same at any length. A draft comes at once, not level by level, so
    stop/continue is not asked; its length is cut by what followed the earlier occurrence.
    """

    name = "ngram"

    def __init__(self, min_ngram: int = 2, max_ngram: int = 4) -> None:
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self._index: dict[str, dict[tuple[int, ...], int]] = {}
        self._indexed: dict[str, int] = {}

    def start(self, request: Request) -> None:
        """See `Drafter.start`."""
        self._index[request.request_id] = {}
        self._indexed[request.request_id] = 0

    def forget(self, request: Request) -> None:
        """See `Drafter.forget`."""
        self._index.pop(request.request_id, None)
        self._indexed.pop(request.request_id, None)

    def move_slot(self, source: int, destination: int) -> None:
        """See `Drafter.move_slot`; nothing is kept by slot."""

    def lag(self, request: Request) -> int:
        """See `Drafter.lag`; the index is brought up to date at every look-up."""
        return 0

    def catch_up(self, requests: Sequence[Request]) -> int:
        """See `Drafter.catch_up`."""
        return 0

    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        """See `Drafter.propose`; a request without a match gets an empty draft."""
        drafts = []
        for request, length in zip(requests, lengths.tolist(), strict=True):
            tokens = self._lookup(request, length)
            chain = TokenTree.chain([request.token_ids[-1], *tokens])
            drafts.append(Draft(chain, tuple(range(1, len(chain))), depth=len(tokens)))
        return drafts

    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        """See `Drafter.commit`; nothing to remember."""

    def _lookup(self, request: Request, length: int) -> list[int]:
        tokens, index = request.token_ids, self._index[request.request_id]
        # Index every n-gram that ends before the last token, by the position of the token that follows it.
        for end in range(max(1, self._indexed[request.request_id]), len(tokens)):
            for size in self.sizes:
                if size <= end:
                    index[tuple(tokens[end - size : end])] = end
        self._indexed[request.request_id] = len(tokens)
        for size in self.sizes:
            follower = index.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if follower is not None:
                return tokens[follower : follower + length]
        return []
