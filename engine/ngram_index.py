"""Where each few tokens of a text last occurred, and whether drafts agree with what followed them."""

from __future__ import annotations

from collections.abc import Sequence

from .request import Request


class NgramIndex:
    """Position of the follower of the last occurrence of every n-gram of a text that grows.

    An occurrence counts once a token follows it. Each token is indexed once, so a look-up costs the same at any
    length of text.
    """

    def __init__(self, min_ngram: int = 2, max_ngram: int = 4) -> None:
        """Raises ``ValueError`` unless ``1 <= min_ngram <= max_ngram``."""
        if not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self.sizes = range(max_ngram, min_ngram - 1, -1)
        self._followers: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def update(self, tokens: Sequence[int]) -> None:
        """Index what ``tokens``, the whole text, has beyond the text of the last call."""
        if len(tokens) == self._num_indexed:
            return
        for end in range(max(1, self._num_indexed), len(tokens)):
            for size in self.sizes:
                if size <= end:
                    self._followers[tuple(tokens[end - size : end])] = end
        self._num_indexed = max(self._num_indexed, len(tokens))

    def lookup(self, tokens: Sequence[int]) -> int | None:
        """Position in the text of the token that followed the longest suffix of ``tokens`` that occurred; else None.

        ``tokens`` need not be the indexed text.
        """
        for size in self.sizes:
            position = self._followers.get(tuple(tokens[-size:])) if size <= len(tokens) else None
            if position is not None:
                return position
        return None


class TextAgreement:
    """The feature ``agreement`` of `controllers.DraftLevel`: one index per request, made when first asked for."""

    def __init__(self) -> None:
        self._indexes: dict[str, NgramIndex] = {}

    def forget(self, request: Request) -> None:
        """A request came or left."""
        self._indexes.pop(request.request_id, None)

    def of(self, request: Request, drafted: Sequence[int]) -> int:
        """1 if the last of the ``drafted`` tokens is what the text suggests, -1 if another, 0 if it suggests none.

        The suffix that is looked up spans committed and drafted tokens; its earlier occurrence and the token after
        that are committed.
        """
        text = request.token_ids
        index = self._indexes.get(request.request_id)
        if index is None:
            index = self._indexes[request.request_id] = NgramIndex()
        index.update(text)
        longest = index.sizes[0]
        follower = index.lookup([*text[-longest:], *drafted[:-1]][-longest:])
        if follower is None:
            return 0
        return 1 if text[follower] == drafted[-1] else -1
