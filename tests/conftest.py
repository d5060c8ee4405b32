"""Fixtures: the shipped pair, its evaluation prompts, and small random pairs for what needs speed.

``SPECPILOT_TEST_PAIR=/some/directory`` (with ``target/``, ``drafter/`` and ``evaluation_prompts.json``) runs the suite
on another pair.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from specpilot.engine import SHIPPED_PAIR, Pair, load_pair

from .support.pairs import build_tiny_pair

PAIR_DIRECTORY = Path(os.environ.get("SPECPILOT_TEST_PAIR", SHIPPED_PAIR))


@pytest.fixture(scope="session")
def pair_directory() -> Path:
    """Directory of the pair under test."""
    if not (PAIR_DIRECTORY / "target" / "config.json").is_file():
        pytest.fail(f"no pair in {PAIR_DIRECTORY}; train one, or set SPECPILOT_TEST_PAIR to the directory of another")
    return PAIR_DIRECTORY


@pytest.fixture(scope="session")
def pair(pair_directory: Path) -> Pair:
    """The shipped pair (or the one that SPECPILOT_TEST_PAIR names)."""
    return load_pair(pair_directory / "target", pair_directory / "drafter")


@pytest.fixture(scope="session")
def evaluation_prompts(pair_directory: Path) -> list[list[int]]:
    """Token ids of the prompts that were held out of training: at least 256, of 16 to 160 tokens."""
    path = pair_directory / "evaluation_prompts.json"
    if not path.is_file():
        pytest.fail(f"{path} is missing; `python train/pair.py` writes it with the pair")
    prompts = [list(map(int, prompt["token_ids"])) for prompt in json.loads(path.read_text())["prompts"]]
    assert len(prompts) >= 256 and all(16 <= len(prompt) <= 160 for prompt in prompts)
    return prompts


@pytest.fixture(scope="session")
def tiny_pair() -> Pair:
    """A random pair of 73 tokens, token 0 ending a text, that agrees with itself about as often as a trained pair."""
    return build_tiny_pair()


@pytest.fixture(scope="session")
def micro_pair() -> Pair:
    """A random pair of 16 tokens and no end of text, so that distributions of several tokens can be enumerated."""
    return build_tiny_pair(vocab_size=16, eos=None)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Threads cost the small models more than they bring, and texts do not depend on the machine's cores."""
    torch.set_num_threads(1)
