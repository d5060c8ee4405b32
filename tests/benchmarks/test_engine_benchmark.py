"""The engine benchmark runs end to end on a small configuration, can be resumed, and reports from its JSON alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from specpilot.benchmarks import engine as benchmark
from specpilot.benchmarks.engine_config import EngineBenchmark
from specpilot.benchmarks.measurement import ROOT
from specpilot.benchmarks.report import bars, render
from specpilot.configs import load_config

SECTIONS = ["plain", "table", "step"]


def small(output: Path) -> EngineBenchmark:
    config = load_config(EngineBenchmark, ROOT / "configs/benchmark/engine.yaml").quick()
    table = replace(config.table, batches=(1, 2), lengths=(0, 2), repeats=1)
    return replace(config, output=str(output), table=table, plain=replace(config.plain, batches=(1,), repeats=1))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    output = tmp_path_factory.mktemp("benchmark") / "engine.json"
    return output, benchmark.measure(small(output), True, False, SECTIONS)


def test_every_section_keeps_its_raw_samples(results: tuple[Path, dict[str, Any]]) -> None:
    _, found = results
    assert set(found["sections"]) == set(SECTIONS) == set(found["section_seconds"])
    assert {"config", "date", "git_revision", "hardware", "versions", "machine", "pair"} <= found.keys()
    plain = found["sections"]["plain"]["1"]
    assert len(plain["arms"]["engine"]["seconds"]) == len(plain["arms"]["generate"]["seconds"]) == 1
    assert plain["agreement"]["arms"]["engine"]["mismatching"] == 0
    cell = found["sections"]["table"]["0"]["2"]["2"]
    assert cell["mismatching"] == 0 and cell["mean_accepted_length"] > 0


def test_a_finished_section_is_not_measured_again(results: tuple[Path, dict[str, Any]]) -> None:
    output, found = results
    again = benchmark.measure(small(output), True, True, SECTIONS)
    assert json.dumps(again["sections"]) == json.dumps(found["sections"])
    with pytest.raises(ValueError, match="another config"):
        benchmark.measure(replace(small(output), seed=5), True, True, SECTIONS)


def test_the_report_needs_the_json_alone(results: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    found = json.loads(json.dumps(results[1]))
    text = render(found, tmp_path / "engine.json")
    assert "Smoke run" in text and (tmp_path / "engine.md").read_text() == text
    assert (tmp_path / "engine.png").stat().st_size > 1000
    assert [bar.name for bar in bars(found)] == [
        "plain decoding against `generate`, batch 1",
        "drafter step against target step",
    ]
