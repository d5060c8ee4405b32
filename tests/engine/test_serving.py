"""An engine from a YAML file."""

from __future__ import annotations

from pathlib import Path

import pytest

from specpilot.configs import ConfigError, load_config
from specpilot.controllers import ConstantController
from specpilot.engine import PairError, SamplingParams, ServingConfig, load_engine

SERVING = Path(__file__).parents[2] / "configs" / "serving"


def test_the_ngram_configuration_serves_without_a_drafter_model(evaluation_prompts: list[list[int]]) -> None:
    engine = load_engine(SERVING / "ngram.yaml", ConstantController(4))
    assert engine.pair.drafter is None
    [output] = engine.generate(evaluation_prompts[:1], SamplingParams(max_tokens=16))
    assert output.error is None and output.token_ids


def test_the_gpu_configuration_is_valid() -> None:
    config = load_config(ServingConfig, SERVING / "qwen3.yaml")
    assert (config.device, config.dtype, config.engine.max_model_len) == ("cuda", "bfloat16", 8192)


def test_a_wrong_setting_is_refused_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text("engine: {verification: fast}\n")
    with pytest.raises(ConfigError, match=r"serve\.yaml: engine: verification must be one of .*'fast'"):
        load_engine(path)
    path.write_text("engine: {max_num_seq: 3}\n")
    with pytest.raises(ConfigError, match=r"unknown key 'max_num_seq'; did you mean 'max_num_seqs'"):
        load_engine(path)
    path.write_text(f"target: {tmp_path}/nothing\n")
    with pytest.raises(PairError, match=r"nothing: no model here"):
        load_engine(path)
