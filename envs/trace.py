"""The trace format: a recording of a pair on texts, from which the outcome of any speculation length can be read.

One compressed NumPy file (``.npz``, never pickle), described with an example in ``docs/trace-format.md``.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..controllers import LEVEL_FEATURES

FORMAT = "specpilot trace"
SCHEMA_VERSION = 1
MAX_TOKENS = 2**24
"""Largest prompt or output that is believed; a file that claims more is refused."""


class TraceError(ValueError):
    """A recording cannot be read or contradicts itself; the message is one line with the file and the fix."""


@dataclass(frozen=True, eq=False)
class Trace:
    """``N`` requests with ``P`` start positions in all (one per generated token), drafts of up to ``K`` tokens.

    Position ``first[i] + j`` is the state of request i with j tokens generated.
    """

    max_num_speculative_tokens: int
    """K: the longest draft that was recorded."""
    prompt_tokens: NDArray[np.int32]
    """``[N]`` length of the prompt, 1 or more."""
    output_tokens: NDArray[np.int32]
    """``[N]`` length of the output, 1 or more."""
    accepted_length: NDArray[np.uint8]
    """``[P]`` how many tokens of a draft of K from here the target keeps; never more than the output still has."""
    temperature: NDArray[np.float32]
    """``[N]``."""
    category: NDArray[np.uint8]
    """``[N]`` index into ``categories``."""
    categories: tuple[str, ...] = ("unknown",)
    confidence: NDArray[np.float32] | None = None
    """``[P, K, 4]`` the drafter's confidence per depth, in the order of `LEVEL_FEATURES`; the draft runs on freely
    after a rejected token, as it would in the engine."""
    seed: NDArray[np.int64] | None = None
    """``[N]`` sampling seeds, to serve the same text again."""
    prompt_token_ids: NDArray[np.int32] | None = None
    """``[sum(prompt_tokens)]`` the prompts, to serve the same text again."""
    max_tokens: NDArray[np.int32] | None = None
    """``[N]`` what each request was allowed to generate, which bounds its drafts; None: the length of its output."""
    tokens_from_prefill: int = 0
    """Tokens that come out of the prefill, before a request's first round: 0 as in the embedded engine, 1 as in vLLM.
    No draft was recorded at these positions."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from: pair, split, engine, versions, date."""

    def __post_init__(self) -> None:
        check_trace(self)

    def __len__(self) -> int:
        return len(self.prompt_tokens)

    @property
    def first(self) -> NDArray[np.int64]:
        """``[N]`` index of each request's first position."""
        return np.cumsum(self.output_tokens, dtype=np.int64) - self.output_tokens

    @property
    def token_limit(self) -> NDArray[np.int32]:
        """``[N]`` ``max_tokens``, or the lengths of the outputs where it was not recorded."""
        return self.output_tokens if self.max_tokens is None else self.max_tokens

    def request_of_position(self) -> NDArray[np.int64]:
        """``[P]`` which request each position belongs to."""
        return np.repeat(np.arange(len(self)), self.output_tokens)

    def has_draft(self) -> NDArray[np.bool_]:
        """``[P]`` whether a draft was recorded there: nowhere before the prefill's tokens are out."""
        return np.arange(len(self.accepted_length)) - self.first[self.request_of_position()] >= self.tokens_from_prefill

    def prompt(self, request: int) -> list[int]:
        """Token ids of a prompt. Raises `TraceError` where the recording leaves them out."""
        if self.prompt_token_ids is None:
            raise TraceError("this recording holds no prompts; record with prompts to serve it live")
        end = int(np.cumsum(self.prompt_tokens, dtype=np.int64)[request])
        found: list[int] = self.prompt_token_ids[end - int(self.prompt_tokens[request]) : end].tolist()
        return found

    def select(self, requests: NDArray[np.integer[Any]] | NDArray[np.bool_]) -> Trace:
        """The recording of some requests only (indices or mask)."""
        chosen = np.arange(len(self))[requests]
        positions = _ranges(self.first[chosen], self.output_tokens[chosen])
        ids = self.prompt_token_ids
        if ids is not None:
            starts = np.cumsum(self.prompt_tokens, dtype=np.int64) - self.prompt_tokens
            ids = ids[_ranges(starts[chosen], self.prompt_tokens[chosen])]
        return replace(
            self,
            prompt_tokens=self.prompt_tokens[chosen],
            output_tokens=self.output_tokens[chosen],
            accepted_length=self.accepted_length[positions],
            temperature=self.temperature[chosen],
            category=self.category[chosen],
            confidence=None if self.confidence is None else self.confidence[positions],
            seed=None if self.seed is None else self.seed[chosen],
            prompt_token_ids=ids,
            max_tokens=None if self.max_tokens is None else self.max_tokens[chosen],
        )

    def save(self, path: str | Path) -> None:
        """Write the file under a temporary name, then rename it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "max_num_speculative_tokens": self.max_num_speculative_tokens,
            "level_features": list(LEVEL_FEATURES),
            "categories": list(self.categories),
            "tokens_from_prefill": self.tokens_from_prefill,
            "facts": dict(self.facts),
        }
        arrays = {name: getattr(self, name) for name in (*_REQUIRED, *_OPTIONAL) if getattr(self, name) is not None}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
        try:
            np.savez_compressed(temporary, header=np.asarray(json.dumps(header)), **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> Trace:
        """Read what `save` wrote. Raises `TraceError` naming the file and what is wrong with it."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                return _parse(archive)
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, NotImplementedError, TypeError) as error:
            problem = " ".join(str(error).split()) or type(error).__name__
        except Exception as error:  # zlib.error and whatever else a hostile archive provokes
            problem = f"is damaged ({type(error).__name__})"
        raise TraceError(f"{path}: {problem}; record again with train/record.py")


_REQUIRED = {
    "prompt_tokens": np.int32,
    "output_tokens": np.int32,
    "accepted_length": np.uint8,
    "temperature": np.float32,
    "category": np.uint8,
}
_OPTIONAL = {"confidence": np.float32, "seed": np.int64, "prompt_token_ids": np.int32, "max_tokens": np.int32}


def _ranges(starts: NDArray[Any], lengths: NDArray[Any]) -> NDArray[np.int64]:
    """The concatenated ranges ``starts[i] … starts[i] + lengths[i]``."""
    lengths = lengths.astype(np.int64)
    ends = np.cumsum(lengths)
    found: NDArray[np.int64] = np.arange(ends[-1] if len(ends) else 0) + np.repeat(starts - (ends - lengths), lengths)
    return found


def _parse(archive: Any) -> Trace:
    if not hasattr(archive, "files") or "header" not in archive.files:
        raise ValueError("is not a specpilot trace (it has no header)")
    header = json.loads(str(archive["header"]))
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"its header's 'format' is not {FORMAT!r}")
    if header.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(f"'schema_version' is {header.get('schema_version')!r}, this is {SCHEMA_VERSION}")
    if header.get("level_features") != list(LEVEL_FEATURES):
        raise ValueError(f"'level_features' must be {list(LEVEL_FEATURES)}, got {header.get('level_features')!r}")
    categories, facts = header.get("categories"), header.get("facts")
    if not isinstance(categories, list) or not all(isinstance(name, str) for name in categories):
        raise ValueError("'categories' must be a list of names")
    if not isinstance(facts, dict):
        raise ValueError("'facts' must be an object")
    arrays = {}
    for name, kind in {**_REQUIRED, **_OPTIONAL}.items():
        if name not in archive.files:
            if name in _REQUIRED:
                raise ValueError(f"lacks the array {name!r}")
            continue
        arrays[name] = archive[name]
        if arrays[name].dtype != kind:
            raise ValueError(f"{name!r} must be {np.dtype(kind).name}, got {arrays[name].dtype}")
    return Trace(
        max_num_speculative_tokens=header.get("max_num_speculative_tokens"),  # type: ignore[arg-type]
        categories=tuple(categories),
        tokens_from_prefill=header.get("tokens_from_prefill", 0),
        facts=facts,
        **arrays,
    )


def check_trace(trace: Trace) -> None:
    """Raise `TraceError` where a recording contradicts itself."""
    longest = trace.max_num_speculative_tokens
    if type(longest) is not int or not 1 <= longest <= 255:
        raise TraceError(f"max_num_speculative_tokens must be an integer of 1 … 255, got {longest!r}")
    _check_requests(trace)
    _check_positions(trace)


def _check_requests(trace: Trace) -> None:
    count = trace.prompt_tokens.size
    if count == 0:
        raise TraceError("a recording needs at least one request")
    for name in ("prompt_tokens", "output_tokens", "temperature", "category", "seed", "max_tokens"):
        value = getattr(trace, name)
        if value is not None and value.shape != (count,):
            raise TraceError(f"{name} has shape {value.shape}, expected one value for each of {count} requests")
    if type(trace.tokens_from_prefill) is not int or trace.tokens_from_prefill not in (0, 1):
        raise TraceError(f"tokens_from_prefill must be 0 or 1, got {trace.tokens_from_prefill!r}")
    if trace.output_tokens.min() <= trace.tokens_from_prefill:
        raise TraceError("an output has no token beyond those of the prefill; leave out requests that have no round")
    for name in ("prompt_tokens", "output_tokens"):
        value = getattr(trace, name)
        if value.min() < 1 or value.max() > MAX_TOKENS:
            raise TraceError(f"{name} must be 1 … {MAX_TOKENS}, got {value.min()} … {value.max()}")
    if (trace.token_limit < trace.output_tokens).any():
        raise TraceError("max_tokens is less than an output's length")
    if not np.isfinite(trace.temperature).all() or trace.temperature.min() < 0:
        raise TraceError("temperature must be finite and 0 or more")
    if trace.category.max() >= len(trace.categories):
        raise TraceError(f"category {trace.category.max()} has no name; there are {len(trace.categories)}")


def _check_positions(trace: Trace) -> None:
    longest, positions = trace.max_num_speculative_tokens, int(trace.output_tokens.sum(dtype=np.int64))
    if trace.accepted_length.shape != (positions,):
        raise TraceError(f"accepted_length has shape {trace.accepted_length.shape}, expected ({positions},)")
    ends = np.repeat(trace.first + trace.output_tokens, trace.output_tokens)
    if (trace.accepted_length > np.minimum(longest, ends - np.arange(positions))).any():
        raise TraceError("accepted_length goes beyond max_num_speculative_tokens or the end of an output")
    shape, confidence = (positions, longest, len(LEVEL_FEATURES)), trace.confidence
    if confidence is not None and confidence.shape != shape:
        raise TraceError(f"confidence has shape {confidence.shape}, expected {shape}")
    if confidence is not None and not np.isfinite(confidence).all():
        raise TraceError("confidence holds a number that is not finite")
    prompts = int(trace.prompt_tokens.sum(dtype=np.int64))
    if trace.prompt_token_ids is not None and trace.prompt_token_ids.shape != (prompts,):
        raise TraceError("prompt_token_ids must hold every prompt's tokens, one prompt after the other")
