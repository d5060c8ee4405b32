"""Token trees against the definition: parents are followed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.engine import TokenTree


def random_tree(rng: np.random.Generator, size: int) -> TokenTree:
    parents = [-1, *(int(rng.integers(0, node)) for node in range(1, size))]
    return TokenTree(rng.integers(0, 50, size=size).tolist(), parents)


def naive_path(tree: TokenTree, node: int) -> list[int]:
    """The node and its ancestors, root last."""
    path = [node]
    while tree.parents[path[-1]] != -1:
        path.append(tree.parents[path[-1]])
    return path


@pytest.mark.parametrize("seed", range(40))
def test_a_node_sees_itself_and_its_ancestors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tree = random_tree(rng, int(rng.integers(1, 30)))
    seen, depths = tree.ancestors(), tree.depths()
    for node in range(len(tree)):
        path = naive_path(tree, node)
        assert set(np.flatnonzero(seen[node])) == set(path)
        assert depths[node] == len(path) - 1
        assert tree.children(node) == [child for child in range(len(tree)) if tree.parents[child] == node]


@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_chain_is_the_tree_of_its_parents(size: int) -> None:
    tokens = list(range(size))
    chain, tree = TokenTree.chain(tokens), TokenTree(tokens, list(range(-1, size - 1)))
    assert chain.is_chain and tree.is_chain
    assert (chain.ancestors() == tree.ancestors()).all() and (chain.depths() == tree.depths()).all()
    assert (chain.ancestors() == np.tril(np.ones((size, size), dtype=bool))).all()


def test_a_branch_is_no_chain() -> None:
    assert not TokenTree([1, 2, 3], [-1, 0, 0]).is_chain


@pytest.mark.parametrize(
    ("tokens", "parents"),
    [
        ([], []),
        ([1], [0]),
        ([1, 2], [-1]),
        ([1, 2], [-1, 1]),
        ([1, 2], [-1, -1]),
        ([1, 2, 3], [-1, 2, 0]),
        ([1, 2, 3], [0, 0, 1]),
    ],
)
def test_parents_that_make_no_tree_are_refused(tokens: list[int], parents: list[int]) -> None:
    with pytest.raises(ValueError, match="parent"):
        TokenTree(tokens, parents)
