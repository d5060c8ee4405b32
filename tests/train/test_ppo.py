"""Training, resuming, tracking and distilling, at small size with the real libraries."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from stable_baselines3.common.vec_env import DummyVecEnv

from specpilot import load_controller
from specpilot.configs import ConfigError
from specpilot.controllers.observation import NUM_FEATURES
from specpilot.controllers.policies import MlpPolicy, TreePolicy
from specpilot.controllers.priced import Action, PricedController
from specpilot.engine import Engine, EngineConfig, Pair, SamplingParams
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.live_lengths import LiveLengths
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.speculation_length import SpeculationLengthEnv
from specpilot.envs.traffic import Traffic
from specpilot.tests.support.traces import random_trace, rich_surface
from specpilot.tests.train.test_record import make_requests
from specpilot.train import distill, ppo
from specpilot.train.material import Material
from specpilot.train.ppo_config import from_mapping, parse_arguments
from specpilot.train.recording import record_requests
from specpilot.train.teacher import teacher_policy
from specpilot.train.wrong_action import WrongActionCost

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    record = tmp_path_factory.mktemp("record")
    random_trace(48).save(record / "train.npz")
    rich_surface().save(record / "cost_surface.json")
    return {
        "record": str(record),
        "output": str(tmp_path_factory.mktemp("run") / "ppo"),
        "scenarios": [{"concurrency": 2}, {"mode": "poisson", "load": 0.7}],
        "lengths": [0, 1, 2, 4],
        "prices": [1.0],
        "planned_lengths": [4],
        "looks": [0, 1],
        "max_num_seqs": 4,
        "num_envs": 4,
        "total_steps": 768,
        "max_rounds": 24,
        "n_steps": 32,
        "batch_size": 64,
        "n_epochs": 2,
        "net_arch": [8],
        "evaluation_requests": 6,
        "evaluation_interval": 256,
        "evaluation_seeds": 1,
        "progress_bar": False,
    }


@pytest.fixture(scope="module")
def run(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tmp_path_factory.mktemp("config") / "ppo.yaml"
    config.write_text(yaml.safe_dump(settings))
    assert ppo.main(["--config", str(config)]) == 0
    return Path(settings["output"])


def test_a_run_holds_all_that_came_of_it(run: Path, settings: dict[str, Any]) -> None:
    results = json.loads((run / "results.json").read_text())
    assert results["config"]["record"] == settings["record"] and results["seed"] == 0
    assert {"git_revision", "versions", "hardware", "date"} <= set(results)
    assert [entry["steps"] for entry in results["curve"]] == sorted({entry["steps"] for entry in results["curve"]})
    assert results["curve"][-1]["steps"] >= 768
    assert np.asarray(results["constants"]).shape == (4, 2, 1)
    assert list((run / "tensorboard").glob("**/events*"))
    assert not list(run.glob("**/*.pkl")) and not list(run.glob("**/*.zip"))


def test_the_teacher_decides_as_the_policy_it_was_made_of(run: Path) -> None:
    controller = load_controller(run / "teacher", guard=False)
    assert isinstance(controller, PricedController) and isinstance(controller.policy, MlpPolicy)
    config = from_mapping(json.loads((run / "results.json").read_text())["config"], "results")
    own = ppo.PpoRun(config)  # resumes at the last checkpoint
    policy = teacher_policy(own.model, config, own.material)
    rows = np.random.default_rng(0).normal(
        own.material.normaliser.mean, own.material.normaliser.scale, (64, NUM_FEATURES)
    )
    assert [policy.act(row) for row in rows] == own.act(rows)


def test_training_is_deterministic_and_resumes(settings: dict[str, Any], run: Path, tmp_path: Path) -> None:
    own = {**settings, "output": str(tmp_path / "again")}
    first = ppo.PpoRun(from_mapping(own, "test"))
    first.train()
    before = json.loads((run / "results.json").read_text())["curve"]
    assert [entry["score"] for entry in first.curve] == [entry["score"] for entry in before]
    more = ppo.PpoRun(from_mapping({**own, "total_steps": 1024}, "test"))
    assert more.steps_done == first.curve[-1]["steps"]
    more.train()
    assert more.curve[: len(before)] == first.curve and more.curve[-1]["steps"] >= 1024
    with pytest.raises(ValueError, match="trained with another 'gamma'"):
        ppo.PpoRun(from_mapping({**own, "gamma": 0.5}, "test"))


def test_training_on_the_real_engine_ends_in_a_controller(
    settings: dict[str, Any], pair: Pair, pair_directory: Path, evaluation_prompts: list[list[int]], tmp_path: Path
) -> None:
    engine_config = EngineConfig(4, 128, max_num_speculative_tokens=4)
    trace = record_requests(pair, engine_config, make_requests(evaluation_prompts, 9))
    trace.save(tmp_path / "train.npz")
    rich_surface().save(tmp_path / "cost_surface.json")
    models = {"target": str(pair_directory / "target"), "drafter": str(pair_directory / "drafter")}
    steps = {
        "total_steps": 64,
        "batch_size": 32,
        "evaluation_interval": 32,
        "scenarios": [{"concurrency": 2}],
        "held_out_share": 0.4,
    }
    own = {**settings, **steps, **models, "backend": "live", "record": str(tmp_path), "output": str(tmp_path / "live")}
    run = ppo.PpoRun(from_mapping(own, "test"))
    assert isinstance(run.env, DummyVecEnv)
    served = run.env.envs[0].unwrapped
    assert isinstance(served, SpeculationLengthEnv) and isinstance(served._backend, LiveLengths)
    before = [own.clone() for own in run.model.policy.parameters()]
    run.train()
    assert any(not torch.equal(old, new) for old, new in zip(before, run.model.policy.parameters(), strict=True))
    assert [entry["steps"] for entry in run.curve] == [32, 64]
    teacher = load_controller(tmp_path / "live/teacher", guard=False)
    [served_by_it] = Engine(pair, engine_config, teacher).generate([trace.prompt(0)], SamplingParams(max_tokens=8))
    assert len(served_by_it.token_ids) == 8


@pytest.mark.slow
def test_a_killed_run_goes_on(settings: dict[str, Any], tmp_path: Path) -> None:
    output, config = tmp_path / "killed", tmp_path / "ppo.yaml"
    config.write_text(yaml.safe_dump({**settings, "output": str(output), "total_steps": 4096}))
    command = [sys.executable, str(ROOT / "train/ppo.py"), "--config", str(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    progress = output / "checkpoint/progress.json"
    while not progress.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = json.loads(progress.read_text())["steps"]
    assert 0 < reached < 4096
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "going on after" in done.stdout
    steps = [entry["steps"] for entry in json.loads((output / "results.json").read_text())["curve"]]
    assert steps == sorted(set(steps)) and steps[-1] >= 4096


def test_wandb_offline_gets_config_curves_table_and_controller(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    own = {**settings, "output": str(tmp_path / "tracked"), "total_steps": 256, "tracking": "wandb"}
    ppo.PpoRun(from_mapping(own, "test")).train()
    [folder] = (tmp_path / "tracked/wandb").glob("offline-run-*")
    for expected in (b"held_out/score", b"git_revision", b"length_over_load", b"controller"):
        assert _appears(expected, folder), expected


def _appears(expected: bytes, folder: Path, patience: float = 60.0) -> bool:
    """Whether W&B's own process writes it; on a busy machine it may lag behind the run by seconds."""
    deadline = time.monotonic() + patience
    while not any(expected in path.read_bytes() for path in folder.glob("*.wandb")):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_distilled_students_load_and_are_small(run: Path) -> None:
    assert distill.main(["--run", str(run), "--iterations", "2", "--states", "200", "--max-leaf-nodes", "8"]) == 0
    report = json.loads((run / "students/report.json").read_text())
    tree = load_controller(run / "students/tree.json", guard=False)
    assert isinstance(tree, PricedController) and isinstance(tree.policy, TreePolicy)
    assert any(word in (run / "students/tree.txt").read_text() for word in ("length", "off", "planned"))
    assert (run / "students/tree.png").stat().st_size > 1000
    for student in report["students"]:
        assert student["bytes"] < 60_000 and 0 <= student["agreement"] <= 1
        assert len(student["speed_over_teacher"]) == 2
    table = json.loads((run / "students/vllm_table.json").read_text())["num_speculative_tokens_per_batch_size"]
    assert table[0][0] == 1 and all(low == before[1] + 1 for before, (low, _, _) in itertools.pairwise(table))
    load_controller(run / "students/mlp")
    load_controller(run / "students/table.json")


def test_trying_actions_out_changes_nothing(run: Path) -> None:
    config = from_mapping(json.loads((run / "results.json").read_text())["config"], "results")
    fleet = Material.prepare(config, run).training_fleet(seed=5)
    for e in range(fleet.num_envs):
        fleet.reset(e)
    cost = WrongActionCost(fleet, [Action(0, 1.0), Action(4, 0.0), Action(4, 1.0)], 4, 0)
    before = fleet.observations.copy()
    first = cost.of(np.zeros(fleet.num_envs, dtype=np.int64))
    assert (fleet.observations == before).all() and np.isfinite(first).all()


def test_ppo_learns_where_one_answer_is_right(settings: dict[str, Any], tmp_path: Path) -> None:
    """Drafting costs nothing next to verification, and every draft of this recording is accepted."""
    trace = random_trace(48)
    left = np.concatenate([np.arange(count, 0, -1) for count in trace.output_tokens])
    trace.accepted_length[:] = np.minimum(6, left)
    record = tmp_path / "record"
    trace.save(record / "train.npz")
    rich_surface().save(record / "cost_surface.json")
    own = {**settings, "record": str(record), "output": str(tmp_path / "run"), "total_steps": 12_000}
    own |= {
        "scenarios": [{"concurrency": 1}],
        "planned_lengths": [],
        "learning_rate": 0.01,
        "evaluation_interval": 6000,
    }
    run = ppo.PpoRun(from_mapping(own, "test"))
    run.train()
    fleet = ReplayFleet(
        trace, rich_surface(), run.material.predictor, FleetConfig((Traffic(concurrency=1),)), ReplayConfig(4), 4, 1
    )
    for e in range(4):
        fleet.reset(e)
    assert all(action.max_length == 4 for action in run.act(fleet.observations))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a configuration"),
        (["--config"], "incomplete option"),
        (["--config", "configs/quickstart.yaml", "--override", "gamma"], "takes key=value"),
        (["--config", "configs/quickstart.yaml", "--override", "gama=1"], "did you mean 'gamma'"),
        (["--config", "configs/quickstart.yaml", "--override", "reward=joy"], "reward must be one of"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=message):
        parse_arguments(arguments)
