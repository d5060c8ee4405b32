"""Token trees: what is sent to verification for one request, and the mask arithmetic that makes a tree one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class TokenTree:
    """A tree of tokens in topological order; node 0 is the root (the last committed token, not yet in the cache).

    ``parents[i] < i`` is the index of node i's parent and ``parents[0] == -1``. A chain, the tree without branches, has
    ``parents == (-1, 0, 1, …)``.
    """

    tokens: Sequence[int]
    parents: Sequence[int]
    is_chain: bool = field(init=False)

    def __post_init__(self) -> None:
        if isinstance(self.parents, range) and self.parents == range(-1, len(self.tokens) - 1) and self.parents:
            object.__setattr__(self, "is_chain", True)  # nothing to check, and chains are made every round
            return
        if len(self.tokens) != len(self.parents) or not self.tokens or self.parents[0] != -1:
            raise ValueError(f"a token tree needs one parent per token and parents[0] == -1, got {self.parents!r}")
        if any(not 0 <= parent < node for node, parent in enumerate(self.parents) if node):
            raise ValueError(f"a node's parent must come before it, got parents {self.parents!r}")
        chain = all(parent == node - 1 for node, parent in enumerate(self.parents))
        object.__setattr__(self, "is_chain", chain)

    @classmethod
    def chain(cls, tokens: Sequence[int]) -> TokenTree:
        """The tree without branches over ``tokens`` (root first)."""
        return cls(tokens, range(-1, len(tokens) - 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def depths(self) -> np.ndarray:
        """Depth of each node, root 0. Shape ``[n]``, int64."""
        if self.is_chain:
            return np.arange(len(self.tokens))
        depths = np.zeros(len(self.tokens), dtype=np.int64)
        for node in range(1, len(self.tokens)):
            depths[node] = depths[self.parents[node]] + 1
        return depths

    def cut(self, depth: int) -> TokenTree:
        """The tree without nodes deeper than ``depth``. ``ValueError`` unless its nodes come level by level."""
        if self.is_chain:
            return TokenTree.chain(self.tokens[: depth + 1])
        depths = self.depths()
        if (np.diff(depths) < 0).any():
            raise ValueError(f"only a tree whose nodes come level by level can be cut, got depths {depths.tolist()}")
        size = int(np.searchsorted(depths, depth, side="right"))
        return TokenTree(self.tokens[:size], self.parents[:size])

    def ancestors(self) -> np.ndarray:
        """Boolean ``[n, n]``: entry (i, j) says that node i sees node j, that is j is i or an ancestor of i."""
        size = len(self.tokens)
        if self.is_chain:
            return np.tri(size, dtype=np.bool_)
        seen = np.eye(size, dtype=np.bool_)
        for node in range(1, size):
            seen[node] |= seen[self.parents[node]]
        return seen

    def children(self, node: int) -> list[int]:
        """Indices of ``node``'s children in the order in which they were proposed."""
        if self.is_chain:
            return [node + 1] if node + 1 < len(self.tokens) else []
        return [child for child in range(node + 1, len(self.tokens)) if self.parents[child] == node]
