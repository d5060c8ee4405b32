"""Drafts while they are drafted: what a level chose, and the trees that grow by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from .drafter import Draft
from .token_tree import TokenTree


@dataclass(frozen=True)
class ChosenTokens:
    """The candidates of one level. ``A`` requests, ``C`` candidates each; tensors are on the drafter's device."""

    rows: NDArray[np.int64]
    """``[A]`` index of each request among those that draft."""
    tokens: torch.Tensor
    """``[A, C]``, best first."""
    scores: torch.Tensor | None
    """``[A, C]`` perturbed logits of the candidates, -inf where a filter has cut one; None where C is 1."""
    probabilities: NDArray[np.float64] | None
    """``[A, vocab_size]`` distribution the candidates were drawn from; None where they were not drawn."""
    drawn: NDArray[np.bool_]
    """``[A]`` which requests draw; the others are greedy."""
    margin: NDArray[np.float64] | None = None
    """``[A]`` difference of the two best scores, where it was asked for."""
    first: NDArray[np.int64] | None = None
    """``[A]`` the best candidates, where they are on the host anyway."""

    def on_host(self) -> NDArray[np.int64]:
        """``[A]`` the best candidates. Waits for the device."""
        return self.tokens[:, 0].cpu().numpy() if self.first is None else self.first

    @classmethod
    def choose(
        cls,
        rows: NDArray[np.int64],
        scores: torch.Tensor,
        num_candidates: int,
        probabilities: NDArray[np.float64] | None,
        drawn: NDArray[np.bool_],
        with_margin: bool,
    ) -> ChosenTokens:
        """Take the best of ``scores`` ``[A, vocab_size]``; the margin comes at almost no cost with them."""
        if num_candidates == 1 and scores.device.type == "cpu":
            first, margin = _best_on_cpu(np.ascontiguousarray(scores.numpy()), with_margin)
            return cls(rows, torch.from_numpy(first[:, None]), None, probabilities, drawn, margin, first)
        if num_candidates == 1 and not with_margin:
            return cls(rows, scores.argmax(-1, keepdim=True), None, probabilities, drawn)
        best, tokens = scores.topk(max(num_candidates, 2) if with_margin else num_candidates, dim=-1)
        margin = (best[:, 0] - best[:, 1]).cpu().numpy().astype(np.float64) if with_margin else None
        best, tokens = best[:, :num_candidates], tokens[:, :num_candidates]
        return cls(rows, tokens, best if num_candidates > 1 else None, probabilities, drawn, margin)

    def add_to(self, drafts: Sequence[GrowingDraft]) -> None:
        """Let the drafts of these requests grow by this level. Waits for the device."""
        candidates: list[list[int]] = self.tokens.tolist()
        if self.scores is not None:
            candidates = [
                [token for token, score in zip(row, row_scores, strict=True) if score > -np.inf]
                for row, row_scores in zip(candidates, self.scores.tolist(), strict=True)
            ]
        for row, (index, tokens) in enumerate(zip(self.rows.tolist(), candidates, strict=True)):
            known = self.probabilities is not None and self.drawn[row]
            drafts[index].add_level(tokens, self.probabilities[row] if known else None)  # type: ignore[index]


def _best_on_cpu(
    scores: NDArray[np.float32], with_margin: bool
) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
    """Tokens and margins ``[A]``. NumPy's arg max takes a fifth of torch's."""
    if not with_margin:
        return scores.argmax(axis=1), None
    tokens, margins = np.empty(len(scores), dtype=np.int64), np.empty(len(scores))
    from .draft_kernel import best_two  # Here, because it loads the compiler.

    best_two(scores, tokens, margins)
    return tokens, margins


@dataclass
class GrowingDraft:
    """A draft under construction: a chain of first candidates with the other candidates as leaves beside it."""

    tokens: list[int]
    parents: list[int] = field(default_factory=lambda: [-1])
    main_chain: list[int] = field(default_factory=list)
    probabilities: dict[int, NDArray[np.float64]] = field(default_factory=dict)

    def add_level(self, candidates: list[int], probability: NDArray[np.float64] | None) -> None:
        """Add a level below the first candidate of the last; ``probability``: what they were drawn from, if known."""
        parent = self.main_chain[-1] if self.main_chain else 0
        self.main_chain.append(len(self.tokens))
        self.tokens.extend(candidates)
        self.parents.extend([parent] * len(candidates))
        if probability is not None:
            self.probabilities[parent] = probability

    @property
    def drafted(self) -> list[int]:
        """Tokens of the main chain."""
        if len(self.main_chain) == len(self.tokens) - 1:
            return self.tokens[1:]
        return [self.tokens[node] for node in self.main_chain]

    def finish(self) -> Draft:
        """The draft as it goes to verification."""
        depth = len(self.main_chain)
        is_chain = depth == len(self.tokens) - 1
        tree = TokenTree.chain(self.tokens) if is_chain else TokenTree(self.tokens, self.parents)
        return Draft(tree, tuple(self.main_chain), self.probabilities, depth)
