"""Evaluation: same seeds same results, ceilings above what they bound, resumed as uninterrupted, figures as defined."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.configs import ConfigError, load_config
from specpilot.controllers import CostSurface, save_controller
from specpilot.controllers.priced import Action
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.replay_state import Recording
from specpilot.envs.trace import Trace
from specpilot.tests.support.rounds import surface
from specpilot.train.baseline_tuning import HOLD, TunedBaselines
from specpilot.train.contenders import ControllerFile, Field, constant_name
from specpilot.train.evaluate import evaluate, main
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation
from specpilot.train.evaluation_table import csv_text, interval, share_of_gap, summarise
from specpilot.train.predictor import fit_what_is_told
from specpilot.train.priced_replay import serve_priced
from specpilot.train.scenarios import ScenarioConfig, Stage, scenarios

K = 3
SMALL = ScenarioConfig(
    temperatures=(), concurrencies=(2,), loads=(0.8,), requests=6, requests_per_slot=3, arrival_requests=10, seeds=2
)
ENGINE = ReplayConfig(max_num_seqs=4, max_model_len=96)


def costs() -> CostSurface:
    """A draft token costs a tenth of a round, a verified one a twentieth."""
    made: CostSurface = surface(lambda batch, tokens: 1e-3, lambda batch, tokens: (9.5 + 0.5 * tokens * batch) * 1e-3)
    return made


def made_trace(seed: int, requests: int = 24, length: int = 20) -> Trace:
    """Tokens accepted with chances that the margin tells; half of the requests at temperature 1."""
    rng = np.random.default_rng(seed)
    positions = requests * length
    margin = rng.exponential(2.0, (positions, K))
    kept = np.logical_and.accumulate(rng.random((positions, K)) < 1 / (1 + np.exp(1.5 - margin)), axis=1).sum(axis=1)
    features = np.stack([1 / (1 + np.exp(-margin)), margin * 0, margin, margin * 0], axis=-1)
    return Trace(
        max_num_speculative_tokens=K,
        prompt_tokens=np.full(requests, 9, dtype=np.int32),
        output_tokens=np.full(requests, length, dtype=np.int32),
        accepted_length=np.minimum(kept, np.tile(length - np.arange(length), requests)).astype(np.uint8),
        temperature=np.tile([0.0, 1.0], requests // 2).astype(np.float32),
        category=np.zeros(requests, dtype=np.uint8),
        confidence=features.astype(np.float32),
    )


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("record")
    made_trace(0).save(folder / "train.npz")
    made_trace(1).save(folder / "evaluation.npz")
    costs().save(folder / "cost_surface.json")
    return folder


@pytest.fixture(scope="module")
def contest() -> Field:
    train, stage = (Stage.build(made_trace(seed), costs(), ENGINE) for seed in (0, 1))
    predictor = fit_what_is_told(train.trace, 0)
    tuned = TunedBaselines(((1, None, 2),), None, 1.0, 1, 0.5, 2)
    return Field(stage, Recording.of(stage.trace, predictor), predictor, train, tuned)


@pytest.fixture(scope="module")
def whole(record: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluateConfig, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("evaluation")
    saved = save_controller(_table(), folder / "table.json")
    files = (ControllerFile("saved_table", str(saved)),)
    config = EvaluateConfig(str(folder / "out"), str(record), SMALL, files, ENGINE)
    return config, evaluate(config)


def _table() -> Any:
    from specpilot.controllers import LengthTableController

    return LengthTableController([(1, None, 2)])


def rows_of(results: dict[str, Any]) -> dict[str, Any]:
    return {name: own["rows"] for name, own in results["scenarios"].items()}


def test_oracles_bound_what_they_are_ceilings_of(contest: Field) -> None:
    for scenario in scenarios(SMALL)[:1]:
        served = {name: own.tokens_per_second for name, own in contest.serve(scenario, 0).items()}
        best = max(served[constant_name(length)] for length in range(K + 1))
        assert served["request_oracle"] > served["uniform_oracle"] * 1.001
        assert served["uniform_oracle"] >= best
        assert served["request_oracle"] == max(served.values())


def test_every_contender_generates_the_same_tokens(contest: Field) -> None:
    for scenario in scenarios(SMALL):
        assert len({own.tokens for own in contest.serve(scenario, 1).values()}) == 1


def test_the_compiled_price_rule_is_the_controller(contest: Field) -> None:
    for scenario in scenarios(SMALL):
        schedule = contest.stage.schedule(scenario, 3)
        compiled = serve_priced(
            contest.stage, contest.recording, schedule, Action(K, contest.tuned.price, contest.tuned.looks), HOLD
        )
        played = contest.stage.engine(schedule).serve(contest.price_rule())
        assert played.drafted > 0
        assert compiled.makespan_seconds == pytest.approx(played.makespan_seconds, rel=1e-9)


def test_all_contenders_serve_one_schedule_and_seeds_differ(contest: Field) -> None:
    scenario = scenarios(SMALL)[1]
    first, again, other = (contest.stage.schedule(scenario, seed) for seed in (0, 0, 1))
    assert np.array_equal(first.arrival, again.arrival) and np.array_equal(first.record, again.record)
    assert not np.array_equal(first.arrival, other.arrival)


def test_the_whole_evaluation_writes_its_files(whole: tuple[EvaluateConfig, dict[str, Any]]) -> None:
    config, results = whole
    output = Path(config.output)
    assert {"results.json", "results.csv", "table.md", "plot.png"} <= {own.name for own in output.iterdir()}
    assert (output / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((output / "results.json").read_text())["scenarios"]) == {"mix c=2", "arrivals 0.8"}
    with open(output / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    contenders = {line["contender"] for line in lines}
    assert {"off", "constant_3", "saved_table", "price_rule", "informed_ceiling", "request_oracle"} <= contenders
    assert {"heuristic", "threshold_tuned", "turbospec", "adaptive_verification", "length_table"} <= contenders
    assert all(line["first_token_p99"] for line in lines if "arr" in line["scenario"])
    table = results["scenarios"]["mix c=2"]["contenders"]
    assert table["saved_table"]["figure"] == table["constant_2"]["figure"]


def test_resumed_is_as_uninterrupted(whole: tuple[EvaluateConfig, dict[str, Any]], tmp_path: Path) -> None:
    config, results = whole
    again = dataclasses.replace(config, output=str(tmp_path))
    kept = Path(config.output) / "parts" / "mix_c2.json"
    (tmp_path / "parts").mkdir()
    for name in ("mix_c2.json", "tuning.json"):
        (tmp_path / "parts" / name).write_bytes((Path(config.output) / "parts" / name).read_bytes())
    (tmp_path / "parts" / "arrivals_0.8.json").write_text('{"key": "half a fi')
    before = kept.stat().st_mtime_ns
    assert rows_of(evaluate(again)) == rows_of(results)
    assert kept.stat().st_mtime_ns == before


def test_a_part_of_other_settings_is_not_used(whole: tuple[EvaluateConfig, dict[str, Any]]) -> None:
    config, _ = whole
    evaluation = ReplayEvaluation(config)
    assert evaluation._read("mix c=2", evaluation.key) is not None
    other = ReplayEvaluation(dataclasses.replace(config, seed=1))
    assert other._read("mix c=2", other.key) is None


def made_rows(**speeds: list[float]) -> list[dict[str, Any]]:
    return [
        {"contender": name, "seed": seed, "figure": speed, "tokens_per_second": speed}
        for name, own in speeds.items()
        for seed, speed in enumerate(own)
    ]


def test_relative_figures_are_by_seed_and_the_best_constant_by_median() -> None:
    rows = made_rows(
        off=[10, 20, 10],
        constant_1=[12, 24, 11],
        constant_2=[40, 11, 10],
        mine=[15, 27, 13.25],
        request_oracle=[24, 36, 20],
    )
    summary = summarise(rows)
    assert summary["best_constant"] == "constant_1"
    mine = summary["contenders"]["mine"]
    assert mine["relative_to_off"] == {"median": pytest.approx(1.35), "min": 1.325, "max": 1.5}
    assert mine["relative_to_best_constant"]["median"] == pytest.approx(13.25 / 11)
    assert mine["share_of_oracle_gap"] == {"median": 0.25, "min": 0.25, "max": 0.25}
    assert mine["share_of_ceiling_gap"]["median"] is None


def test_off_may_be_the_best_constant() -> None:
    assert summarise(made_rows(off=[10.0], constant_1=[9.0], request_oracle=[11.0]))["best_constant"] == "off"


def test_a_gap_of_nothing_has_no_shares() -> None:
    assert share_of_gap(3.0, 2.0, 4.0) == 0.5
    assert share_of_gap(1.0, 2.0, 4.0) == -0.5
    assert math.isnan(share_of_gap(3.0, 2.0, 2.001)) and math.isnan(share_of_gap(3.0, 2.0, 1.0))
    assert interval([math.nan, 1.0, 3.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_csv_leaves_unknown_numbers_empty() -> None:
    text = csv_text({"one": summarise(made_rows(off=[10.0], constant_1=[9.0]))})
    lines = list(csv.DictReader(text.splitlines()))
    assert [line["is_best_constant"] for line in lines] == ["1", "0"]
    assert lines[1]["relative_to_off_median"] == "0.9" and lines[1]["share_of_oracle_gap_median"] == ""


def test_unknown_keys_and_taken_names_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("output: a\nrecord: b\nscenarios: {temprature: [0]}\n")
    with pytest.raises(ConfigError, match="temprature"):
        load_config(EvaluateConfig, path)
    path.write_text("output: a\nrecord: b\ncontrollers: [{name: price_rule, path: c.json}]\n")
    assert main(["--config", str(path)]) == 2
    assert "'price_rule' is taken" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["pystdlib", "quick"])
def test_shipped_configurations_are_valid(name: str) -> None:
    root = Path(__file__).resolve().parents[2]
    assert load_config(EvaluateConfig, root / f"configs/evaluate/{name}.yaml").record == "runs/record/pystdlib"
