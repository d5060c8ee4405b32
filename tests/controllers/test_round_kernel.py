"""The compiled rounds: ready before the first round, and the same numbers without a compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import Action, FixedPolicy, PricedController
from specpilot.controllers import compiled as compiled_module
from specpilot.controllers import round_kernel as kernel
from specpilot.controllers.acceptance_table import AcceptanceTable
from specpilot.controllers.batch_round import warm_up
from specpilot.tests.support.priced import controller, play, random_predictor, random_state
from specpilot.tests.support.rounds import moderate

COMPILED: tuple[Any, ...] = (
    kernel.starting_lengths,
    kernel.look_up,
    kernel.go_on,
    kernel.verified_lengths,
    compiled_module.plan_lengths,
    compiled_module.request_weights,
)


def quick_controller(action: Action) -> PricedController:
    """One whose predictor is a table."""
    weights: dict[str, Any] = random_predictor(3).weights
    hidden = np.zeros_like(weights["hidden_weight"])
    hidden[[2, 3, 8, 9]] = weights["hidden_weight"][[2, 3, 8, 9]]
    predictor = type(random_predictor())(weights | {"hidden_weight": hidden})
    assert predictor.table is not None
    return controller(FixedPolicy(action), moderate(), predictor=predictor)


def test_nothing_is_compiled_while_requests_wait() -> None:
    warm_up()
    before = [list(own.signatures) for own in COMPILED]
    rng, drafted = np.random.default_rng(0), 0
    for asks in (True, False):
        for price in (0.5, 1, np.float64(2.0)):
            for batch in (2, 3, 8, 30):
                own = quick_controller(Action(int(rng.integers(1, 9)), price, asks))
                drafted += sum(play(own, random_state(batch, rng), rng, 0.7)[1])
    assert drafted > 40
    assert [list(own.signatures) for own in COMPILED] == before


def test_python_and_compiled_lines_answer_alike() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        batch, longest = int(rng.integers(2, 9)), int(rng.integers(1, 9))
        draft = np.sort(rng.uniform(0, 1, batch + 1))
        curve = np.sort(rng.uniform(0, 1, batch * longest + 1))
        chance, weight, behind = rng.random(batch), rng.uniform(0.5, 2, batch), rng.uniform(0, 0.1, batch)
        allowed = rng.integers(0, longest + 1, batch)
        start: Any = kernel.starting_lengths
        arguments = (chance, weight, behind, allowed, draft, curve, 0.1, 0.1, longest, 0.8)
        lengths = start(*arguments)
        assert np.array_equal(lengths, start.py_func(*arguments))
        told = rng.random((batch, 2)).astype(np.float32)
        go: Any = kernel.go_on
        both = [(np.ones(batch), np.zeros((batch, longest))) for _ in range(2)]
        for depth in range(1, int(lengths.max()) + 1):
            asked = np.flatnonzero(lengths >= depth)
            answers = [
                function(asked, depth, told, *arrays, weight, lengths, draft, curve, 0.05, 0.4)
                for function, arrays in zip((go, go.py_func), both, strict=True)
            ]
            assert np.array_equal(*answers)
        verified: Any = kernel.verified_lengths
        found = [
            function(arrays[1], lengths, curve, 0.4)
            for function, arrays in zip((verified, verified.py_func), both, strict=True)
        ]
        assert np.array_equal(*found)


@pytest.mark.parametrize("unknown", ["margin", "agreement"])
def test_looking_up_is_what_the_table_says(unknown: str) -> None:
    rng, table = np.random.default_rng(2), quick_controller(Action(4, 1.0)).predictor.table
    assert isinstance(table, AcceptanceTable)
    rows = table.rows(rng.choice([0.0, 0.6, 1.0], 40))
    told = {"margin": rng.gamma(1.0, 3.0, 40), "agreement": rng.integers(-1, 2, 40).astype(np.float64)}
    told[unknown][::7] = np.nan
    for depth in (1, 5, 40):
        found = kernel.look_up(table.chances, rows, told["margin"], told["agreement"], depth)
        expected = np.stack(table.level(rows, told["margin"], told["agreement"], depth), axis=1)
        assert np.array_equal(found, expected, equal_nan=True)


def test_the_machine_code_is_kept_where_that_is_possible(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert (
        compiled_module.writable([tmp_path / "file" / "inside", tmp_path / "made" / "anew"]) == tmp_path / "made/anew"
    )
    assert compiled_module.writable([tmp_path / "file" / "inside"]) is None
