"""The whole training run on a tiny configuration: what it writes, that it resumes, how it refuses."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from specpilot.configs import ConfigError, load_config
from specpilot.engine import SHIPPED_PAIR, load_pair
from specpilot.train.language_model import ModelSettings
from specpilot.train.pair import PairConfig, PairTraining, main, parse

TINY = ModelSettings(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    steps=4,
    batch_size=2,
    sequence_length=48,
    learning_rate=0.002,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> PairConfig:
    root = tmp_path_factory.mktemp("pair")
    config = PairConfig(
        output=str(root / "pair"),
        workdir=str(root / "work"),
        shallow_target=replace(TINY, num_hidden_layers=1),
        target=TINY,
        pretrained_drafter=replace(TINY, num_hidden_layers=1, steps=2),
        drafter=replace(TINY, num_hidden_layers=1),
        vocab_size=320,
        max_position_embeddings=320,
        generated_tokens=480,
        num_evaluation_prompts=3,
        max_files=120,
        device="cpu",
        compile=False,
    )
    run(config)
    return config


def run(config: PairConfig) -> None:
    training = PairTraining(config)
    training.corpus()
    target = training.train_target()
    drafter = training.train_drafter(target)
    training.export(target, drafter)


def test_a_finished_run_is_a_pair_that_loads(finished: PairConfig) -> None:
    output = Path(finished.output)
    pair = load_pair(output / "target", output / "drafter")
    assert pair.vocab_size == 320
    prompts = json.loads((output / "evaluation_prompts.json").read_text())["prompts"]
    assert len(prompts) == 3
    assert "evaluation" in (output / "README.md").read_text()


def test_a_run_records_what_made_it(finished: PairConfig) -> None:
    record = json.loads((Path(finished.output) / "training.json").read_text())
    assert {"config", "seed", "versions", "git_revision", "hardware", "stage_seconds", "report"} <= record.keys()
    assert record["config"]["target"]["steps"] == 4
    stages = {"shallow_target": 4, "target": 4, "pretrained_drafter": 2, "drafter": 4}
    assert {name: record[name]["log"][-1]["step"] for name in stages} == stages
    assert stages.keys() <= record["stage_seconds"].keys()
    assert set(record["corpus"]) == {"train", "validation", "evaluation"}


def test_running_again_trains_nothing_again(finished: PairConfig) -> None:
    weights = Path(finished.output, "target", "model.safetensors").read_bytes()
    run(finished)
    assert Path(finished.output, "target", "model.safetensors").read_bytes() == weights


def test_shipped_configuration_loads_and_options_override_it() -> None:
    path = Path(__file__).parents[2] / "configs" / "pair" / "pystdlib.yaml"
    config = load_config(PairConfig, path)
    assert parse(["--config", str(path), "--seed", "7"]) == replace(config, seed=7)
    assert parse(["--config", str(path), "--text", "a.py", "b.py"]).text == ("a.py", "b.py")
    assert json.loads((SHIPPED_PAIR / "training.json").read_text())["config"]["target"]["hidden_size"] == 192


def test_without_a_configuration_the_run_says_which_to_give(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["pair.py"])
    assert main() == 2
    assert capsys.readouterr().err == "error: give a configuration: --config configs/pair/pystdlib.yaml\n"


def test_an_unknown_key_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "pair.yaml"
    path.write_text("output: a\nworkdir: b\nvocab_sise: 3\n")
    with pytest.raises(ConfigError, match=r"unknown key 'vocab_sise'; did you mean 'vocab_size'"):
        load_config(PairConfig, path)
