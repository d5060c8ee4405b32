"""The trace format: what is saved comes back, parts can be selected, and files that are not right are refused."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.envs.trace import Trace, TraceError

ARRAYS = ("prompt_tokens", "output_tokens", "accepted_length", "temperature", "category")
OPTIONAL = ("confidence", "seed", "prompt_token_ids", "max_tokens")


def make_trace(seed: int = 0, count: int = 5, depth: int = 3, given: int = 0) -> Trace:
    rng = np.random.default_rng(seed)
    prompts, outputs = rng.integers(1, 9, size=count), rng.integers(1 + given, 12, size=count)
    left = np.concatenate([np.arange(length, 0, -1) for length in outputs])
    return Trace(
        max_num_speculative_tokens=depth,
        prompt_tokens=prompts.astype(np.int32),
        output_tokens=outputs.astype(np.int32),
        accepted_length=np.minimum(left, rng.integers(0, depth + 1, size=len(left))).astype(np.uint8),
        temperature=rng.choice([0.0, 0.6], size=count).astype(np.float32),
        category=rng.integers(0, 2, size=count).astype(np.uint8),
        categories=("code", "prose"),
        confidence=rng.normal(size=(len(left), depth, 4)).astype(np.float32),
        seed=rng.integers(2**62, size=count),
        prompt_token_ids=rng.integers(100, size=prompts.sum()).astype(np.int32),
        max_tokens=(outputs + 3).astype(np.int32),
        tokens_from_prefill=given,
        facts={"pair": "none"},
    )


TRACE_POSITIONS = len(make_trace().accepted_length)


def assert_equal(first: Trace, second: Trace) -> None:
    for own in fields(Trace):
        a, b = getattr(first, own.name), getattr(second, own.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b


@pytest.mark.parametrize("given", [0, 1])
def test_a_saved_trace_loads_as_it_was(tmp_path: Path, given: int) -> None:
    trace = make_trace(given=given)
    trace.save(tmp_path / "own.npz")
    assert_equal(trace, Trace.load(tmp_path / "own.npz"))
    assert [path.name for path in tmp_path.iterdir()] == ["own.npz"]


def test_the_optional_arrays_may_be_absent(tmp_path: Path) -> None:
    trace = replace(make_trace(), **dict.fromkeys(OPTIONAL))
    trace.save(tmp_path / "own.npz")
    assert_equal(trace, Trace.load(tmp_path / "own.npz"))
    np.testing.assert_array_equal(trace.token_limit, trace.output_tokens)
    with pytest.raises(TraceError, match="holds no prompts"):
        trace.prompt(0)


def test_a_selection_holds_each_requests_own_positions_and_prompt() -> None:
    trace = make_trace()
    chosen = trace.select(np.asarray([3, 1]))
    assert len(chosen) == 2
    for new, old in ((0, 3), (1, 1)):
        assert chosen.prompt(new) == trace.prompt(old)
        for name in ("accepted_length", "confidence"):
            parts = [
                getattr(own, name)[own.request_of_position() == index] for own, index in ((chosen, new), (trace, old))
            ]
            np.testing.assert_array_equal(*parts)
        for name in ("seed", "max_tokens", "category", "temperature"):
            assert getattr(chosen, name)[new] == getattr(trace, name)[old]
    assert_equal(trace.select(np.asarray([True, False, True, False, False])), trace.select(np.asarray([0, 2])))


def test_no_draft_is_recorded_where_the_prefill_gives_the_token() -> None:
    for given in (0, 1):
        trace = make_trace(given=given)
        without = np.flatnonzero(~trace.has_draft())
        np.testing.assert_array_equal(without, trace.first if given else [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens_from_prefill": 2}, "tokens_from_prefill must be 0 or 1, got 2"),
        ({"tokens_from_prefill": True}, "tokens_from_prefill must be 0 or 1, got True"),
        ({"tokens_from_prefill": 1, "output_tokens": np.ones(5, np.int32)}, "no token beyond those of the prefill"),
        ({"prompt_tokens": np.zeros(5, np.int32)}, "prompt_tokens must be 1"),
        ({"output_tokens": np.ones(4, np.int32)}, "output_tokens has shape"),
        ({"accepted_length": np.zeros(3, np.uint8)}, "accepted_length has shape"),
        ({"accepted_length": np.full(TRACE_POSITIONS, 2, np.uint8)}, "goes beyond .* the end"),
        ({"temperature": np.full(5, np.nan, np.float32)}, "temperature must be finite"),
        ({"category": np.full(5, 2, np.uint8)}, "category 2 has no name"),
        ({"confidence": np.zeros((2, 3, 4), np.float32)}, "confidence has shape"),
        ({"confidence": np.full((TRACE_POSITIONS, 3, 4), np.inf, np.float32)}, "not finite"),
        ({"max_tokens": np.zeros(5, np.int32)}, "max_tokens is less"),
        ({"prompt_token_ids": np.zeros(1, np.int32)}, "every prompt's tokens"),
        ({"max_num_speculative_tokens": 0}, "1 … 255"),
    ],
)
def test_a_trace_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        replace(make_trace(), **change)


def rewritten(path: Path, change: dict[str, Any]) -> Path:
    """The trace at ``path`` with members replaced (None: left out), written as anyone could."""
    with np.load(path) as archive:
        members = {name: archive[name] for name in archive.files}
    members = {name: value for name, value in {**members, **change}.items() if value is not None}
    np.savez_compressed(path, allow_pickle=True, **members)
    return path


@pytest.mark.parametrize("name", ARRAYS)
def test_a_missing_array_and_a_wrong_type_are_named(tmp_path: Path, name: str) -> None:
    make_trace().save(tmp_path / "own.npz")
    values = getattr(make_trace(), name)
    for change, message in (({name: None}, "lacks"), ({name: values.astype(np.float64)}, "must be")):
        make_trace().save(tmp_path / "own.npz")
        with pytest.raises(TraceError, match=rf"own\.npz: .*{message}.*record again|own\.npz: .*{name}"):
            Trace.load(rewritten(tmp_path / "own.npz", change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "'format'"),
        ({"schema_version": 2}, "'schema_version' is 2"),
        ({"level_features": ["entropy"]}, "'level_features'"),
        ({"categories": "code"}, "'categories'"),
        ({"facts": []}, "'facts'"),
        ({"max_num_speculative_tokens": "8"}, "max_num_speculative_tokens"),
    ],
)
def test_a_wrong_header_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make_trace().save(tmp_path / "own.npz")
    with np.load(tmp_path / "own.npz") as archive:
        header = json.loads(str(archive["header"]))
    with pytest.raises(TraceError, match=message):
        Trace.load(rewritten(tmp_path / "own.npz", {"header": np.asarray(json.dumps({**header, **change}))}))


class Payload:
    """Its unpickling would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["header", "accepted_length", "seed"])
def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, name: str) -> None:
    make_trace().save(tmp_path / "own.npz")
    hostile = np.asarray([Payload(tmp_path / "ran")], dtype=object)
    with pytest.raises(TraceError):
        Trace.load(rewritten(tmp_path / "own.npz", {name: hostile}))
    assert not (tmp_path / "ran").exists()


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    make_trace().save(tmp_path / "own.npz")
    data = (tmp_path / "own.npz").read_bytes()
    for size in range(0, len(data), 97):
        (tmp_path / "cut.npz").write_bytes(data[:size])
        with pytest.raises(TraceError, match=r"cut\.npz"):
            Trace.load(tmp_path / "cut.npz")


def test_flipped_bytes_give_a_trace_error_or_a_valid_trace(tmp_path: Path) -> None:
    make_trace().save(tmp_path / "own.npz")
    data = (tmp_path / "own.npz").read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(len(data), size=3):
            damaged[position] ^= int(rng.integers(1, 256))
        (tmp_path / "bad.npz").write_bytes(bytes(damaged))
        try:
            Trace.load(tmp_path / "bad.npz")
        except TraceError:
            refused += 1
    assert refused > 200


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    make_trace().save(tmp_path / "own.npz")
    member = io.BytesIO()
    np.lib.format.write_array_header_1_0(member, {"descr": "<i4", "fortran_order": False, "shape": (2**60,)})
    with zipfile.ZipFile(tmp_path / "own.npz") as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    for size in (b"", b"\0" * 64):
        with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
            for name, data in {**parts, "prompt_tokens.npy": member.getvalue() + size}.items():
                archive.writestr(name, data)
        with pytest.raises(TraceError, match=r"huge\.npz"):
            Trace.load(tmp_path / "huge.npz")
    long_header = np.lib.format.magic(2, 0) + (2**31 - 1).to_bytes(4, "little") + b"{"
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        for name, data in {**parts, "prompt_tokens.npy": long_header}.items():
            archive.writestr(name, data)
    with pytest.raises(TraceError, match=r"huge\.npz"):
        Trace.load(tmp_path / "huge.npz")


@pytest.mark.parametrize("content", [b"", b"PK", b"{}", b"\x93NUMPY", b"\x80\x04N."])
def test_files_that_are_no_archive_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "own.npz").write_bytes(content)
    with pytest.raises(TraceError, match=r"own\.npz"):
        Trace.load(tmp_path / "own.npz")
    with pytest.raises(TraceError, match="No such file"):
        Trace.load(tmp_path / "none.npz")


def test_the_documents_example_reads_a_trace_with_numpy_alone(tmp_path: Path) -> None:
    make_trace().save(tmp_path / "train.npz")
    text = (Path(__file__).parents[2] / "docs" / "trace-format.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    trace = make_trace()
    assert done.stdout.splitlines()[0] == "3 tokens a draft"
    assert done.stdout.splitlines()[1] == f"request 0: {trace.accepted_length[: trace.output_tokens[0]]}"
