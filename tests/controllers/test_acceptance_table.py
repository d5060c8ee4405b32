"""The predictor's table says what its network says, for one token as for many."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specpilot.controllers import AcceptancePredictor
from specpilot.controllers.acceptance import LEVEL_INPUTS
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from specpilot.controllers.acceptance_table import DEPTHS, MARGINS, MAX_TEMPERATURES, STEPS, AcceptanceTable
from specpilot.controllers.round_kernel import look_up

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


def test_compiled_lines_look_up_the_same_chances() -> None:
    table, rng = predictor().table, np.random.default_rng(3)
    assert table is not None
    rows = table.rows(np.asarray([0.0, 0.6, 1.0]))[rng.integers(0, 3, 200)]
    margin, agreement = rng.exponential(4, 200), rng.integers(-1, 2, 200).astype(np.float64)
    for depth in range(1, DEPTHS + 4):
        expected = np.stack(table.level(rows, margin, agreement, depth), axis=1)
        assert (look_up(table.chances, rows, margin, agreement, depth) == expected).all()


@pytest.mark.parametrize("margin", [0.0, 15.9, 16.0, 40.0, float("inf")])
def test_every_margin_has_a_place(margin: float) -> None:
    table = predictor().table
    assert table is not None
    told = table.rows(np.zeros(1)), np.asarray([margin]), np.zeros(1), 1
    found = look_up(table.chances, *told)
    assert ((found >= 0) & (found <= 1)).all()
    assert (np.stack(table.level(*told), axis=1) == found).all()


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


def test_it_is_filled_by_products_too_small_for_a_second_thread() -> None:
    own, sizes = predictor(), list[int]()

    def network(*given: Any) -> Any:
        sizes.append(len(given[0]))
        return own._level_of_many(*given)

    AcceptanceTable(network).rows(np.asarray([0.0, 0.6]))
    # OpenBLAS (interface/gemm.c) keeps to one thread up to 4 * 65536 multiplications.
    assert sum(sizes) == 2 * DEPTHS * 3 * MARGINS and max(sizes) * own._into_hidden.size <= 4 * 65536
