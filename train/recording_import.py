"""Recordings of other engines: JSON lines of accepted lengths (see ``docs/trace-format.md``) to traces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.controllers import LEVEL_FEATURES
from specpilot.envs.trace import MAX_TOKENS, Trace

REQUIRED = ("prompt_tokens", "accepted_lengths")
OPTIONAL = ("confidence", "temperature", "category", "max_tokens")
MAX_SPECULATIVE_TOKENS = 255
LARGEST = float(np.finfo(np.float32).max)


class RecordingImportError(ValueError):
    """A file to import is malformed; the message is one line with file, line, field and fix."""


@dataclass(frozen=True)
class ImportedRequest:
    """One line of a recording."""

    prompt_tokens: int
    accepted_lengths: list[int]
    temperature: float
    category: str
    max_tokens: int
    confidence: np.ndarray[Any, Any] | None
    """``[P, K, 4]`` or None."""


def read_requests(path: str | Path, temperature: float, max_num_speculative_tokens: int | None = None) -> Trace:
    """Read one JSON object per line.

    ``temperature`` is that of lines without one. ``max_num_speculative_tokens`` is the length of the drafts that were
    recorded; None: the depth of the confidence or, without it, the largest accepted length. Raises
    `RecordingImportError` for the first line that is not as documented.
    """
    requests: list[ImportedRequest] = []
    with _opened(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                try:
                    requests.append(_read_line(line, temperature))
                    _check_alike(requests)
                except ValueError as error:
                    raise RecordingImportError(f"{path}: line {number}: {error}") from None
    if not requests:
        raise RecordingImportError(f"{path}: holds no requests; give one JSON object per line")
    depths = {own.confidence.shape[1] for own in requests if own.confidence is not None}
    recorded = max(1, *(max(own.accepted_lengths) for own in requests), *depths)
    longest = recorded if max_num_speculative_tokens is None else max_num_speculative_tokens
    if longest < recorded or (depths and longest != recorded):
        raise RecordingImportError(f"{path}: drafts of {recorded} tokens were recorded, K is given as {longest}")
    return _trace(requests, longest, str(Path(path).name))


def _opened(path: str | Path) -> Any:
    try:
        return Path(path).open(encoding="utf-8", errors="replace")
    except OSError as error:
        raise RecordingImportError(f"{path}: cannot be read ({error.strerror})") from None


def _read_line(line: str, temperature: float) -> ImportedRequest:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("is not JSON; one object per line is expected") from None
    if not isinstance(value, dict):
        raise ValueError(f"must be a JSON object, got {type(value).__name__}")
    for name in REQUIRED:
        if name not in value:
            raise ValueError(f"lacks {name!r}")
    if unknown := sorted(set(value) - {*REQUIRED, *OPTIONAL}):
        raise ValueError(f"unknown field {unknown[0]!r}; known are {', '.join((*REQUIRED, *OPTIONAL))}")
    accepted = _accepted_lengths(value["accepted_lengths"])
    category = value.get("category", "unknown")
    if not isinstance(category, str) or not category:
        raise ValueError(f"'category' must be a name, got {category!r:.40}")
    return ImportedRequest(
        prompt_tokens=_integer("prompt_tokens", value["prompt_tokens"], 1),
        accepted_lengths=accepted,
        temperature=_number("temperature", value.get("temperature", temperature)),
        category=category,
        max_tokens=_integer("max_tokens", value.get("max_tokens", len(accepted)), len(accepted)),
        confidence=_confidence(value["confidence"], len(accepted)) if "confidence" in value else None,
    )


def _integer(name: str, value: Any, low: int, high: int = MAX_TOKENS) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name!r} must be an integer of {low} … {high}, got {value!r:.40}")
    return value


def _number(name: str, value: Any) -> float:
    number = type(value) in (int, float) and abs(value) <= LARGEST
    if not number or value < 0:
        raise ValueError(f"{name!r} must be a finite number of 0 or more, got {value!r:.40}")
    return float(value)


def _accepted_lengths(value: Any) -> list[int]:
    if not isinstance(value, list) or not value:
        raise ValueError("'accepted_lengths' must be a list with one integer per generated token")
    for position, length in enumerate(value):
        most = min(MAX_SPECULATIVE_TOKENS, len(value) - position)
        _integer(f"accepted_lengths[{position}]", length, 0, most)
    return value


def _confidence(value: Any, positions: int) -> np.ndarray[Any, Any]:
    """``[P, K, 4]`` from that nesting, or from an object with a ``[P, K]`` nesting per feature."""
    if isinstance(value, dict):
        if set(value) != set(LEVEL_FEATURES):
            raise ValueError(f"'confidence' must have exactly {', '.join(LEVEL_FEATURES)}")
        parts = [_box(f"confidence.{name}", value[name], 2) for name in LEVEL_FEATURES]
        if len({part.shape for part in parts}) > 1:
            raise ValueError("'confidence' must have lists of one shape, positions by depths")
        found = np.stack(parts, axis=-1)
    else:
        found = _box("confidence", value, 3)
    expected = (positions, found.shape[1], len(LEVEL_FEATURES))
    if found.shape != expected or not 1 <= found.shape[1] <= MAX_SPECULATIVE_TOKENS:
        raise ValueError(f"'confidence' has shape {list(found.shape)}, expected {positions} positions x K x 4 numbers")
    return found


def _box(name: str, value: Any, dimensions: int) -> np.ndarray[Any, Any]:
    try:
        found = np.asarray(value, dtype=None)
    except ValueError:
        found = np.empty(0)
    numbers = found.ndim == dimensions and found.dtype.kind in "if"
    if not numbers or not (np.abs(found) <= LARGEST).all():
        raise ValueError(f"{name!r} must be {dimensions} levels of lists of equal lengths with finite numbers")
    return found.astype(np.float32)


def _check_alike(requests: Sequence[ImportedRequest]) -> None:
    """The last request must have a confidence where the first has one, of the same depth."""
    first, last = requests[0].confidence, requests[-1].confidence
    if (first is None) != (last is None):
        raise ValueError("'confidence' must be on every line or on none")
    if first is not None and last is not None and first.shape[1] != last.shape[1]:
        raise ValueError(f"'confidence' has {last.shape[1]} depths, the first line has {first.shape[1]}")


def _trace(requests: Sequence[ImportedRequest], longest: int, source: str) -> Trace:
    categories = tuple(sorted({own.category for own in requests}))
    if len(categories) > 256:
        raise RecordingImportError(f"{source}: {len(categories)} categories, at most 256 are possible")
    confidences = [own.confidence for own in requests if own.confidence is not None]
    return Trace(
        max_num_speculative_tokens=longest,
        prompt_tokens=np.asarray([own.prompt_tokens for own in requests], dtype=np.int32),
        output_tokens=np.asarray([len(own.accepted_lengths) for own in requests], dtype=np.int32),
        accepted_length=np.concatenate([own.accepted_lengths for own in requests]).clip(max=longest).astype(np.uint8),
        temperature=np.asarray([own.temperature for own in requests], dtype=np.float32),
        category=np.asarray([categories.index(own.category) for own in requests], dtype=np.uint8),
        categories=categories,
        confidence=np.concatenate(confidences) if confidences else None,
        max_tokens=np.asarray([own.max_tokens for own in requests], dtype=np.int32),
        facts={"imported_from": source, "date": datetime.now(UTC).isoformat(timespec="seconds")},
    )


def split_requests(trace: Trace, train_share: float, seed: int) -> tuple[Trace, Trace]:
    """Training and evaluation requests, drawn by ``seed``; each has one at least."""
    if len(trace) < 2:
        raise RecordingImportError("a recording of one request cannot be split; two or more are needed")
    if not 0 < train_share < 1:
        raise RecordingImportError(f"train_share must be between 0 and 1, got {train_share}")
    count = int(np.clip(round(train_share * len(trace)), 1, len(trace) - 1))
    order = np.random.default_rng(seed).permutation(len(trace))
    return trace.select(np.sort(order[:count])), trace.select(np.sort(order[count:]))
