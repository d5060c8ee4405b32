"""What rounds cost beyond passes: counting, files, and the fit that finds it."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import KINDS, CostSurface, CostSurfaceError
from specpilot.controllers.pass_costs import PassCosts
from specpilot.controllers.round_overhead import COEFFICIENTS, NO_OVERHEAD, RoundOverhead, RoundWork
from specpilot.train.overhead_fit import MeasuredRounds, fit_overhead, fit_report, fit_units

OVERHEAD = RoundOverhead(
    constant=4e-4,
    per_request=3e-5,
    per_level=2e-4,
    per_drafted_token=2e-5,
    per_verified_token=4e-5,
    per_asked_level=3e-4,
    per_asked_token=1e-5,
    per_noise_row=5e-5,
    drafting=2e-4,
    planning=3e-4,
    per_planned_request=2e-5,
    per_padded_token=1.5e-5,
    asking=2.5e-4,
    per_idle_request=2.5e-5,
    noisy_drafting=3e-4,
    draft_factor=1.2,
    verify_factor=1.1,
    catch_up_factor=0.9,
    prefill_factor=1.05,
)


def make_surface(**options: Any) -> CostSurface:
    axes = ((1, 8, 32), (1, 2, 9), (64, 512))
    grid = np.meshgrid(*axes, indexing="ij")
    seconds = 1e-3 + 1e-4 * grid[0] * grid[1] + 1e-6 * grid[2]
    costs = {kind: PassCosts(axes, (1 + at) * seconds[..., None]) for at, kind in enumerate(KINDS)}
    names = {"hardware": "abacus", "dtype": "float32", "versions": "1"}
    return CostSurface(costs, names, "2026-01-01", **options)


def random_rounds(count: int, noise: float, seed: int = 0, outliers: float = 0.0) -> MeasuredRounds:
    """Rounds whose seconds are those of `OVERHEAD`, times noise; some take ten times as long."""
    rng = np.random.default_rng(seed)
    requests = rng.integers(1, 33, size=count)
    levels = rng.integers(0, 9, size=count)
    drafted = rng.binomial(requests * levels, 0.7) + levels
    asks = rng.random(count) < 0.4
    work = RoundWork(
        requests=requests,
        levels=levels,
        drafted=drafted,
        verified=rng.binomial(drafted, 0.8),
        asked_levels=asks * levels,
        asked=asks * drafted,
        noise_rows=rng.binomial(requests, 0.5) * (levels + 1),
        planned=rng.random(count) < 0.5,
        padded=rng.binomial(requests * levels, 0.3),
        idle=rng.binomial(requests * levels, 0.2),
    )
    passes = np.column_stack(
        [
            levels * 1e-3 * rng.uniform(0.8, 1.2, size=count),
            3e-3 + 2e-4 * (requests + drafted) * rng.uniform(0.8, 1.2, size=count),
            np.where(rng.random(count) < 0.2, rng.uniform(1e-3, 1e-2, size=count), 0.0),
            np.where(rng.random(count) < 0.2, rng.uniform(5e-3, 5e-2, size=count), 0.0),
        ]
    )
    seconds = OVERHEAD.total_seconds(work, *passes.T) * rng.lognormal(0.0, noise, size=count)
    seconds[rng.random(count) < outliers] *= 10
    return MeasuredRounds(work, passes, seconds)


def test_each_coefficient_counts_its_own_unit() -> None:
    work = RoundWork(3, 2, drafted=5, verified=4, asked_levels=1, asked=3, noise_rows=6, planned=1, padded=7, idle=8)
    counts = {
        "constant": 1,
        "per_request": 3,
        "per_level": 2,
        "per_drafted_token": 5,
        "per_verified_token": 4,
        "per_asked_level": 1,
        "per_asked_token": 3,
        "per_noise_row": 6,
        "drafting": 1,
        "planning": 1,
        "per_planned_request": 3,
        "per_padded_token": 7,
        "asking": 1,
        "per_idle_request": 8,
        "noisy_drafting": 1,
    }
    assert tuple(counts) == COEFFICIENTS
    for name, count in counts.items():
        assert float(RoundOverhead(**{name: 2.0}).seconds(work)) == 2.0 * count
    for name, no_or_three in (
        ("drafting", {"levels": [0, 3]}),
        ("asking", {"levels": 3, "asked_levels": [0, 3]}),
        ("noisy_drafting", {"levels": 3, "noise_rows": [0, 2]}),
        ("noisy_drafting", {"levels": [0, 3], "noise_rows": 2}),
    ):
        work = RoundWork(**{"requests": 1, "levels": 0, "drafted": 0, "verified": 0, **no_or_three})
        np.testing.assert_array_equal(RoundOverhead(**{name: 1.0}).seconds(work), [0, 1])
    np.testing.assert_array_equal(OVERHEAD.coefficients(), [getattr(OVERHEAD, name) for name in COEFFICIENTS])


def test_rounds_are_summed_alike_one_by_one_and_together() -> None:
    rounds = random_rounds(50, 0.0)
    together = rounds.predicted(OVERHEAD)
    assert together.shape == (50,)
    for index in range(50):
        one = rounds.select(slice(index, index + 1))
        assert one.predicted(OVERHEAD)[0] == pytest.approx(together[index])


@pytest.mark.parametrize("value", [-1e-9, float("nan"), float("inf"), "0", None, True])
def test_coefficients_must_be_finite_and_not_negative(value: Any) -> None:
    for own in fields(RoundOverhead):
        with pytest.raises(CostSurfaceError, match=rf"'overhead\.{own.name}'"):
            RoundOverhead(**{own.name: value})
    with pytest.raises(CostSurfaceError, match="verify_factor"):
        RoundOverhead(verify_factor=0.0)


def test_a_surface_keeps_its_overhead_in_its_file_and_not_in_its_fingerprint(tmp_path: Path) -> None:
    bare, surface = make_surface(), make_surface(overhead=OVERHEAD)
    surface.save(tmp_path / "costs.json")
    loaded = CostSurface.load(tmp_path / "costs.json")
    assert loaded == surface and loaded.overhead == OVERHEAD and loaded != bare
    assert surface.fingerprint == bare.fingerprint


def test_a_file_from_before_there_was_an_overhead_loads_without(tmp_path: Path) -> None:
    make_surface().save(tmp_path / "costs.json")
    assert "overhead" not in json.loads((tmp_path / "costs.json").read_text())
    loaded = CostSurface.load(tmp_path / "costs.json")
    assert loaded == make_surface() and loaded.overhead == NO_OVERHEAD


@pytest.mark.parametrize(
    "damaged",
    [None, [], {}, {**OVERHEAD.document(), "extra": 1.0}, {**OVERHEAD.document(), "constant": -1.0}],
)
def test_a_file_with_a_wrong_overhead_is_refused(tmp_path: Path, damaged: Any) -> None:
    path = tmp_path / "costs.json"
    make_surface(overhead=OVERHEAD).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "overhead": damaged}))
    with pytest.raises(CostSurfaceError, match=r"costs\.json: 'overhead"):
        CostSurface.load(path)


def test_an_older_file_says_nothing_of_what_was_added_since() -> None:
    later = ("planning", "per_planned_request", "per_padded_token", "asking", "per_idle_request")
    document = {name: value for name, value in OVERHEAD.document().items() if name not in later}
    assert RoundOverhead.parse(document) == replace(OVERHEAD, **dict.fromkeys(later, 0.0))


def test_a_round_is_priced_with_factors_and_overhead() -> None:
    bare, surface = make_surface(), make_surface(overhead=OVERHEAD)
    lengths, contexts, lags, verified = [0, 3, 2], [100, 80, 90], [50, 1, 7], [0, 2, 2]
    plain, priced = (own.round_cost(lengths, contexts, lags, verified) for own in (bare, surface))
    for kind in ("draft", "verify", "catch_up"):
        assert getattr(priced, kind) == pytest.approx(getattr(plain, kind) * OVERHEAD.factor(kind))
    assert plain.verify == pytest.approx(bare.seconds("verify", 3, 4 / 3 + 1, 99))
    work = RoundWork(
        requests=3, levels=3, drafted=5, verified=4, asked_levels=2, asked=4, noise_rows=4 + 3, padded=2 + 3, idle=1 + 1
    )
    seconds = surface.round_seconds(
        lengths, contexts, lags, verified=verified, temperatures=[0.0, 1.0, 0.6], asked_levels=2
    )
    assert seconds == pytest.approx(sum(priced) + float(OVERHEAD.seconds(work)))


def test_the_fit_recovers_known_coefficients() -> None:
    found = fit_overhead(random_rounds(3000, 1e-4))
    for own in fields(RoundOverhead):
        assert getattr(found, own.name) == pytest.approx(getattr(OVERHEAD, own.name), rel=0.03), own.name


def test_the_fit_is_not_led_astray_by_outliers_and_noise() -> None:
    rounds = random_rounds(3000, 0.05, outliers=0.05)
    truth = random_rounds(1000, 0.0, seed=1)
    report = fit_report(truth, fit_overhead(rounds))
    assert report["median_absolute_relative_error"] < 0.01
    assert report["windows_of_50_rounds"]["largest_absolute_relative_error"] < 0.01
    assert fit_report(truth, NO_OVERHEAD)["median_absolute_relative_error"] > 0.05


def test_a_kind_of_pass_that_never_ran_keeps_its_factor() -> None:
    rounds = random_rounds(500, 0.01)
    passes = rounds.passes.copy()
    passes[:, KINDS.index("catch_up")] = 0.0
    seconds = OVERHEAD.total_seconds(rounds.work, *passes.T)
    found = fit_overhead(replace(rounds, passes=passes, seconds=seconds))
    assert found.catch_up_factor == pytest.approx(1.0)


def test_values_that_are_known_are_kept_and_the_others_still_found() -> None:
    rounds = random_rounds(3000, 1e-4)
    known = {"per_asked_level": 3e-4, "per_noise_row": 5e-5, "prefill_factor": 1.05}
    found = fit_overhead(rounds, known)
    for own in fields(RoundOverhead):
        assert getattr(found, own.name) == pytest.approx(getattr(OVERHEAD, own.name), rel=0.03), own.name
    assert fit_overhead(rounds, {"per_asked_level": 7e-4}).per_asked_level == 7e-4


def test_units_are_found_from_differences_and_are_never_negative() -> None:
    rounds = random_rounds(30, 0.0)
    work = rounds.work
    extra = 3e-4 * np.asarray(work.asked_levels) + 1e-5 * np.asarray(work.asked)
    names = ("per_asked_level", "per_asked_token")
    assert fit_units(rounds, extra, names) == pytest.approx({"per_asked_level": 3e-4, "per_asked_token": 1e-5})
    assert fit_units(rounds, -extra, names) == {"per_asked_level": 0.0, "per_asked_token": 0.0}
