"""The vLLM benchmark's report: what is compared with what, and which aims count as reached."""

from __future__ import annotations

from typing import Any

import pytest

from specpilot.benchmarks.vllm_report import Scene, vllm_block
from specpilot.benchmarks.vllm_serving import VllmRun

SPEEDS = {
    "off": [100.0, 200.0],
    "plugin_off": [98.0, 194.0],
    "constant_1": [120.0, 220.0],
    "constant_4": [90.0, 400.0],
    "vllm_table": [100.0, 300.0],
    "controller": [180.0, 420.0],
}


def stored(speeds: dict[str, list[float]], is_open: bool = False, plugin: float = 0.001, own_text: int = 7) -> Any:
    """Two repeats of 100 tokens at these tokens per second; the controller's tokens are ``own_text``."""

    def run(arm: str, speed: float) -> dict[str, Any]:
        text = own_text if arm == "controller" else 7
        texts = ((text,) * 100,)
        return VllmRun(100 / speed, 400 / speed, 10, texts, plugin * 100 / speed).document()

    repeats = [{arm: run(arm, several[number]) for arm, several in speeds.items()} for number in range(2)]
    return {"is_open": is_open, "requests": 8, "repeats": repeats}


def document(**found: Any) -> dict[str, Any]:
    versions = {"vllm": "0.32.0"}
    return {"date": "2026-01-01", "hardware": "h", "git_revision": "g", "versions": versions, "scenarios": found}


def test_ratios_are_of_the_same_requests() -> None:
    scene = Scene.of("c=1", stored(SPEEDS))
    assert scene.best_constant == scene.best_of_both == "constant_4" and scene.same_texts
    assert [round(own, 6) for own in scene.ratios("controller", "constant_4")] == [2.0, 1.05]
    assert round(scene.ratio("controller", "off"), 6) == 1.95


def test_off_counts_where_every_constant_loses() -> None:
    scene = Scene.of("c=32", stored(SPEEDS | {"constant_1": [90, 180], "constant_4": [50, 100]}))
    assert scene.best_constant == "constant_1" and scene.best_of_both == "off"


def test_arrivals_are_judged_by_what_a_request_waits_for() -> None:
    found = Scene.of("bursts 1", stored(SPEEDS, is_open=True)).figures["off"]
    assert [round(own, 6) for own in found] == [25.0, 50.0]


@pytest.mark.parametrize(("controller", "met"), [(150.0, True), (100.0, False)])
def test_over_all_bursts_one_choice_has_to_do(controller: float, met: bool) -> None:
    little = {"off": [100.0] * 2, "constant_1": [200.0] * 2, "constant_4": [150.0] * 2, "controller": [190.0] * 2}
    much = {"off": [200.0] * 2, "constant_1": [90.0] * 2, "constant_4": [80.0] * 2, "controller": [controller] * 2}
    bursts = {f"bursts {load}": stored(own, is_open=True) for load, own in (("0.5", little), ("1", much))}
    # Off is the best of the fixed: (100 * 200) ** 0.5. At each load by itself the controller loses.
    text = vllm_block(document(**{name: with_rest(own) for name, own in bursts.items()}))
    ratio = (190 * controller / 100 / 200) ** 0.5
    assert f"for all bursts together: {ratio:.3f} (aim 1{'' if met else ', not reached'})" in text
    assert f"least: {min(190 / 200, controller / 200):.3f} (bursts 1; aim 1, not reached)" in text


def with_rest(own: dict[str, Any]) -> dict[str, Any]:
    """With what a table's row needs beside them."""
    for repeat in own["repeats"]:
        repeat |= {"plugin_off": repeat["off"], "vllm_table": repeat["off"]}
    return own


def test_what_falls_short_is_said() -> None:
    good = document(**{"c=1": stored(SPEEDS)})
    text = vllm_block(good)
    assert "not reached" not in text and "NO" not in text and "| requests: 1 | K = 4 |" in text
    slow = SPEEDS | {"controller": [81.0, 360.0], "plugin_off": [90.0, 180.0]}
    bad = {"c=2": stored(slow, plugin=0.02, own_text=8), "bursts 1": stored(slow, is_open=True)}
    text = vllm_block(document(**bad))
    assert text.count("not reached") == 5 and "without speculation: NO" in text


def test_nothing_measured_is_no_error() -> None:
    assert (
        vllm_block(document(**{"c=1": {"is_open": False, "requests": 8, "repeats": []}})) == "Nothing is measured yet."
    )
