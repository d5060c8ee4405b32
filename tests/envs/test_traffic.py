"""Traffic: arrival rates, files of real arrivals, and which recorded request each arrival is."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import ConstantController
from specpilot.envs.replay import ReplayConfig, ReplayEngine
from specpilot.envs.traffic import ArrivalFile, Traffic, TrafficError, make_schedule, plain_capacity, stack
from specpilot.tests.support.traces import MAX_BATCH, MAX_CONTEXT, random_trace, rich_costs

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def write(path: Path, gaps: list[float], tokens: list[int]) -> Path:
    start = datetime(2023, 11, 16, 18, 15, 46)
    times = [start + timedelta(seconds=float(at)) for at in np.cumsum([0.0, *gaps])]
    rows = [f"{at.isoformat(' ', 'microseconds')}1,100,{count}\n" for at, count in zip(times, tokens, strict=True)]
    path.write_text(HEADER + "".join(rows))
    return path


def schedule_of(traffic: Traffic, count: int, seed: int = 0) -> Any:
    return make_schedule(random_trace(), traffic, rich_costs(), MAX_BATCH, count, np.random.default_rng(seed))


@pytest.mark.parametrize("load", [0.5, 1.3])
def test_poisson_arrivals_come_at_the_load(load: float) -> None:
    own = schedule_of(Traffic("poisson", load=load), 4000)
    gaps = np.diff(own.arrival[0])
    rate = load * plain_capacity(random_trace(), rich_costs(), MAX_BATCH)
    assert 1 / gaps.mean() == pytest.approx(rate, rel=0.06)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1) and own.concurrency[0] == 0


def test_bursts_come_at_the_load_on_average_and_bunch() -> None:
    own = schedule_of(Traffic("bursty", load=0.7), 20_000)
    times = own.arrival[0]
    rate = 0.7 * plain_capacity(random_trace(), rich_costs(), MAX_BATCH)
    assert (np.diff(times) >= 0).all() and own.concurrency[0] == 0
    assert len(times) / times[-1] == pytest.approx(rate, rel=0.1)
    counts = np.histogram(times, bins=np.arange(0, times[-1], 10 / rate))[0]
    assert counts.var() / counts.mean() > 3, "a Poisson stream's counts vary as much as their mean"


def test_plain_decoding_serves_its_capacity() -> None:
    """A closed loop over all slots without speculation serves about what `plain_capacity` says."""
    trace, costs = random_trace(64), rich_costs()
    schedule = make_schedule(trace, Traffic(concurrency=8), costs, MAX_BATCH, 256, np.random.default_rng(0))
    engine = ReplayEngine(trace, costs, schedule, ReplayConfig(MAX_BATCH, MAX_CONTEXT))
    served = engine.serve(ConstantController(0))
    assert 256 / served.makespan_seconds == pytest.approx(plain_capacity(trace, costs, MAX_BATCH), rel=0.15)


def test_every_recorded_request_comes_once_before_any_comes_again() -> None:
    record = schedule_of(Traffic(concurrency=4), 72).record[0]
    assert all(sorted(record[start : start + 24]) == list(range(24)) for start in (0, 24, 48))
    assert (record[:24] != record[24:48]).any()


def test_temperatures_choose_the_requests() -> None:
    trace = random_trace()
    own = schedule_of(Traffic(temperatures=(0.6,)), 30)
    assert set(np.round(trace.temperature[own.record[0]], 3).tolist()) == {np.float32(0.6).round(3).item()}
    with pytest.raises(TrafficError, match=r"0\.3"):
        schedule_of(Traffic(temperatures=(0.3,)), 30)


def test_a_files_arrivals_keep_their_rhythm_at_the_load(tmp_path: Path) -> None:
    gaps, tokens = [1.0, 3.0, 0.5, 8.0, 1.5] * 8, list(range(1, 42))
    path = write(tmp_path / "arrivals.csv", gaps, tokens)
    own = schedule_of(Traffic("csv", load=0.7, path=str(path)), 41)
    times = own.arrival[0]
    rate = 0.7 * plain_capacity(random_trace(), rich_costs(), MAX_BATCH)
    assert times[0] == 0 and 41 / times[-1] == pytest.approx(rate)
    np.testing.assert_allclose(np.diff(times) / np.diff(times)[0], gaps, rtol=1e-6)


def test_long_outputs_of_a_file_are_long_recorded_requests(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).permutation(200) + 1
    path = write(tmp_path / "arrivals.csv", [1.0] * 199, tokens.tolist())
    own = schedule_of(Traffic("csv", path=str(path)), 200)
    ranks = np.argsort(np.argsort(tokens))
    assert np.corrcoef(ranks, own.length[0])[0, 1] > 0.9
    wrapped = schedule_of(Traffic("csv", path=str(path)), 500)
    assert (np.diff(wrapped.arrival[0]) >= 0).all(), "a file that is too short begins again"


def test_lines_may_come_in_any_order(tmp_path: Path) -> None:
    path = write(tmp_path / "sorted.csv", [2.0, 5.0], [10, 20, 30])
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[3], lines[1], lines[2]]))
    found = ArrivalFile.load(path)
    assert found.seconds.tolist() == [0.0, 2.0, 7.0] and found.generated_tokens.tolist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("TIMESTAMP,ContextTokens\n1,2\n", "lacks the column 'GeneratedTokens'"),
        ("", "lacks the column 'TIMESTAMP'"),
        (HEADER + "2023-11-16 18:15:46.68,1,2\nyesterday,1,2\n", "line 3"),
        (HEADER + "2023-11-16 18:15:46.68,1,many\n", "line 2"),
        (HEADER + "2023-11-16 18:15:46.68,1\n", "line 2"),
        (HEADER + "2023-11-16 18:15:46.68,1,2\n", "two or more"),
        (HEADER, "two or more"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(TrafficError, match=message) as caught:
        ArrivalFile.load(path)
    assert "wrong.csv" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(TrafficError, match="cannot be read"):
        ArrivalFile.load(tmp_path / "absent.csv")


@pytest.mark.parametrize(
    "values", [{"mode": "tide"}, {"concurrency": 0}, {"load": 0.0}, {"load": np.inf}, {"mode": "csv"}, {"path": "a"}]
)
def test_impossible_traffic_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(TrafficError):
        Traffic(**values)


def test_schedules_are_stacked_with_padding() -> None:
    both = stack([schedule_of(Traffic(concurrency=2), 5), schedule_of(Traffic("poisson"), 9)])
    assert both.record.shape == (2, 9) and both.count.tolist() == [5, 9] and both.concurrency.tolist() == [2, 0]
