"""Training of one model: resumable to the same weights, learns, refuses nothing silently."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from specpilot.train.distillation import distillation_loss, mixed_batches
from specpilot.train.growth import copy_agreeing
from specpilot.train.language_model import (
    ModelSettings,
    learning_rate_scale,
    next_token_loss,
    train_model,
    windows,
)

SETTINGS = ModelSettings(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=64,
    steps=200,
    batch_size=4,
    sequence_length=32,
    learning_rate=0.01,
)
VOCAB = 32


@pytest.fixture(scope="module")
def stream() -> np.ndarray:
    """A Markov chain that a model can learn: each token has four likely followers."""
    rng = np.random.default_rng(0)
    followers = rng.integers(0, VOCAB, size=(VOCAB, 4))
    tokens = [0]
    for choice in rng.integers(0, 4, size=6000):
        tokens.append(int(followers[tokens[-1], choice]))
    return np.asarray(tokens, dtype=np.int32)


def trained(
    stream: np.ndarray, workdir: Path, settings: ModelSettings
) -> tuple[torch.nn.Module, list[dict[str, float]]]:
    torch.manual_seed(0)
    model = settings.build(VOCAB, 0, 64)
    log = train_model(
        model,
        settings,
        lambda step: windows(stream, settings.sequence_length, settings.batch_size, 0, step),
        windows(stream, settings.sequence_length, 8, 1, 0),
        next_token_loss,
        workdir,
        "cpu",
        compile_model=False,
    )
    return model, log


def test_training_learns_the_chain(stream: np.ndarray, tmp_path: Path) -> None:
    _, log = trained(stream, tmp_path, SETTINGS)
    assert log[-1]["validation_loss"] < 2.0  # log(32) = 3.47 untrained, log(4) = 1.39 at best


class Interrupted(Exception):
    pass


def test_interrupted_training_resumes_to_the_same_weights(stream: np.ndarray, tmp_path: Path) -> None:
    whole, whole_log = trained(stream, tmp_path / "whole", SETTINGS)

    def batches(step: int) -> torch.Tensor:
        if step == 130:
            raise Interrupted
        return windows(stream, SETTINGS.sequence_length, SETTINGS.batch_size, 0, step)

    torch.manual_seed(0)
    model = SETTINGS.build(VOCAB, 0, 64)
    validation = windows(stream, SETTINGS.sequence_length, 8, 1, 0)
    with pytest.raises(Interrupted):
        train_model(model, SETTINGS, batches, validation, next_token_loss, tmp_path / "cut", "cpu", compile_model=False)
    resumed, resumed_log = trained(stream, tmp_path / "cut", SETTINGS)
    assert resumed_log == whole_log
    for ours, theirs in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_training_attention_equals_transformers_own(stream: np.ndarray) -> None:
    torch.manual_seed(0)
    model = replace(SETTINGS, num_attention_heads=4, num_key_value_heads=2).build(VOCAB, 0, 64).eval()
    batch = windows(stream, 32, 2, 0, 0)
    with torch.no_grad():
        model.set_attn_implementation("sdpa")
        expected = model(input_ids=batch, use_cache=False).logits
        model.set_attn_implementation("specpilot_training")
        found = model(input_ids=batch, use_cache=False).logits
    assert torch.allclose(expected, found, atol=0.02)  # ours multiplies in bf16


def test_distillation_brings_the_drafter_to_the_target(stream: np.ndarray, tmp_path: Path) -> None:
    target, _ = trained(stream, tmp_path / "target", SETTINGS)
    settings = replace(SETTINGS, num_hidden_layers=1)
    torch.manual_seed(1)
    drafter = settings.build(VOCAB, 0, 64)
    copy_agreeing(target, drafter)  # type: ignore[arg-type]
    validation = windows(stream, 32, 8, 1, 0)
    loss = distillation_loss(target)
    with torch.no_grad():
        before = float(loss(drafter, validation))
        assert float(loss(target, validation)) == pytest.approx(0.0, abs=1e-5)
    generated = windows(stream, 32, 16, 5, 0).numpy().astype(np.int32)
    batches = mixed_batches(lambda step: windows(stream, 32, 2, 0, step), generated, 2, 0)
    assert batches(0).shape == (4, 32)
    log = train_model(drafter, settings, batches, validation, loss, tmp_path / "drafter", "cpu", compile_model=False)
    assert log[-1]["validation_loss"] < 0.5 * before


def test_learning_rate_warms_up_and_decays() -> None:
    scales = [learning_rate_scale(step, 1000) for step in range(1000)]
    assert scales.index(max(scales)) == pytest.approx(29, abs=2)
    assert scales[-1] == pytest.approx(0.05, abs=1e-3)
    assert all(later <= earlier for earlier, later in itertools.pairwise(scales[30:]))
