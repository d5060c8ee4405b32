"""Which drafted tokens are kept: the two lossless rules, each over a token tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .token_tree import TokenTree

Distribution = NDArray[np.float64]


@dataclass(frozen=True)
class Verdict:
    """Outcome of verifying one tree."""

    path: tuple[int, ...]
    """Accepted nodes from the root's child downwards; their number is the accepted length."""
    next_token: int
    """The target's own token after the last accepted node."""


def accept_coupled(tree: TokenTree, target_tokens: Sequence[int]) -> Verdict:
    """Keep drafts where they agree with the target's own choice (Gumbel coupling, arXiv 2408.07978).

    ``target_tokens[i]`` is the arg max of the target's perturbed logits after node i. It depends on the text and the
    seed alone, so the text does too, whatever the tree holds; several candidates only raise the chance of a match.
    """
    node = 0
    path: list[int] = []
    while True:
        wanted = target_tokens[node]
        child = next((child for child in tree.children(node) if tree.tokens[child] == wanted), None)
        if child is None:
            return Verdict(tuple(path), wanted)
        path.append(child)
        node = child


def accept_rejection(
    tree: TokenTree,
    target_probabilities: NDArray[np.float64],
    draft_probabilities: Mapping[int, Distribution],
    rng: np.random.Generator,
) -> Verdict:
    """Speculative sampling (Leviathan et al. 2023), candidates drawn without replacement (MCSD, arXiv 2401.06706).

    ``target_probabilities`` is ``[n, vocab_size]``, the target's distribution after each node. Where
    ``draft_probabilities`` has a node, its children were drawn one after the other without replacement from that
    distribution; where it has not, they were chosen without chance (greedy or n-gram drafts), each a point mass.
    The emitted token has exactly the target's distribution at every node.
    """
    node = 0
    path: list[int] = []
    while True:
        target = target_probabilities[node]
        draft = draft_probabilities.get(node)
        accepted = None
        for child in tree.children(node):
            token = tree.tokens[child]
            proposal = 1.0 if draft is None else float(draft[token])
            if rng.random() * proposal < target[token]:
                accepted = child
                break
            target = _residual(target, token, draft)
            if draft is not None:
                draft = _without(draft, token)
        if accepted is None:
            return Verdict(tuple(path), _draw(target, rng))
        path.append(accepted)
        node = accepted


def _residual(target: Distribution, token: int, draft: Distribution | None) -> Distribution:
    """What is left of the target's distribution after ``token`` was rejected: max(p - q, 0), renormalised."""
    if draft is None:
        rest = target.copy()
        rest[token] = 0.0
    else:
        rest = np.maximum(target - draft, 0.0)
    mass = rest.sum()
    # p == q cannot be rejected but for rounding; then the target itself is the right distribution.
    return rest / mass if mass > 0 else target


def _without(draft: Distribution, token: int) -> Distribution | None:
    rest = draft.copy()
    rest[token] = 0.0
    mass = rest.sum()
    return rest / mass if mass > 0 else None


def _draw(distribution: Distribution, rng: np.random.Generator) -> int:
    cumulative = np.cumsum(distribution)
    drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(drawn, len(distribution) - 1)
