"""Policies: what their arrays say, on whole observations and on features computed as they are read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specpilot.controllers import Action, FixedPolicy, MissingFeatureError, MlpPolicy, TreePolicy
from specpilot.controllers.cost_table import CostTable
from specpilot.controllers.observation import FEATURE_NAMES, NUM_FEATURES, new_history, update_history, write_features
from specpilot.controllers.policies import factored_tiers
from specpilot.controllers.round_costs import RoundCosts
from specpilot.controllers.round_features import RoundFeatures, note_round
from specpilot.tests.support.priced import LENGTHS, PRICES, random_mlp, random_state, random_tree
from specpilot.tests.support.rounds import memory_bound

TIERS = [Action(0, 1.0), Action(4, 1.0), Action(8, 0.5)]


def stump(**changes: Any) -> TreePolicy:
    arrays: dict[str, Any] = {
        "feature_names": ["decoding", "gain"],
        "tiers": TIERS,
        "feature": [0, -1, 1, -1, -1],
        "threshold": [4.0, 0.0, 1.5, 0.0, 0.0],
        "left": [1, 0, 3, 0, 0],
        "right": [2, 0, 4, 0, 0],
        "tier": [0, 2, 0, 0, 1],
    }
    return TreePolicy(**(arrays | changes))


def observation(**values: float) -> np.ndarray:
    features = np.zeros(NUM_FEATURES)
    for name, value in values.items():
        features[FEATURE_NAMES.index(name)] = value
    return features


@pytest.mark.parametrize(
    ("decoding", "gain", "tier"), [(1, 9, 2), (4, 9, 2), (4.001, 1.5, 0), (5, 1.6, 1), (-5, 0, 2), (5, -1, 0)]
)
def test_a_tree_goes_left_at_its_threshold_and_below(decoding: float, gain: float, tier: int) -> None:
    assert stump().act(observation(decoding=decoding, gain=gain)) == TIERS[tier]


@pytest.mark.parametrize("seed", range(5))
def test_a_tree_finds_the_one_leaf_whose_conditions_all_hold(seed: int) -> None:
    tree, rng = random_tree(seed), np.random.default_rng(seed)
    for features in rng.uniform(0, 1, (100, NUM_FEATURES)):
        holding = [(0, [True])]
        leaves = []
        while holding:
            node, conditions = holding.pop()
            if tree.feature[node] < 0:
                leaves += [node] if all(conditions) else []
                continue
            below = features[FEATURE_NAMES.index(tree.feature_names[tree.feature[node]])] <= tree.threshold[node]
            holding += [(tree.left[node], [*conditions, below]), (tree.right[node], [*conditions, not below])]
        (leaf,) = leaves
        assert tree.act(features) == tree.tiers[tree.tier[leaf]]


def test_a_tree_reads_well() -> None:
    assert stump().text().splitlines() == [
        "decoding <= 4?",
        "  yes: planned up to 8, price 0.5",
        "  no: gain <= 1.5?",
        "    yes: off",
        "    no: planned up to 4, price 1",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"left": [0, 0, 3, 0, 0]}, "'left' of node 0 must be 1 … 4, got 0"),
        ({"right": [2, 0, 1, 0, 0]}, "'right' of node 2 must be 3 … 4, got 1"),
        ({"right": [5, 0, 4, 0, 0]}, "'right' of node 0 must be 1 … 4, got 5"),
        ({"left": [2, 0, 3, 0, 0]}, "node 1 must be the child of one node, it is that of 0"),
        ({"feature": [2, -1, 1, -1, -1]}, "'feature' of node 0 must be -1 … 1, got 2"),
        ({"tier": [0, 3, 0, 0, 1]}, "'tier' of node 1 must be 0 … 2, got 3"),
        ({"threshold": [np.nan, 0, 1, 0, 0]}, "'threshold' of node 0"),
        ({"threshold": [4.0]}, "one length"),
        ({"feature": [], "threshold": [], "left": [], "right": [], "tier": []}, "one length"),
        ({"tiers": []}, "'tiers' must be 1"),
        ({"tiers": [Action(0, 1.0), Action(-1, 1.0), Action(1, 1.0)]}, "'max_length' of tier 1"),
        ({"tiers": [Action(0, 1.0), Action(1, np.inf), Action(1, 1.0)]}, "'price' of tier 1"),
        ({"tiers": [Action(0, 1.0), Action(1, 1.0, -2), Action(1, 1.0)]}, "'looks' of tier 1"),
        ({"feature_names": ["decoding", "moon_phase"]}, "'moon_phase' does not exist"),
        ({"feature_names": ["gain", "gain"]}, "named twice"),
    ],
)
def test_what_is_no_tree_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stump(**changes)


def test_a_network_is_tanh_layers_over_clipped_normalised_features_with_a_choice_per_head() -> None:
    policy, rng, seen = random_mlp(3, names=("gain", "kv_free", "decoding")), np.random.default_rng(0), set()
    for features in rng.normal(0, 20, (200, NUM_FEATURES)):
        read = features[[FEATURE_NAMES.index(name) for name in policy.feature_names]]
        hidden = np.clip((read - policy.mean) / policy.scale, -10, 10)
        for weight, bias in policy.layers[:-1]:
            hidden = np.tanh(weight @ hidden + bias)
        scores = policy.layers[-1][0] @ hidden + policy.layers[-1][1]
        np.testing.assert_allclose(policy.outputs(features), scores, rtol=1e-4, atol=1e-4)
        action = policy.act(features)
        assert action == Action(LENGTHS[scores[:4].argmax()], PRICES[scores[4:].argmax()])
        seen.add(action)
    assert len(seen) > 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (4, 4)}, "multiply to the number of tiers, 12"),
        ({"heads": ()}, "'heads'"),
        ({"mean": [0.0]}, "'mean' must have shape"),
        ({"scale": [1.0, 0.0]}, "'scale' must be positive"),
        ({"clip": 0.0}, "'clip' must be positive"),
        ({"layers": []}, "'layers' must be 1"),
        ({"layers": [(np.zeros((7, 3)), np.zeros(7))]}, "layer_0.weight"),
        ({"layers": [(np.full((7, 2), np.nan), np.zeros(7))]}, "finite"),
        ({"layers": [(np.zeros((6, 2)), np.zeros(6))]}, "layer_0.weight"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    arrays: dict[str, Any] = {
        "feature_names": ["gain", "decoding"],
        "tiers": factored_tiers(LENGTHS, PRICES),
        "heads": (4, 3),
        "mean": [0.0, 0.0],
        "scale": [1.0, 1.0],
        "clip": 10.0,
        "layers": [(np.zeros((7, 2)), np.zeros(7))],
    }
    MlpPolicy(**arrays)
    with pytest.raises(ValueError, match=message):
        MlpPolicy(**(arrays | changes))


def test_a_feature_that_is_not_there_is_named_if_it_is_read() -> None:
    features = observation(decoding=5, gain=np.nan, kv_free=np.nan)
    for policy in (stump(), random_mlp(0, ("decoding", "gain"))):
        with pytest.raises(MissingFeatureError, match="'gain'"):
            policy.act(features)
    assert stump().act(observation(decoding=1, gain=np.nan)) == TIERS[2]
    assert FixedPolicy(TIERS[1]).act(features) == TIERS[1]


# ---------------------------------------------------------------------- features as they are read


@pytest.mark.parametrize(("seed", "batch"), [(seed, batch) for seed in range(6) for batch in (1, 2, 5, 8, 21)])
def test_features_computed_as_they_are_read_are_those_of_the_whole_observation(seed: int, batch: int) -> None:
    rng = np.random.default_rng((seed, batch))
    table = CostTable.bake(memory_bound(), 8, int(rng.integers(1, 9)), 96)
    whole, lazy = new_history(), new_history().tolist()
    chance, costs = np.empty(batch), RoundCosts(table)
    reader = RoundFeatures(table, costs, lazy, lambda state: chance)
    for _ in range(12):
        drafted = rng.integers(0, 12, batch)
        verified = rng.integers(0, drafted + 1)
        accepted = rng.integers(0, verified + 1)
        facts = int(accepted.sum()) + batch, float(rng.random() * 9), float(drafted.max()), float(rng.random())
        update_history(whole, drafted, verified, accepted, *facts)
        note_round(lazy, drafted.tolist(), verified.tolist(), accepted.tolist(), *facts)
        np.testing.assert_allclose(lazy, whole, rtol=1e-12)
        state, expected = random_state(batch, rng), np.zeros(NUM_FEATURES)
        chance[:] = rng.random(batch)
        write_features(
            expected,
            state.context_length,
            state.lag,
            state.temperature,
            state.acceptance_rate,
            chance,
            state.running,
            state.waiting,
            state.kv_free,
            *state.arrival_rates,
            whole,
            table,
        )
        costs.enter(batch, float(state.context_length.max()))
        reader.enter(state)
        place = int(rng.integers(NUM_FEATURES))
        assert reader[place] == pytest.approx(expected[place], rel=1e-9, abs=1e-12)  # alone, before the others
        np.testing.assert_allclose(reader.array(), expected, rtol=1e-9, atol=1e-12)
        for policy in (random_tree(seed), random_mlp(seed, FEATURE_NAMES)):
            assert policy.act(reader) == policy.act(expected)
