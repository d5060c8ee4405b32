"""Where each few tokens of a text last occurred."""

from __future__ import annotations

from collections.abc import Sequence


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
