"""A controller's file gives back a controller that decides the same, or one clear error."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import specpilot
from specpilot.controllers import (
    Action,
    ConstantController,
    Controller,
    ControllerFileError,
    CostSurface,
    FixedPolicy,
    GuardedController,
    LengthTableController,
    PricedController,
    UniformOracle,
    load_controller,
    save_controller,
)
from specpilot.controllers.controller_file import compact
from specpilot.controllers.observation import FEATURES
from specpilot.tests.support.priced import controller, play, random_mlp, random_state, random_tree
from specpilot.tests.support.rounds import compute_bound, memory_bound

MAKERS: dict[str, Callable[[], Controller]] = {
    "tree": lambda: controller(random_tree(1)),
    "mlp": lambda: controller(random_mlp(1)),
    "fixed": lambda: controller(FixedPolicy(Action(6, 1.5))),
    "table": lambda: LengthTableController([(1, 4, 5), (5, None, 2)]),
    "constant": lambda: ConstantController(3),
}


def rounds(own: Controller) -> list[tuple[list[int], ...]]:
    rng = np.random.default_rng(5)
    return [play(own, random_state(1 + number % 8, rng), rng, 0.7) for number in range(40)]


@pytest.mark.parametrize("kind", MAKERS)
def test_what_was_saved_decides_the_same_when_loaded(kind: str, tmp_path: Path) -> None:
    made = MAKERS[kind]()
    file = save_controller(made, tmp_path / "own", {"seed": 1})
    document = json.loads(file.read_text())
    assert document["kind"] == kind and document["facts"] == {"seed": 1}
    loaded = load_controller(tmp_path / "own", guard=False)
    assert type(loaded) is type(made)
    assert rounds(loaded) == rounds(MAKERS[kind]())
    assert sorted(path.name for path in tmp_path.rglob("*")) == (
        ["controller.json", "own", "weights.safetensors"] if kind == "mlp" else ["own"]
    )


def test_saving_what_was_loaded_writes_the_same_bytes(tmp_path: Path) -> None:
    first = save_controller(MAKERS["tree"](), tmp_path / "first.json")
    second = save_controller(load_controller(first), tmp_path / "second.json")
    assert first.read_bytes() == second.read_bytes() and first.stat().st_size < 20_000


def test_the_package_loads_controllers_and_guards_them(tmp_path: Path) -> None:
    path = save_controller(MAKERS["tree"](), tmp_path / "tree.json")
    fallback = ConstantController(2)
    loaded = specpilot.load_controller(path, fallback=fallback)
    assert isinstance(loaded, GuardedController) and loaded.fallback is fallback
    assert isinstance(loaded.inner, PricedController)


def test_constant_lengths_load_no_compiler(tmp_path: Path) -> None:
    policy = FixedPolicy(Action(3, 0.0))
    path = save_controller(controller(policy), tmp_path / "constant.json")
    code = "import sys, specpilot; specpilot.load_controller(sys.argv[1]); print('numba' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


NUMPY_ALONE = """
import sys
sys.modules["numba"] = None
import specpilot
specpilot.load_controller(sys.argv[1])
print([name for name in ("torch", "gymnasium", "transformers", "yaml", "sklearn", "scipy") if name in sys.modules])
from specpilot.controllers import round_kernel
print(type(round_kernel.look).__name__)
"""


def test_loading_needs_nothing_but_numpy(tmp_path: Path) -> None:
    path = save_controller(MAKERS["mlp"](), tmp_path / "mlp")
    command = [sys.executable, "-c", NUMPY_ALONE, str(path.parent)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert found.stdout.split("\n")[:2] == ["[]", "function"]


def test_the_compact_surface_has_the_same_seconds() -> None:
    surface = memory_bound()
    noisy = {
        kind: replace(costs, samples=costs.samples * np.asarray([0.9, 1.0, 1.3]))
        for kind, costs in surface.costs.items()
    }
    own = replace(surface, costs=noisy)
    small = compact(own)
    for kind in own.costs:
        batch, tokens, context = np.meshgrid([1, 3, 9], [1, 2, 30], [1, 64, 900])
        np.testing.assert_array_equal(
            small.seconds(kind, batch, tokens, context), own.seconds(kind, batch, tokens, context)
        )
        assert small.costs[kind].samples.shape[-1] == 1
    assert small.fingerprint == own.fingerprint


def test_this_machines_costs_replace_those_of_the_file_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_controller(MAKERS["fixed"](), tmp_path / "own.json")
    here = replace(compute_bound(), fields={**compute_bound().fields, "hardware": "slide rule"})
    here.save(tmp_path / "surface.json")
    with caplog.at_level(logging.WARNING):
        for surface in (here, tmp_path / "surface.json", str(tmp_path / "surface.json")):
            loaded = load_controller(path, surface, guard=False)
            assert isinstance(loaded, PricedController) and loaded.surface == here
    (record,) = caplog.records
    assert here.fingerprint in record.getMessage() and memory_bound().fingerprint in record.getMessage()
    caplog.clear()
    load_controller(path, memory_bound())
    assert not caplog.records


def test_a_feature_that_this_version_lacks_is_named(tmp_path: Path) -> None:
    path = save_controller(MAKERS["tree"](), tmp_path / "own.json")
    document = json.loads(path.read_text())
    document["features"][1]["name"] = "moon_phase"
    path.write_text(json.dumps(document))
    with pytest.raises(ControllerFileError, match=r"own\.json: .*'moon_phase'"):
        load_controller(path)


def edited(path: tuple[Any, ...], value: Any) -> Callable[[dict[str, Any]], str]:
    def edit(document: dict[str, Any]) -> str:
        inside: Any = document
        for key in path[:-1]:
            inside = inside[key]
        inside[path[-1]] = value
        return json.dumps(document)

    return edit


BAD_FILES: dict[str, tuple[Callable[[dict[str, Any]], str], str]] = {
    "no JSON": (lambda document: "import os", "is not JSON"),
    "truncated": (lambda document: json.dumps(document)[:-40], "is not JSON"),
    "a list": (lambda document: "[]", "not a JSON object"),
    "nested deeply": (lambda document: '{"facts":' * 100_000 + "1" + "}" * 100_000, "is nested too deeply"),
    "NaN": (lambda document: json.dumps(document).replace("1.0", "NaN", 1), "holds NaN"),
    "a key twice": (lambda document: json.dumps(document)[:-1] + ', "kind": "tree"}', "'kind' is given twice"),
    "foreign": (edited(("format",), "specpilot cost surface"), "'format' is not"),
    "of the future": (edited(("schema_version",), 9), "'schema_version' is 9"),
    "version a truth value": (edited(("schema_version",), True), "'schema_version' is True"),
    "of no kind": (edited(("kind",), "pickle"), "'kind' must be one of"),
    "kind a list": (edited(("kind",), ["tree"]), "'kind' must be one of"),
    "of another kind": (edited(("kind",), "constant"), "lacks 'num_speculative_tokens'"),
    "an unknown field": (edited(("hook",), "os.system"), "unknown field 'hook'"),
    "facts no object": (edited(("facts",), 3), "'facts' must be an object"),
    "another unit": (edited(("features", 0, "unit"), "furlongs"), "'furlongs'"),
    "a tier too long": (edited(("tiers", 0, "max_length"), 256), r"tiers\[0\].max_length"),
    "looks a truth value": (edited(("tiers", 1, "looks"), True), r"tiers\[1\].looks"),
    "a price below 0": (edited(("tiers", 1, "price"), -1), r"tiers\[1\].price"),
    "a million tiers": (edited(("tiers",), [{"max_length": 1, "price": 1}] * 10**5), "'tiers' must be a list of at"),
    "a cycle": (edited(("policy", "left", 0), 0), "'left' of node 0"),
    "a child out of range": (edited(("policy", "right", 0), 999), "'right' of node 0"),
    "a threshold of letters": (edited(("policy", "threshold", 0), "1"), r"policy.threshold\[0\]"),
    "a huge integer": (edited(("policy", "threshold", 0), 10**400), r"policy.threshold\[0\]"),
    "a tree of another shape": (edited(("policy", "tier"), [0]), "one length"),
    "a huge table": (edited(("limits", "max_context"), 2**20), "cost table of"),
    "no predictor": (edited(("predictor",), None), "'predictor': 'format'"),
    "a surface of zeros": (edited(("cost_surface", "kinds", "verify", "samples", 0, 0, 0, 0), 0), "cost_surface"),
    "a surface out of reach": (
        edited(("cost_surface", "kinds", "verify", "samples", 0, 0, 0, 0), 1e308),
        "cost_surface",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_wrong_with_a_file_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    edit, message = BAD_FILES[name]
    path = save_controller(MAKERS["tree"](), tmp_path / "own.json")
    path.write_text(edit(json.loads(path.read_text())))
    with pytest.raises(ControllerFileError, match=message) as caught:
        load_controller(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    huge = tmp_path / "huge.json"
    with huge.open("wb") as file:
        file.truncate(65 * 2**20)
    for path, message in (
        (huge, "bytes"),
        (tmp_path / "absent.json", "No such file"),
        (tmp_path, "No such file"),
        (Path("/dev/zero"), "not a regular file"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(ControllerFileError, match=message):
            load_controller(path)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_controller(controller(random_mlp(1)), tmp_path / "one")
    save_controller(controller(random_mlp(1, hidden=6)), tmp_path / "other")
    (tmp_path / "one/weights.safetensors").write_bytes((tmp_path / "other/weights.safetensors").read_bytes())
    with pytest.raises(ControllerFileError, match=r"layer_0\.bias.*shape \[5\], got \[6\]"):
        load_controller(tmp_path / "one")
    (tmp_path / "one/weights.safetensors").unlink()
    with pytest.raises(ControllerFileError, match=r"weights\.safetensors.*No such file"):
        load_controller(tmp_path / "one")


def test_a_controller_of_another_kind_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(ControllerFileError, match="UniformOracle"):
        save_controller(UniformOracle.__new__(UniformOracle), tmp_path / "own.json")
    with pytest.raises(ControllerFileError, match="'facts'"):
        save_controller(ConstantController(1), tmp_path / "own.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_file_says_which_features_it_reads_and_in_which_units(tmp_path: Path) -> None:
    path = save_controller(MAKERS["tree"](), tmp_path / "own.json")
    known = {feature.name: feature for feature in FEATURES}
    document = json.loads(path.read_text())
    assert [entry["name"] for entry in document["features"]] == list(random_tree(1).feature_names)
    for entry in document["features"]:
        own = known[entry["name"]]
        assert (entry["unit"], entry["low"], entry["high"]) == (own.unit, own.low, own.high)
    assert isinstance(load_controller(path, guard=False), PricedController)
    assert CostSurface._parse(document["cost_surface"]).fingerprint == memory_bound().fingerprint
