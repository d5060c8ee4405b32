"""A fitted tree decides what scikit-learn's does, and asks nothing whose answer changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from specpilot.controllers.observation import NUM_FEATURES
from specpilot.controllers.policies import TreePolicy
from specpilot.controllers.priced import Action
from specpilot.train.student_fit import fit_tree

TIERS = [Action(length, 1.0) for length in range(4)]


def idle_splits(tree: TreePolicy) -> int:
    rows = zip(tree.feature, tree.left, tree.right, strict=True)
    return sum(
        own >= 0 and tree.feature[low] < 0 and tree.feature[high] < 0 and tree.tier[low] == tree.tier[high]
        for own, low, high in rows
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_is_that_of_scikit_learn_without_splits_between_equal_tiers(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, weight = rng.random((3000, NUM_FEATURES)), rng.random(3000)
    # Noise that depends on another feature: splits by it make leaves purer, and name the same tier on both sides.
    usual = (features[:, 3] * 4).astype(np.int64)
    noisy = rng.random(3000) < 0.4 * features[:, 7]
    tier = np.where(noisy, rng.integers(0, 4, 3000), usual)
    own = fit_tree(features, tier, weight, TIERS, 32, seed)
    theirs = DecisionTreeClassifier(max_leaf_nodes=32, min_samples_leaf=20, random_state=seed)
    theirs.fit(features, tier, sample_weight=weight)
    fresh = rng.random((500, NUM_FEATURES))
    expected = [TIERS[int(number)] for number in theirs.predict(fresh.astype(np.float32))]
    # The classifier rounds features to 32 bits; at a threshold that may decide.
    assert [own.act(row) for row in fresh.astype(np.float32).astype(np.float64)] == expected
    assert idle_splits(own) == 0
    assert len(own.feature) < theirs.tree_.node_count
    assert len(set(own.tier)) == len(TIERS)
