"""Calibration: every cost is found from the rounds that differ in it, whatever the machine does meanwhile."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from specpilot.controllers import CostGrid, CostSurface
from specpilot.controllers.round_overhead import NO_OVERHEAD, RoundOverhead, RoundWork
from specpilot.engine import Engine, EngineConfig, Pair
from specpilot.train.calibration import calibrate, levelled, overhead_of
from specpilot.train.clean_rounds import Block, CleanRounds, Plan
from specpilot.train.live_rounds import LiveRound, RoundMeter, bare

OVERHEAD = RoundOverhead(
    constant=4e-4,
    per_request=3e-5,
    per_level=1e-4,
    per_drafted_token=2e-5,
    per_verified_token=4e-5,
    per_asked_level=2e-4,
    per_asked_token=1e-5,
    per_noise_row=5e-5,
    drafting=2e-4,
    planning=1.5e-4,
    per_planned_request=8e-6,
    asking=3e-4,
    per_padded_token=2e-5,
    per_idle_request=3e-5,
    catch_up_factor=0.9,
    prefill_factor=1.2,
)
RAGGED = {"per_padded_token": 2e-5, "per_idle_request": 3e-5}
WHERE = (
    ("drafting", "per_level", "per_drafted_token", "asking", "per_asked_level", "per_asked_token"),
    ("per_verified_token", "per_noise_row"),
    ("constant", "per_request", "planning", "per_planned_request"),
)
"""Which of the costs come up while drafting, while verifying, and on the host."""
NOISE = 0.005
PLANS = (
    *(Plan(length, length, temperature=own) for own in (0.0, 1.0) for length in (0, 2, 4, 8)),
    *(Plan(length, length, looks, planned=True) for length, looks in ((2, 0), (2, 1), (8, 0), (8, 1), (8, 7))),
    Plan(8, 2),
    Plan(8, 4),
)


def synthetic_round(
    plan: Plan, batch: int, slowness: float, rng: np.random.Generator, moving: bool = False
) -> LiveRound:
    """What a round takes under `OVERHEAD` on a machine that is ``slowness`` times as slow as the surface's."""
    drafted = plan.length * batch
    work = RoundWork(
        requests=batch,
        levels=plan.length,
        drafted=drafted,
        verified=plan.verified * batch,
        asked_levels=plan.looks,
        asked=plan.looks * batch,
        noise_rows=(drafted + batch) * (plan.temperature > 0),
        planned=int(plan.planned and not plan.looks),  # Where there are looks the plan holds.
    )
    verify = 3e-3 + 3e-4 * (batch * (1 + plan.verified)) ** 1.1
    passes = (plan.length * (7e-4 + 3e-5 * batch), verify, 2e-3 * moving, 3e-3 * moving)
    factors = (1.0, 1.0, OVERHEAD.catch_up_factor, OVERHEAD.prefill_factor)
    beyond = [float(sum(getattr(OVERHEAD, name) * units(work, name) for name in own)) for own in WHERE]
    phases = [factor * own for factor, own in zip(factors, passes, strict=True)]
    parts = [phases[0] + beyond[0], phases[1] + beyond[1], *phases[2:], beyond[2]]
    noisy = [slowness * own * float(rng.lognormal(0.0, NOISE)) for own in parts]
    own = ("planning", "per_planned_request", "asking", "per_asked_level", "per_asked_token")
    planning = sum(getattr(OVERHEAD, name) * units(work, name) for name in own)
    deciding = slowness * (3e-6 + float(planning)) * float(rng.lognormal(0.0, NOISE))
    return LiveRound(work, passes, tuple(noisy[:4]), sum(noisy), deciding)


def units(work: RoundWork, name: str) -> float:
    """What a coefficient is multiplied with."""
    return float(RoundOverhead(**{name: 1.0}).seconds(work))


def synthetic_block(batch: int, rng: np.random.Generator) -> Block:
    """Rounds with noise of some percent; the spells of a machine that is slow for a while differ between blocks."""
    slow = float(rng.uniform(0.7, 2.0))
    rounds = {plan: [synthetic_round(plan, batch, slow, rng) for _ in range(8)] for plan in PLANS}
    passes = [("draft", 1), *(("verify", 1 + tokens) for tokens in (0, 2, 4, 8))]
    return Block(
        batch, rounds, [synthetic_round(PLANS[0], batch, slow, rng, moving=True)], dict.fromkeys(passes, slow), slow
    )


def test_known_costs_are_recovered_on_a_machine_whose_speed_drifts() -> None:
    rng = np.random.default_rng(0)
    found = overhead_of([synthetic_block(batch, rng) for _ in range(3) for batch in (1, 2, 4, 8, 16, 32)], RAGGED)
    for own in fields(RoundOverhead):
        known = getattr(OVERHEAD, own.name)
        assert getattr(found, own.name) == pytest.approx(known, rel=0.25), own.name
    for name in ("per_asked_level", "per_noise_row", "catch_up_factor", "prefill_factor"):
        assert getattr(found, name) == pytest.approx(getattr(OVERHEAD, name), rel=0.05), name


def test_errors_of_the_surface_at_one_batch_are_not_taken_for_overhead() -> None:
    rng = np.random.default_rng(0)
    right = [synthetic_block(batch, rng) for _ in range(3) for batch in (1, 2, 4, 8, 16, 32)]
    wrong = [_misjudged(block, 1.3) if block.batch == 4 else block for block in right]
    found = overhead_of(wrong, RAGGED)
    for name in ("constant", "per_request", "per_verified_token", "per_asked_level"):
        assert getattr(found, name) == pytest.approx(getattr(OVERHEAD, name), rel=0.4), name


def test_a_reference_that_the_surface_misjudges_does_not_change_what_is_found() -> None:
    rng = np.random.default_rng(0)
    right = [synthetic_block(batch, rng) for _ in range(3) for batch in (1, 8, 32)]
    wrong = [replace(block, machine_slowness=0.6 * block.machine_slowness) for block in right]
    blocks, level = levelled(wrong)
    assert level == pytest.approx(1 / 0.6)
    assert overhead_of(blocks, RAGGED).coefficients() == pytest.approx(overhead_of(right, RAGGED).coefficients())


def _misjudged(block: Block, factor: float) -> Block:
    """The block as a surface would have it that says ``factor`` times too little of verification."""

    def cheaper(own: LiveRound) -> LiveRound:
        draft, verify, *rest = own.passes
        return own._replace(passes=(draft, verify / factor, *rest))

    slowness = {key: own * factor if key[0] == "verify" else own for key, own in block.slowness.items()}
    return replace(
        block,
        rounds={plan: [cheaper(own) for own in rounds] for plan, rounds in block.rounds.items()},
        slowness=slowness,
    )


@pytest.fixture(scope="module")
def surface(tiny_pair: Pair) -> CostSurface:
    grid = CostGrid((1, 4), (1,), (1, 4), (1, 2), (16,), (16,), (16, 128), repeats=1)
    return CostSurface.measure(Engine(tiny_pair, CONFIG), grid)


CONFIG = EngineConfig(max_num_seqs=4, max_num_speculative_tokens=3)
PROMPTS = [[1, 2, 3, 4], [5] * 30]


def test_clean_rounds_do_what_their_plans_say(tiny_pair: Pair, surface: CostSurface) -> None:
    engine = Engine(tiny_pair, CONFIG)
    clean = CleanRounds(RoundMeter(engine, bare(surface)), PROMPTS, 0)
    block = clean.serve(2)
    assert not engine.has_work and block.moving
    assert set(block.rounds) == {*clean.plain, *clean.drafting}
    for plan, rounds in block.rounds.items():
        asked, rows = plan.looks, (plan.length + 1) * (plan.temperature > 0)
        planned = plan.planned and not plan.looks
        expected = (2, plan.length, 2 * plan.length, 2 * plan.verified, asked, 2 * asked, 2 * rows, planned)
        assert len(rounds) >= 2 and {own.work for own in rounds} == {RoundWork(*expected)}
        assert all(own.seconds >= sum(own.phases) > 0 for own in rounds)


def test_calibration_prices_random_rounds_and_keeps_the_engine_empty(tiny_pair: Pair, surface: CostSurface) -> None:
    engine = Engine(tiny_pair, CONFIG)
    found = calibrate(engine, surface, PROMPTS, seed=0, num_rounds=150)
    assert not engine.has_work
    assert found.overhead != NO_OVERHEAD and (found.overhead.coefficients() >= 0).all()
    assert set(found.report) == {"overhead", "held_out", "without_overhead", "speed_ratio"}
    assert found.report["held_out"]["rounds"] > 30


def test_an_engine_that_cannot_draft_is_calibrated(tiny_pair: Pair, surface: CostSurface) -> None:
    engine = Engine(tiny_pair, EngineConfig(max_num_seqs=2, max_num_speculative_tokens=0))
    found = calibrate(engine, surface, PROMPTS, seed=0, num_rounds=40).overhead
    assert found.per_level == found.per_asked_level == found.drafting == 0.0
