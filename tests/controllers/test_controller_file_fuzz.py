"""A damaged controller file gives a controller that works or one clear error, nothing else: seeded mutations."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specpilot.controllers import (
    Action,
    ConstantController,
    Controller,
    ControllerFileError,
    FixedPolicy,
    LengthTableController,
    load_controller,
    save_controller,
)
from specpilot.tests.support.priced import controller, play, random_mlp, random_predictor, random_state, random_tree

COUNT = 1000
"""Mutations of each kind of file, and of the weights."""
SMALL: dict[str, Any] = {"max_batch": 2, "max_context": 32, "max_num_speculative_tokens": 4}
MAKERS: dict[str, Callable[[], Controller]] = {
    "tree": lambda: controller(random_tree(1, 5), predictor=random_predictor(hidden=1), **SMALL),
    "mlp": lambda: controller(random_mlp(1, hidden=2), predictor=random_predictor(hidden=1), **SMALL),
    "fixed": lambda: controller(FixedPolicy(Action(4, 1.0)), predictor=random_predictor(hidden=1), **SMALL),
    "table": lambda: LengthTableController([(1, 4, 5), (5, None, 2)]),
    "constant": lambda: ConstantController(3),
}
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 4096, 2**31, 2**63, -(2**70), 10**400, 0.5, -0.0, 1e-320, 1e308, -1e308,
    "", "1", "nan", "__class__", "x" * 5000, [], [[]], [1], ["a"], [None] * 3, {}, {"a": 1},
)  # fmt: skip


def paths(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, but of a list only its first entries."""
    entries = list(document.items() if isinstance(document, dict) else enumerate(document[:3]))
    for key, inside in entries:
        yield (*at, key)
        if isinstance(inside, dict | list):
            yield from paths(inside, (*at, key))


def swapped(data: bytes, rng: np.random.Generator) -> bytes:
    """Another value, no value, or a key twice, at a random place."""
    document = json.loads(data)
    places = list(paths(document))
    place = places[int(rng.integers(len(places)))]
    inside = document
    for key in place[:-1]:
        inside = inside[key]
    what = int(rng.integers(8))
    if what == 0:
        del inside[place[-1]]
    elif what == 1 and isinstance(inside, dict):
        marker = "\\u0000twice"
        inside[marker] = inside[place[-1]]
        return json.dumps(document).replace(json.dumps(marker), json.dumps(place[-1])).encode()
    elif what == 2 and isinstance(inside, list):
        inside.append(inside[place[-1]])
    else:
        inside[place[-1]] = VALUES[int(rng.integers(len(VALUES)))]
    return json.dumps(document).encode()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flipped bytes, a cut, a hole, a repetition or an insertion."""
    start, stop = sorted(rng.integers(0, len(data) + 1, 2).tolist())
    what = int(rng.integers(6))
    if what == 0:
        return data[:start]
    if what == 1:
        return data[:start] + data[stop:]
    if what == 2:
        return data[:stop] + data[start:]
    if what == 3:
        return data[:start] + rng.bytes(int(rng.integers(1, 20))) + data[start:]
    changed = bytearray(data)
    for at in rng.integers(0, len(data), int(rng.integers(1, 4))):
        changed[at] = rng.integers(256) if what == 4 else changed[at] ^ (1 << int(rng.integers(8)))
    return bytes(changed)


def reheaded(data: bytes, rng: np.random.Generator) -> bytes:
    """Safetensors with a header that says something else, of the length it says or of another."""
    (size,) = struct.unpack("<Q", data[:8])
    header = swapped(data[8 : 8 + size], rng)
    told = len(header) if rng.random() < 0.8 else int(rng.choice([0, 1, 7, 2**20, 2**40, 2**63 - 1]))
    return struct.pack("<Q", told) + header + data[8 + size :]


def attempt(path: Path) -> bool:
    """Load and, if that goes, play; False where the file is refused."""
    try:
        loaded = load_controller(path, guard=False)
    except ControllerFileError as error:
        assert str(path) in str(error) and "\n" not in str(error) and len(str(error)) < 700
        return False
    rng = np.random.default_rng(0)
    for batch in (1, 3):
        state = random_state(batch, rng)
        lengths = loaded.decide(state).num_speculative_tokens
        assert lengths.shape == (batch,) and lengths.dtype.kind == "i" and (lengths >= 0).all()
        play(loaded, state, rng)
    return True


@pytest.mark.parametrize("mutate", [swapped, damaged])
@pytest.mark.parametrize("kind", MAKERS)
def test_a_damaged_file_is_a_controller_or_a_clear_error(
    kind: str, mutate: Callable[[bytes, np.random.Generator], bytes], tmp_path: Path
) -> None:
    file = save_controller(MAKERS[kind](), tmp_path / "own", {"seed": 1})
    data, refused = file.read_bytes(), 0
    assert attempt(tmp_path / "own")
    for trial in range(COUNT // 2):
        file.write_bytes(mutate(data, np.random.default_rng((trial, len(kind)))))
        refused += not attempt(tmp_path / "own")
    assert COUNT / 5 < refused < COUNT / 2  # some damage is harmless: facts, a digit


@pytest.mark.parametrize("mutate", [reheaded, damaged])
def test_damaged_weights_are_weights_or_a_clear_error(
    mutate: Callable[[bytes, np.random.Generator], bytes], tmp_path: Path
) -> None:
    save_controller(MAKERS["mlp"](), tmp_path / "own")
    file, refused = tmp_path / "own/weights.safetensors", 0
    data = file.read_bytes()
    for trial in range(COUNT // 2):
        file.write_bytes(mutate(data, np.random.default_rng(trial)))
        refused += not attempt(tmp_path / "own")
    assert COUNT / 5 < refused < COUNT / 2
