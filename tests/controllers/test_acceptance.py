"""The acceptance predictor: the same numbers however it is asked, through its document too; damage is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import LEVEL_FEATURES, AcceptancePredictor
from specpilot.controllers.acceptance import LEVEL_INPUTS, level_inputs


def random_weights(seed: int = 0, hidden: int = 16) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "hidden_weight": rng.normal(size=(len(LEVEL_INPUTS), hidden)) * 0.3,
        "hidden_bias": rng.normal(size=hidden),
        "output_weight": rng.normal(size=(hidden, 2)),
        "output_bias": rng.normal(size=2),
        "history_weight": rng.normal(size=(8, 5)),
        "history_bias": rng.normal(size=8),
        "carry": [0.6],
    }


def random_confidence(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    top1 = rng.choice([0.0, 1.0, 0.5, 1e-9, 0.97], shape)
    return np.stack([top1, rng.exponential(1, shape), rng.exponential(20, shape), rng.integers(-1, 2, shape)], axis=-1)


def test_the_network_is_one_hidden_layer_of_tanh_over_the_inputs() -> None:
    weights, confidence = random_weights(), random_confidence((50,))
    found = AcceptancePredictor(weights).level(confidence, np.full(50, 0.6), 3)
    inputs = level_inputs(confidence, np.full(50, 0.6), 3)
    score = np.tanh(inputs @ weights["hidden_weight"] + weights["hidden_bias"]) @ weights["output_weight"]
    expected = 1 / (1 + np.exp(-(score + weights["output_bias"])))
    np.testing.assert_allclose(np.stack(found, axis=-1), expected, atol=1e-5)


def test_the_inputs_are_clipped_numbers_and_their_logarithms() -> None:
    found = level_inputs(np.asarray([[1.0, 2.0, 60.0, -1.0]]), np.asarray([0.99]), 4)
    top1, margin = 1 - 1e-5, 40.0
    expected = [top1, 2, margin, -1, 0.99, 4, np.log(top1), np.log(1e-5), np.log(41), 0, 0, np.log(4)]
    np.testing.assert_allclose(found[0], expected, atol=2e-3)


def test_one_request_gets_what_it_gets_among_others() -> None:
    predictor, confidence = AcceptancePredictor(random_weights()), random_confidence((64,))
    temperature = np.random.default_rng(1).choice([0.0, 0.6, 1.0], 64)
    whole = predictor.level(confidence, temperature, 2)
    for index in range(64):
        own = slice(index, index + 1)
        one = predictor.level(confidence[own], temperature[own], 2)
        assert one[0].shape == (1,)
        np.testing.assert_allclose([one[0][0], one[1][0]], [whole[0][index], whole[1][index]], atol=2e-3)


def test_a_whole_recording_is_evaluated_in_one_call() -> None:
    predictor, confidence = AcceptancePredictor(random_weights()), random_confidence((30, 5))
    temperature, depth = np.linspace(0, 1, 30), np.arange(1, 6)
    accepted, following = predictor.level(confidence, temperature[:, None], depth)
    assert accepted.shape == following.shape == (30, 5)
    for column in range(5):
        own = predictor.level(confidence[:, column], temperature, column + 1)
        np.testing.assert_allclose(accepted[:, column], own[0], rtol=1e-5)
        np.testing.assert_allclose(following[:, column], own[1], rtol=1e-5)
    assert predictor.level(confidence[:0, 0], temperature[:0], 1)[0].shape == (0,)


def test_chances_stay_finite_for_extreme_confidence() -> None:
    weights = random_weights()
    weights["output_weight"] *= 1e4
    predictor = AcceptancePredictor(weights)
    for confidence in (np.asarray([[0.0, 0.0, 0.0, -1.0], [1.0, 1e6, 1e30, 1.0]]), np.asarray([[1.0, 9.0, 1e30, 0.0]])):
        for chance in predictor.level(confidence, np.zeros(len(confidence)), 1):
            assert np.isfinite(chance).all() and (chance >= 0).all() and (chance <= 1).all()


def test_the_uninformed_predictor_reads_nothing_and_says_one_rate() -> None:
    predictor = AcceptancePredictor.uninformed(0.8)
    assert predictor.level_features == ()
    for count in (1, 3):
        unknown = np.full((count, 4), np.nan)
        history = predictor.history.chances([0.1] * count, [True] * count, np.ones(count))
        for chance in (*predictor.level(unknown, np.zeros(count), 2), history):
            np.testing.assert_allclose(chance, np.full_like(chance, 0.8), rtol=1e-5)
    with pytest.raises(ValueError, match="between 0 and 1"):
        AcceptancePredictor.uninformed(1.0)


def test_features_that_no_weight_reads_may_be_unknown() -> None:
    weights = random_weights()
    for row, name in enumerate(LEVEL_INPUTS):
        if "entropy" in name or "agreement" in name:
            weights["hidden_weight"][row] = 0
    predictor, confidence = AcceptancePredictor(weights), random_confidence((8,))
    assert predictor.level_features == ("top1_probability", "margin")
    known = predictor.level(confidence, np.zeros(8), 1)
    confidence[:, [1, 3]] = np.nan
    before = confidence.copy()
    np.testing.assert_array_equal(predictor.level(confidence, np.zeros(8), 1), known)
    np.testing.assert_array_equal(confidence, before)
    assert AcceptancePredictor(random_weights()).level_features == LEVEL_FEATURES


def test_a_parsed_predictor_equals_the_one_that_was_written() -> None:
    predictor, confidence = AcceptancePredictor(random_weights(3)), random_confidence((20,))
    again = AcceptancePredictor.parse(json.loads(json.dumps(predictor.document())))
    assert again.document() == predictor.document()
    temperature = np.full(20, 0.6)
    np.testing.assert_array_equal(again.level(confidence, temperature, 2), predictor.level(confidence, temperature, 2))
    np.testing.assert_array_equal(again.history.numbers, predictor.history.numbers)


def at(*keys: str | int, value: Any) -> Callable[[Any], None]:
    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        document[keys[-1]] = value

    return edit


def without(key: str) -> Callable[[Any], None]:
    return lambda document: document.pop(key)


DAMAGE = {
    "no format": (without("format"), "'format' is not"),
    "another format": (at("format", value="specpilot trace"), "'format' is not"),
    "no version": (without("schema_version"), "'schema_version' is None"),
    "another version": (at("schema_version", value=9), "'schema_version' is 9"),
    "version a truth value": (at("schema_version", value=True), "'schema_version' is True"),
    "features in another order": (at("level_features", value=list(LEVEL_FEATURES[::-1])), "'level_features' must be"),
    "unknown input": (at("level_inputs", 0, value="mood"), "'level_inputs' must be"),
    "history inputs missing": (without("history_inputs"), "'history_inputs' must be"),
    "weights missing": (without("hidden_weight"), "lacks 'hidden_weight'"),
    "bias missing": (without("output_bias"), "lacks 'output_bias'"),
    "weights a number": (at("hidden_weight", value=1.0), "'hidden_weight' must be a list of numbers"),
    "weights an object": (at("hidden_weight", value={}), "'hidden_weight' must be a list of numbers"),
    "row missing": (lambda document: document["hidden_weight"].pop(), "'hidden_weight' must have shape"),
    "ragged rows": (at("hidden_weight", 0, value=[1.0]), "rows of one length"),
    "flat weights": (at("output_weight", value=[1.0] * 16), "'output_weight' must have shape"),
    "too deep": (at("hidden_bias", value=[[[1.0]]]), "'hidden_bias' must hold numbers"),
    "hidden sizes differ": (lambda document: document["hidden_bias"].pop(), "must have shape"),
    "no hidden unit": (at("hidden_bias", value=[]), "1 … 1024 numbers, got 0"),
    "too many hidden units": (at("hidden_bias", value=[0.0] * 5000), "1 … 1024 numbers, got 5000"),
    "three outputs": (at("output_bias", value=[0.0] * 3), "'output_bias' must have shape"),
    "history weights short": (at("history_weight", value=[[0.0]]), "'history_weight' must have shape"),
    "history bias a number": (at("history_bias", value=0.5), "'history_bias' must be a list of numbers"),
    "NaN": (at("hidden_weight", 0, 0, value=float("nan")), "within ±1e\\+06, got nan"),
    "infinite": (at("output_bias", 0, value=float("inf")), "within ±1e\\+06, got inf"),
    "beyond float32": (at("history_bias", 0, value=1e39), "within ±1e\\+06"),
    "beyond all bounds": (at("history_bias", 0, value=10**400), "within ±1e\\+06"),
    "a string": (at("hidden_bias", 0, value="1.0"), "got '1.0'"),
    "a truth value": (at("hidden_bias", 0, value=True), "got True"),
    "null": (at("history_bias", 0, value=None), "got None"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_document_is_refused_in_one_line_that_names_the_damage(name: str) -> None:
    edit, message = DAMAGE[name]
    document = json.loads(json.dumps(AcceptancePredictor(random_weights()).document()))
    edit(document)
    with pytest.raises(ValueError, match=message) as caught:
        AcceptancePredictor.parse(document)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("document", [None, [], "x", {}, 3])
def test_what_is_no_document_is_refused(document: Any) -> None:
    with pytest.raises(ValueError, match="'format' is not"):
        AcceptancePredictor.parse(document)
