"""Prompt lookup: draft what followed the last occurrence of the same few tokens. No model, no cache, no lag."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .drafter import Draft, DraftContext, Drafter
from .ngram_index import NgramIndex
from .request import Request
from .token_tree import TokenTree


class NgramDrafter(Drafter):
    """Looks for the longest suffix of ``max_ngram … min_ngram`` tokens that occurred before in the request.

    The method is known as prompt lookup decoding (Saxena 2023). A draft comes at once, not level by level, so
    stop/continue is not asked; its length is cut by what followed the earlier occurrence.
    """

    name = "ngram"

    def __init__(self, min_ngram: int = 2, max_ngram: int = 4) -> None:
        NgramIndex(min_ngram, max_ngram)  # refuses sizes that make no sense
        self._sizes = (min_ngram, max_ngram)
        self._indexes: dict[str, NgramIndex] = {}

    def start(self, request: Request) -> None:
        """See `Drafter.start`."""
        self._indexes[request.request_id] = NgramIndex(*self._sizes)

    def forget(self, request: Request) -> None:
        """See `Drafter.forget`."""
        self._indexes.pop(request.request_id, None)

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
            text, index = request.token_ids, self._indexes[request.request_id]
            index.update(text)
            follower = index.lookup(text)
            tokens = [] if follower is None else text[follower : follower + length]
            chain = TokenTree.chain([text[-1], *tokens])
            drafts.append(Draft(chain, tuple(range(1, len(chain))), depth=len(tokens)))
        return drafts

    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        """See `Drafter.commit`; nothing to remember."""
