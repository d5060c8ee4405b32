"""The cost surface: monotone, exact on its grid, documented beyond it, and strict about its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import KINDS, CostGrid, CostSurface, CostSurfaceError, PassLimits, PassTimer

Cost = Callable[[str, int, int, int], float]
GRID = CostGrid(
    batches=(1, 2, 4, 8),
    chunk_batches=(1, 4),
    verify_tokens=(1, 3, 9),
    catch_up_tokens=(16, 64),
    prefill_tokens=(16, 64),
    contexts=(64, 256, 512),
    repeats=3,
)
ROOMY = PassLimits(64, 4096)


def product_cost(kind: str, batch: int, tokens: int, context: int) -> float:
    """Multilinear and increasing, so that interpolation and continuation have a truth to meet."""
    return (1 + KINDS.index(kind)) * (1e-3 + 1e-4 * batch * tokens + 1e-7 * batch * context + 1e-9 * tokens * context)


def noisy_cost(seed: int) -> Cost:
    rng = np.random.default_rng(seed)
    return lambda kind, batch, tokens, context: product_cost(kind, batch, tokens, context) * rng.lognormal(0.0, 1.0)


class RecordingTimer:
    """A `PassTimer` with made-up seconds that remembers what it was asked."""

    def __init__(
        self, cost: Cost = product_cost, kinds: tuple[str, ...] = KINDS, limits: PassLimits = ROOMY, **fields: str
    ) -> None:
        self.cost = cost
        self.kinds = kinds
        self.limits = limits
        self.fields = {"hardware": "abacus", "dtype": "float32", "versions": "abacus 1", **fields}
        self.calls: list[tuple[str, int, int, int]] = []

    def time_pass(self, kind: str, batch: int, tokens: int, context: int) -> float:
        self.calls.append((kind, batch, tokens, context))
        return self.cost(kind, batch, tokens, context)

    def fingerprint_fields(self) -> dict[str, str]:
        return dict(self.fields)


def measured(cost: Cost = product_cost, grid: CostGrid = GRID, **options: Any) -> CostSurface:
    timer: PassTimer = RecordingTimer(cost, **options)
    return CostSurface.measure(timer, grid)


def random_points(rng: np.random.Generator, count: int) -> np.ndarray:
    """``[3, count]``: batch, tokens, context, below, within and beyond the grid."""
    return rng.uniform(-0.2, 3.0, (3, count)) * np.asarray([[8], [9], [512]])


# ---------------------------------------------------------------------- fit and interpolation


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("axis", range(3))
def test_more_of_anything_never_costs_less_even_where_measurements_are_noisy(seed: int, axis: int) -> None:
    surface, rng = measured(noisy_cost(seed)), np.random.default_rng(seed)
    low = random_points(rng, 3000)
    high = low.copy()
    high[axis] += rng.uniform(0, 10, 3000) * rng.choice([0.01, 1, 50], 3000)
    for kind in KINDS:
        assert (surface.seconds(kind, *high) >= surface.seconds(kind, *low) * (1 - 1e-12)).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_fit_is_monotone_and_stays_between_the_extreme_medians(seed: int) -> None:
    for costs in measured(noisy_cost(seed)).costs.values():
        for axis in range(3):
            assert (np.diff(costs.fitted, axis=axis) >= 0).all()
        assert costs.median.min() <= costs.fitted.min() and costs.fitted.max() <= costs.median.max()


def test_monotone_medians_are_left_as_they_are() -> None:
    for costs in measured().costs.values():
        np.testing.assert_array_equal(costs.fitted, costs.median)


def test_median_and_spread_are_those_of_the_samples() -> None:
    costs = measured(noisy_cost(0)).costs["verify"]
    assert costs.samples.shape == (4, 3, 3, 3)
    np.testing.assert_array_equal(costs.median, np.sort(costs.samples, axis=-1)[..., 1])
    np.testing.assert_allclose(
        costs.spread, np.quantile(costs.samples, 0.75, axis=-1) - np.quantile(costs.samples, 0.25, axis=-1)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_interpolation_is_exact_at_every_grid_point(kind: str) -> None:
    surface = measured(noisy_cost(1))
    costs = surface.costs[kind]
    grid = np.meshgrid(*costs.axes, indexing="ij")
    np.testing.assert_array_equal(surface.seconds(kind, *grid), costs.fitted)


@pytest.mark.parametrize("axis", range(3))
def test_interpolation_is_linear_between_grid_points(axis: int) -> None:
    surface = measured(noisy_cost(2))
    for low, high in pairwise(surface.costs["verify"].axes[axis]):
        points = np.repeat([[4.0], [3.0], [256.0]], 3, axis=1)
        points[axis] = [low, (low + high) / 2, high]
        start, middle, end = surface.seconds("verify", *points)
        assert middle == pytest.approx((start + end) / 2)


def test_beyond_the_grid_it_goes_on_with_the_last_slope() -> None:
    surface = measured()
    for batch, tokens, context in ((32, 9, 512), (8, 30, 512), (8, 9, 4096), (32, 30, 4096), (3, 30, 100)):
        assert surface.seconds("verify", batch, tokens, context) == pytest.approx(
            product_cost("verify", batch, tokens, context)
        )


def test_the_continuation_starts_where_the_grid_ends() -> None:
    surface = measured(noisy_cost(3))
    inside = surface.seconds("verify", 8, 9, 512)
    assert surface.seconds("verify", 8 + 1e-9, 9 + 1e-9, 512 + 1e-9) == pytest.approx(inside, rel=1e-6)


def test_below_the_grid_it_costs_what_the_first_point_costs_and_nothing_costs_nothing() -> None:
    surface = measured()
    assert surface.seconds("prefill", 1, 2, 0) == surface.seconds("prefill", 1, 16, 64)
    assert surface.seconds("prefill", 1, 0, 100) == 0
    assert surface.seconds("verify", 0, 1, 100) == 0


def test_an_axis_of_one_point_costs_the_same_everywhere_on_it() -> None:
    surface = measured(limits=PassLimits(1, 4096))
    assert surface.costs["verify"].axes[0] == (1,)
    assert surface.seconds("verify", 50, 3, 100) == surface.seconds("verify", 1, 3, 100)


def test_scalars_give_a_float_and_arrays_broadcast() -> None:
    surface = measured()
    assert type(surface.seconds("verify", 2, 3, 100)) is float
    many = surface.seconds("verify", np.asarray([[1], [2]]), np.asarray([1, 2, 3]), 100)
    assert many.shape == (2, 3)
    assert many[1, 2] == surface.seconds("verify", 2, 3, 100)


def test_a_kind_that_was_not_measured_is_named() -> None:
    with pytest.raises(CostSurfaceError, match="no 'draft' passes"):
        measured(kinds=("verify", "prefill")).seconds("draft", 1, 1, 1)


# ---------------------------------------------------------------------- rounds


def test_a_ragged_round_is_the_sum_of_its_passes() -> None:
    surface = measured()
    cost = surface.round_cost(lengths=[0, 2, 1, 3], contexts=[400, 101, 201, 301], lags=[30, 1, 0, 20])
    assert cost.verify == pytest.approx(surface.seconds("verify", 4, 10 / 4, 399))
    levels = [(3, 1 + 1 / 3, 300), (2, 1, 301), (1, 1, 302)]
    assert cost.draft == pytest.approx(sum(surface.seconds("draft", *level) for level in levels))
    assert cost.catch_up == pytest.approx(surface.seconds("catch_up", 1, 20, 280))
    assert surface.round_seconds([0, 2, 1, 3], [400, 101, 201, 301], [30, 1, 0, 20]) == pytest.approx(sum(cost))


def test_where_the_whole_batch_drafts_a_level_costs_the_same_however_few_go_on() -> None:
    surface = replace(measured(), drafts_whole_batch=True)
    cost = surface.round_cost(lengths=[0, 2, 1, 3], contexts=[400, 101, 201, 301], lags=[30, 1, 0, 20])
    levels = [(4, 1 + 1 / 3, 300), (4, 1, 301), (4, 1, 302)]
    assert cost.draft == pytest.approx(sum(surface.seconds("draft", *level) for level in levels))
    assert cost.draft > measured().round_cost([0, 2, 1, 3], [400, 101, 201, 301], [30, 1, 0, 20]).draft
    assert surface.round_cost([0, 0], [100, 90], [50, 0]).draft == 0


def test_a_round_without_drafts_costs_its_verification_alone() -> None:
    surface = measured()
    assert surface.round_cost([0, 0], [100, 90], [50, 0]) == (0, surface.seconds("verify", 2, 1, 99), 0)
    assert surface.round_seconds([], [], []) == 0


def test_drafts_are_free_where_the_drafter_is_no_model() -> None:
    surface = measured(kinds=("verify", "prefill"))
    assert surface.round_seconds([4], [100], [0]) == surface.seconds("verify", 1, 5, 99)


# ---------------------------------------------------------------------- measuring


def test_measuring_interleaves_cells_in_a_new_order_every_repeat() -> None:
    timer = RecordingTimer()
    CostSurface.measure(timer, GRID)
    num_cells = len(set(timer.calls))
    rounds = [timer.calls[start : start + num_cells] for start in range(0, len(timer.calls), num_cells)]
    assert len(rounds) == GRID.repeats + 1  # The first one warms up.
    assert all(len(set(one)) == num_cells for one in rounds)
    assert len({tuple(one) for one in rounds}) == len(rounds)
    assert all(one != sorted(one) for one in rounds)


def test_the_warm_up_is_not_among_the_samples() -> None:
    warm: set[tuple[str, int, int, int]] = set()

    def slow_at_first(kind: str, batch: int, tokens: int, context: int) -> float:
        key = (kind, batch, tokens, context)
        first = key not in warm
        warm.add(key)
        return 1e6 if first else product_cost(*key)

    assert all(costs.samples.max() < 1 for costs in measured(slow_at_first).costs.values())


def test_an_engine_is_measured_through_its_profiler() -> None:
    class Engine:
        def profiler(self) -> RecordingTimer:
            return RecordingTimer()

    np.testing.assert_array_equal(
        CostSurface.measure(Engine(), GRID).costs["verify"].samples, measured().costs["verify"].samples
    )


def test_the_grid_is_cut_to_what_the_engine_can_do_and_reaches_its_limits() -> None:
    timer = RecordingTimer(limits=PassLimits(6, 300))
    surface = CostSurface.measure(timer, CostGrid(repeats=1))
    assert surface.costs["verify"].axes == ((1, 2, 4, 6), (1, 2, 3, 5, 9), (64, 256, 291))
    assert surface.costs["prefill"].axes == ((1, 4), (16, 64, 150), (64, 150))
    assert all(batch <= 6 and tokens + context <= 300 for _, batch, tokens, context in timer.calls)


def test_progress_goes_to_stderr_and_only_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    CostSurface.measure(RecordingTimer(), GRID)
    assert capsys.readouterr() == ("", "")
    CostSurface.measure(RecordingTimer(), GRID, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == GRID.repeats + 1


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_broken_clock_is_refused(seconds: float) -> None:
    with pytest.raises(CostSurfaceError, match="no finite time"):
        measured(lambda *_: seconds)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": ()}, "batches must be one or more integers"),
        ({"chunk_batches": (2, 1)}, "chunk_batches must be positive, strictly increasing"),
        ({"contexts": (64, 64)}, "contexts must be positive, strictly increasing"),
        ({"verify_tokens": (0, 1)}, "verify_tokens must be positive"),
        ({"draft_tokens": (1.5,)}, "draft_tokens must be one or more integers"),
        ({"repeats": 0}, "repeats must be at least 1, got 0"),
    ],
)
def test_a_malformed_grid_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CostGrid(**changes)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("whole_batch", [False, True])
def test_a_loaded_surface_equals_the_saved_one_exactly(tmp_path: Path, whole_batch: bool) -> None:
    surface = replace(measured(noisy_cost(4)), drafts_whole_batch=whole_batch)
    surface.save(tmp_path / "new" / "costs.json")
    loaded = CostSurface.load(tmp_path / "new" / "costs.json")
    assert loaded.drafts_whole_batch is whole_batch
    assert loaded == surface and loaded.fingerprint == surface.fingerprint
    for kind in KINDS:
        assert loaded.costs[kind].axes == surface.costs[kind].axes
        np.testing.assert_array_equal(loaded.costs[kind].samples, surface.costs[kind].samples)
        points = random_points(np.random.default_rng(0), 100)
        np.testing.assert_array_equal(loaded.seconds(kind, *points), surface.seconds(kind, *points))
    assert loaded != measured(noisy_cost(5))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["costs.json"]


def test_a_surface_without_drafter_costs_can_be_saved(tmp_path: Path) -> None:
    surface = measured(kinds=("verify", "prefill"))
    surface.save(tmp_path / "costs.json")
    assert CostSurface.load(tmp_path / "costs.json") == surface


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, surface = tmp_path / "costs.json", measured()
    surface.save(path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        measured(noisy_cost(0)).save(path)
    assert CostSurface.load(path) == surface
    assert list(tmp_path.iterdir()) == [path]


def test_the_fingerprint_follows_the_machine_and_nothing_else() -> None:
    assert measured().fingerprint == measured(noisy_cost(0)).fingerprint
    assert measured().fingerprint != measured(drafter="another").fingerprint
    assert len(measured().fingerprint) == 16 and int(measured().fingerprint, 16) >= 0


def test_fields_that_every_surface_needs_are_demanded() -> None:
    timer = RecordingTimer()
    del timer.fields["dtype"]
    with pytest.raises(CostSurfaceError, match="'fields' lacks 'dtype'"):
        CostSurface.measure(timer, GRID)


def at(*keys: str | int, value: Any) -> Callable[[dict[str, Any]], None]:
    """An edit of the document; ``value`` None removes the entry."""

    def edit(document: Any) -> None:
        for key in keys[:-1]:
            document = document[key]
        if value is None:
            del document[keys[-1]]
        else:
            document[keys[-1]] = value

    return edit


VERIFY = ("kinds", "verify")
MALFORMED = {
    "format missing": (at("format", value=None), "'format'"),
    "version of another release": (at("schema_version", value=2), "'schema_version' is 2, this is 1"),
    "no date": (at("date", value=None), "'date'"),
    "not a date": (at("date", value="yesterday"), "'date' must be an ISO 8601 date, got 'yesterday'"),
    "fields missing": (at("fields", value=None), "'fields'"),
    "field not a string": (at("fields", "dtype", value=32), "'fields' must map names to strings"),
    "hardware missing": (at("fields", "hardware", value=None), "'fields' lacks 'hardware'"),
    "other machine's fingerprint": (at("fingerprint", value="0" * 16), "'fingerprint' must be"),
    "edited field": (at("fields", "hardware", value="a faster one"), "'fingerprint' must be"),
    "whole batch not a truth value": (at("drafts_whole_batch", value=1), "'drafts_whole_batch' must be true or false"),
    "kinds missing": (at("kinds", value=None), "'kinds'"),
    "unknown kind": (at("kinds", "embed", value={}), "'kinds' must be"),
    "verify missing": (at(*VERIFY, value=None), "'kinds' must be"),
    "draft without catch-up": (at("kinds", "catch_up", value=None), "'kinds' must be"),
    "kind not an object": (at(*VERIFY, value=[1]), "'kinds.verify' must be an object"),
    "axis missing": (at(*VERIFY, "tokens", value=None), "'kinds.verify.tokens' must be one or more integers"),
    "axis empty": (at(*VERIFY, "tokens", value=[]), "'kinds.verify.tokens' must be one or more integers"),
    "axis of floats": (at(*VERIFY, "batches", value=[1.0, 2, 4, 8]), "'kinds.verify.batches' must be one or more"),
    "axis falls": (at(*VERIFY, "contexts", value=[64, 512, 256]), "'kinds.verify.contexts' must be positive"),
    "axis from zero": (at(*VERIFY, "batches", value=[0, 2, 4, 8]), "'kinds.verify.batches' must be positive"),
    "axis beyond all bounds": (at(*VERIFY, "batches", value=[1, 2, 4, 10**400]), "below 2\\*\\*31"),
    "axis shorter than samples": (at(*VERIFY, "batches", value=[1, 2]), "'kinds.verify.samples' must have shape"),
    "samples missing": (at(*VERIFY, "samples", value=None), "'kinds.verify.samples' must have shape"),
    "samples flat": (at(*VERIFY, "samples", value=[1.0] * 4), "'kinds.verify.samples' must have shape"),
    "samples ragged": (at(*VERIFY, "samples", 0, 0, 0, value=[1.0]), "'kinds.verify.samples' must have shape"),
    "no repeats": (at(*VERIFY, "samples", 0, 0, 0, value=[]), "'kinds.verify.samples' must have shape"),
    "sample negative": (at(*VERIFY, "samples", 0, 0, 0, 0, value=-1.0), "must be finite positive seconds"),
    "sample zero": (at(*VERIFY, "samples", 0, 0, 0, 0, value=0), "must be finite positive seconds"),
    "sample NaN": (at(*VERIFY, "samples", 0, 0, 0, 0, value=float("nan")), "must be finite positive seconds"),
    "sample infinite": (at(*VERIFY, "samples", 0, 0, 0, 0, value=float("inf")), "must be finite positive seconds"),
    "sample beyond all bounds": (at(*VERIFY, "samples", 0, 0, 0, 0, value=10**400), "must be finite positive seconds"),
    "sample a string": (at(*VERIFY, "samples", 0, 0, 0, 0, value="1.0"), "must be finite positive seconds"),
    "sample a truth value": (at(*VERIFY, "samples", 0, 0, 0, 0, value=True), "must be finite positive seconds"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_refused_in_one_line_with_its_name_and_the_fix(name: str, tmp_path: Path) -> None:
    edit, message = MALFORMED[name]
    path = tmp_path / "costs.json"
    measured().save(path)
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    with pytest.raises(CostSurfaceError, match=message) as caught:
        CostSurface.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "measure" in text and "\n" not in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b'{"format": ', "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "'format'"),
    ],
)
def test_a_foreign_file_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    path.write_bytes(content)
    with pytest.raises(CostSurfaceError, match=message):
        CostSurface.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CostSurfaceError, match=r"costs\.json: cannot be read"):
        CostSurface.load(tmp_path / "costs.json")


def test_controllers_import_no_torch() -> None:
    code = "import sys, specpilot.controllers; assert not {'torch', 'transformers', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
