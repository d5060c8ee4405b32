"""What is recorded: prompts of training and evaluation files, with temperatures, output lengths and seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from specpilot.engine import SamplingParams
from specpilot.train.corpus import SourceFile, encode_files, stdlib_files, user_files
from specpilot.train.pair_report import evaluation_prompts
from specpilot.train.recording import RecordingError, TextRequest

MIN_FILE_TOKENS = 400
"""Shorter files give no prompts (see `evaluation_prompts`)."""
MAX_FILES = 256
"""Files that prompts are cut from at most: encoding all of a corpus would take longer than recording."""


@dataclass(frozen=True)
class RequestMix:
    """How requests differ, as they do in life."""

    temperatures: tuple[float, ...] = (0.0, 0.6, 1.0)
    """Cycled over the requests."""
    min_tokens: int = 24
    median_tokens: int = 64
    """``max_tokens`` of a request is log-normal around this, cut to the bounds."""
    max_tokens: int = 160
    spread: float = 0.6
    """Standard deviation of the logarithm of ``max_tokens``."""

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) < 0:
            raise ValueError(f"temperatures must be one or more numbers of 0 or more, got {list(self.temperatures)}")
        if not 1 <= self.min_tokens <= self.median_tokens <= self.max_tokens:
            raise ValueError(
                "min_tokens, median_tokens and max_tokens must be 1 or more and in this order, got "
                f"{self.min_tokens}, {self.median_tokens}, {self.max_tokens}"
            )
        if self.spread < 0:
            raise ValueError(f"spread must be 0 or more, got {self.spread}")

    def params(self, count: int, seed: int) -> list[SamplingParams]:
        """Sampling of ``count`` requests, a function of ``seed`` alone."""
        rng = np.random.default_rng((seed, 2))
        drawn = np.exp(rng.normal(np.log(self.median_tokens), self.spread, size=count))
        limits = np.clip(np.rint(drawn), self.min_tokens, self.max_tokens).astype(int).tolist()
        seeds = rng.integers(2**62, size=count).tolist()
        temperatures = itertools.cycle(self.temperatures)
        return [
            SamplingParams(temperature=temperature, seed=own, max_tokens=limit)
            for temperature, own, limit in zip(temperatures, seeds, limits, strict=False)
        ]


def text_requests(prompts: Sequence[dict[str, Any]], mix: RequestMix, seed: int) -> list[TextRequest]:
    """Requests of ``prompts`` (``file`` and ``token_ids``, as in ``evaluation_prompts.json``)."""
    return [
        TextRequest(tuple(prompt["token_ids"]), params, category_of(str(prompt["file"])))
        for prompt, params in zip(prompts, mix.params(len(prompts), seed), strict=True)
    ]


def category_of(name: str) -> str:
    """``code`` for a Python file, ``prose`` for any other."""
    return "code" if PurePath(name).suffix == ".py" else "prose"


def held_out_prompts(path: str | Path, count: int) -> list[dict[str, Any]]:
    """The first ``count`` prompts of a pair's ``evaluation_prompts.json``."""
    try:
        prompts = json.loads(Path(path).read_text(encoding="utf-8"))["prompts"]
        valid = all(isinstance(prompt["file"], str) and _token_ids(prompt["token_ids"]) for prompt in prompts)
    except (OSError, ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise RecordingError(f"{path}: not a file of evaluation prompts; train/pair.py writes it with a pair")
    if len(prompts) < count:
        raise RecordingError(f"{path} holds {len(prompts)} prompts, {count} are asked for; lower num_evaluation")
    chosen: list[dict[str, Any]] = prompts[:count]
    return chosen


def _token_ids(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


def stdlib_training_files() -> list[SourceFile]:
    """The standard library's files without those of the evaluation split."""
    return [file for file in stdlib_files() if file.split != "evaluation"]


def split_user_files(
    names: Sequence[str], evaluation_share: float, seed: int
) -> tuple[list[SourceFile], list[SourceFile]]:
    """The user's files for training and for evaluation: a file's prompts are all in one split."""
    files = list(user_files(sorted(set(names))))
    if len(files) < 2:
        raise RecordingError(f"texts names {len(files)} files; two or more are needed, one for each split")
    order = np.random.default_rng((seed, 3)).permutation(len(files))
    held_out = int(np.clip(round(evaluation_share * len(files)), 1, len(files) - 1))
    return [files[index] for index in order[held_out:]], [files[index] for index in order[:held_out]]


def cut_prompts(tokenizer: Any, files: Sequence[SourceFile], count: int, seed: int) -> list[dict[str, Any]]:
    """``count`` prompts of 16 to 160 tokens out of ``files`` (see `evaluation_prompts`), `MAX_FILES` of them drawn."""
    drawn = np.random.default_rng((seed, 4)).permutation(len(files))[:MAX_FILES]
    encoded = [(files[index].name, encode_files(tokenizer, [files[index]])) for index in sorted(drawn)]
    if not any(len(tokens) > MIN_FILE_TOKENS for _, tokens in encoded):
        raise RecordingError(f"no file of {len(files)} has more than {MIN_FILE_TOKENS} tokens; name longer texts")
    vocabulary = tokenizer.get_vocab()
    # A byte-level tokenizer writes a line feed as U+010A and a space as U+0120.
    starts = frozenset(index for token, index in vocabulary.items() if token.rstrip("\u0120").endswith("\u010a"))
    return evaluation_prompts(encoded, starts, count, seed)
