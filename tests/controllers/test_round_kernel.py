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
from specpilot.controllers.planned_round import warm_up
from specpilot.controllers.price_rule import RoundSeconds
from specpilot.tests.support.priced import controller, play, random_mlp, random_predictor, random_state
from specpilot.tests.support.rounds import moderate

COMPILED: tuple[Any, ...] = (
    kernel.look_up,
    kernel.look,
    kernel.look_by_table,
    kernel.state_chances,
    compiled_module.plan_lengths,
    compiled_module.write_features,
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
    for looks in (0, 1, 2, 8):
        for price in (0.5, 1, np.float64(2.0)):
            for batch in (2, 3, 8, 30):
                own = quick_controller(Action(int(rng.integers(1, 9)), price, looks))
                drafted += sum(play(own, random_state(batch, rng), rng, 0.7)[1])
                play(controller(random_mlp(), moderate()), random_state(batch, rng), rng, 0.7)
    assert drafted > 40
    assert [list(own.signatures) for own in COMPILED] == before


def test_python_and_compiled_lines_answer_alike() -> None:
    rng, python = np.random.default_rng(1), kernel.look.py_func  # type: ignore[attr-defined]
    stopped = 0
    for _ in range(50):
        batch, longest = int(rng.integers(2, 9)), int(rng.integers(1, 9))
        draft = np.concatenate([[0.0], np.sort(rng.uniform(0.05, 0.2, batch))])
        curve = np.sort(rng.uniform(0, 1, batch * longest + 1))
        seconds = RoundSeconds(1.0, draft, curve, 0.1, 0.05, 0.01, 0.3, 0.02, 0.002, 0.03)
        bound, prior = rng.integers(1, longest + 1, batch), rng.uniform(0.1, 0.95, (batch, 8))
        noisy = rng.random(batch) < 0.5
        rounds = [
            kernel.Drafting(
                prior, prior.copy(), noisy, bound, bound.copy(), bound.copy(), np.ones(1), np.zeros(1, dtype=np.bool_)
            )
            for _ in range(2)
        ]
        for depth in range(1, longest + 1):
            asked = np.flatnonzero(rounds[0].length >= depth)
            told = rng.random((len(asked), 2)).astype(np.float32)
            answers = [
                function(own, asked, told, depth, 0.6, seconds, longest, 1.0)
                for function, own in zip((kernel.look, python), rounds, strict=True)
            ]
            assert np.array_equal(*answers) and (answers[0] >= depth).all()
            for one, other in zip(*rounds, strict=True):
                assert np.allclose(one, other, rtol=1e-12)
            stopped += int((answers[0] == depth).sum())
    assert stopped > 50


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
