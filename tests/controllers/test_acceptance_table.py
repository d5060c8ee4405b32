"""The predictor's table says what its network says, for one token as for many."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers import AcceptancePredictor
from specpilot.controllers.acceptance import LEVEL_INPUTS
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from specpilot.controllers.acceptance_table import DEPTHS, MARGINS, MAX_TEMPERATURES, STEPS, AcceptanceTable

READ = ("margin", "agreement", "temperature", "depth", "log_margin", "log_agreement", "log_temperature", "log_depth")


def predictor(read: tuple[str, ...] = READ) -> AcceptancePredictor:
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(len(LEVEL_INPUTS), 8)) * 0.3
    weight[[row for row, name in enumerate(LEVEL_INPUTS) if name not in read]] = 0
    return AcceptancePredictor(
        {
            "hidden_weight": weight,
            "hidden_bias": rng.normal(size=8),
            "output_weight": rng.normal(size=(8, 2)),
            "output_bias": rng.normal(size=2),
            "history_weight": np.zeros((HISTORY_DEPTHS, len(HISTORY_INPUTS))),
            "history_bias": np.zeros(HISTORY_DEPTHS),
            "carry": [0.6],
        }
    )


def told(margin: np.ndarray, agreement: np.ndarray) -> np.ndarray:
    unread = np.full(len(margin), np.nan)
    return np.stack([unread, unread, margin, agreement], axis=1)


def test_only_a_predictor_of_margin_and_agreement_has_a_table() -> None:
    assert predictor().table is not None
    assert predictor((*READ, "entropy")).table is None
    assert predictor(("temperature", "depth")).table is None


def test_at_its_steps_the_table_is_the_network() -> None:
    model, rng = predictor(), np.random.default_rng(1)
    margin = (rng.integers(0, MARGINS, 200) / STEPS) ** 2
    agreement, depth = rng.integers(-1, 2, 200).astype(float), rng.integers(1, DEPTHS + 1, 200)
    temperature = rng.choice([0.0, 0.6, 1.0], 200)
    known = np.zeros((200, 4), dtype=np.float32)
    known[:, 2], known[:, 3] = margin, agreement
    network = model._level_of_many(known, temperature, depth)
    for found, expected in zip(model.level(told(margin, agreement), temperature, depth), network, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_between_its_steps_the_table_is_near_the_network() -> None:
    model, rng = predictor(), np.random.default_rng(2)
    margin, agreement = rng.exponential(3, 500), rng.integers(-1, 2, 500).astype(float)
    known = np.zeros((500, 4), dtype=np.float32)
    known[:, 2], known[:, 3] = margin, agreement
    network = model._level_of_many(known, np.full(500, 0.6), np.full(500, 3))
    for found, expected in zip(model.level(told(margin, agreement), 0.6, 3), network, strict=True):
        np.testing.assert_allclose(found, expected, atol=0.02)


def test_one_token_is_looked_up_as_many_are() -> None:
    table, rng = predictor().table, np.random.default_rng(3)
    assert table is not None
    temperature = np.asarray([0.0, 0.6, 1.0])
    rows = table.rows(temperature)
    for _ in range(200):
        row, depth = int(rng.integers(3)), int(rng.integers(1, DEPTHS + 4))
        margin, agreement = float(rng.exponential(4)), float(rng.integers(-1, 2))
        many = table.level(rows[[row]], np.asarray([margin]), np.asarray([agreement]), depth)
        assert table.level_of_one(int(rows[row]), margin, agreement, depth) == (many[0].item(), many[1].item())


@pytest.mark.parametrize("margin", [0.0, 15.9, 16.0, 40.0, float("inf")])
def test_every_margin_has_a_place(margin: float) -> None:
    table = predictor().table
    assert table is not None
    one = table.level_of_one(int(table.rows(np.zeros(1))[0]), margin, 0.0, 1)
    assert all(0 <= chance <= 1 for chance in one)
    assert table.level(np.zeros(1, dtype=np.int64), np.asarray([margin]), np.zeros(1), 1)[0].item() == one[0]


def test_what_is_unknown_stays_unknown() -> None:
    chances = predictor().level(told(np.asarray([1.0, np.nan, 2.0]), np.asarray([0.0, 0.0, np.nan])), 0.6, 2)
    for chance in chances:
        assert np.isnan(chance).tolist() == [False, True, True]


def test_many_temperatures_take_turns_in_a_bounded_table() -> None:
    network = predictor()._level_of_many
    table, fresh = AcceptanceTable(network), AcceptanceTable(network)
    for start in range(0, 3 * MAX_TEMPERATURES, 10):
        temperature = np.arange(start, start + 10) / 100
        found = table.level(table.rows(temperature), np.full(10, 1.5), np.zeros(10), 2)
        assert len(table.chances) <= MAX_TEMPERATURES
    expected = fresh.level(fresh.rows(temperature), np.full(10, 1.5), np.zeros(10), 2)
    np.testing.assert_array_equal(found, expected)
    crowd = np.arange(2 * MAX_TEMPERATURES) / 100
    assert len(set(table.rows(crowd).tolist())) == len(crowd)
