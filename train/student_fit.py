"""Fit the students: a decision tree in raw units, and a network of one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeClassifier

from specpilot.controllers.observation import FEATURE_NAMES
from specpilot.controllers.policies import MlpPolicy, TreePolicy
from specpilot.controllers.priced import Action
from specpilot.train.normaliser import Normaliser

Rows = NDArray[np.float64]
Nodes = NDArray[np.int64]


def fit_tree(
    features: Rows,
    tier: NDArray[np.int64],
    weight: Rows,
    tiers: Sequence[Action],
    max_leaf_nodes: int,
    seed: int,
) -> TreePolicy:
    """The best-first tree of at most ``max_leaf_nodes`` leaves (CART, as in scikit-learn), without its splits between
    equal tiers: they made leaves purer, and decide nothing."""
    fitted = DecisionTreeClassifier(max_leaf_nodes=max(2, max_leaf_nodes), min_samples_leaf=20, random_state=seed)
    tree = fitted.fit(features, tier, sample_weight=weight).tree_
    named = fitted.classes_[tree.value[:, 0].argmax(axis=1)]
    left, right = _without_idle_splits(tree.children_left, tree.children_right, named)
    order = _from_the_root(left, right)
    place = {node: number for number, node in enumerate(order)}
    read = sorted({int(tree.feature[node]) for node in order if left[node] >= 0})
    leaf = [left[node] < 0 for node in order]
    return TreePolicy(
        [FEATURE_NAMES[number] for number in read],
        tiers,
        [-1 if is_leaf else read.index(int(tree.feature[node])) for node, is_leaf in zip(order, leaf, strict=True)],
        [0.0 if is_leaf else float(tree.threshold[node]) for node, is_leaf in zip(order, leaf, strict=True)],
        [0 if is_leaf else place[left[node]] for node, is_leaf in zip(order, leaf, strict=True)],
        [0 if is_leaf else place[right[node]] for node, is_leaf in zip(order, leaf, strict=True)],
        [int(named[node]) for node in order],
    )


def _without_idle_splits(left: Nodes, right: Nodes, tier: Nodes) -> tuple[list[int], list[int]]:
    """Children, -1 at leaves, where a node whose two children are leaves of one tier is a leaf of that tier.

    ``tier`` is read at leaves, and written at new ones. Children are behind their parents.
    """
    low, high = left.tolist(), right.tolist()
    for node in reversed(range(len(low))):
        one, other = low[node], high[node]
        if one >= 0 and low[one] < 0 and low[other] < 0 and tier[one] == tier[other]:
            tier[node] = tier[one]
            low[node] = high[node] = -1
    return low, high


def _from_the_root(left: Sequence[int], right: Sequence[int]) -> list[int]:
    """Nodes, parents before children."""
    order = [0]
    for node in order:
        if left[node] >= 0:
            order += [left[node], right[node]]
    return order


def fit_mlp(
    features: Rows,
    tier: NDArray[np.int64],
    weight: Rows,
    tiers: Sequence[Action],
    normaliser: Normaliser,
    hidden: int,
    seed: int,
    steps: int = 1500,
) -> MlpPolicy:
    """One hidden layer of tanh, weighted cross-entropy, Adam; only tiers that occur have an output."""
    used = np.unique(tier)
    generator = torch.Generator().manual_seed(seed)
    x = torch.from_numpy(normaliser(features))
    y = torch.from_numpy(np.searchsorted(used, tier))
    w = torch.from_numpy((weight / weight.mean()).astype(np.float32))
    sizes = ((hidden, x.shape[1]), (hidden,), (len(used), hidden), (len(used),))
    parameters = [
        torch.randn(size, generator=generator) * (size[1] ** -0.5 if len(size) > 1 else 0.0) for size in sizes
    ]
    for parameter in parameters:
        parameter.requires_grad_()
    optimizer = torch.optim.Adam(parameters, lr=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (min(512, len(x)),), generator=generator)
        scores = torch.tanh(x[rows] @ parameters[0].T + parameters[1]) @ parameters[2].T + parameters[3]
        loss = (torch.nn.functional.cross_entropy(scores, y[rows], reduction="none") * w[rows]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    first, first_bias, second, second_bias = (parameter.detach().numpy() for parameter in parameters)
    return MlpPolicy(
        FEATURE_NAMES,
        [tiers[number] for number in used],
        (len(used),),
        normaliser.mean,
        normaliser.scale,
        normaliser.clip,
        [(first, first_bias), (second, second_bias)],
    )
