"""The plugin's settings: what is read, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from specpilot.engine.vllm import VllmSettings


def test_defaults_configure_nothing() -> None:
    assert VllmSettings.read({}, {}) == VllmSettings()
    assert VllmSettings().controller is None


def test_environment_and_mapping_say_the_same() -> None:
    environment = {
        "SPECPILOT_CONTROLLER": "a/b.json",
        "SPECPILOT_LAZY_CATCH_UP": "0",
        "SPECPILOT_DWELL_STEPS": "9",
        "SPECPILOT_TIME_SHARE": "0.25",
        "SPECPILOT_TRIM": "",
        "SPECPILOT_TEST_PAIR": "not ours",
    }
    own = {"controller": "a/b.json", "lazy_catch_up": False, "dwell_steps": 9, "time_share": 0.25}
    wanted = VllmSettings(controller=Path("a/b.json"), lazy_catch_up=False, dwell_steps=9, time_share=0.25)
    assert VllmSettings.read({}, environment) == VllmSettings.read(own, {}) == wanted


def test_the_mapping_comes_before_the_environment() -> None:
    settings = VllmSettings.read({"dwell_steps": 2}, {"SPECPILOT_DWELL_STEPS": "9", "SPECPILOT_CONFIRM_STEPS": "4"})
    assert (settings.dwell_steps, settings.confirm_steps) == (2, 4)


@pytest.mark.parametrize(
    ("own", "environment", "named"),
    [
        ({"controler": "x"}, {}, "controler"),
        ({"trim": "perhaps"}, {}, "trim"),
        ({"trim": 0.5}, {}, "trim"),
        ({"dwell_steps": 1.5}, {}, "dwell_steps"),
        ({"dwell_steps": True}, {}, "dwell_steps"),
        ({"dwell_steps": -1}, {}, "dwell_steps"),
        ({"controller": 3}, {}, "controller"),
        ({"time_share": 1.5}, {}, "time_share"),
        ({"time_share": True}, {}, "time_share"),
        ({}, {"SPECPILOT_TIME_SHARE": "nan"}, "time_share"),
        ({}, {"SPECPILOT_TIME_SHARE": "little"}, "SPECPILOT_TIME_SHARE"),
        ({}, {"SPECPILOT_CONFIRM_STEPS": "soon"}, "SPECPILOT_CONFIRM_STEPS"),
        ({}, {"SPECPILOT_CONFIRM_STEPS": "0"}, "confirm_steps"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(
    own: dict[str, object], environment: dict[str, str], named: str
) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        VllmSettings.read(own, environment)
    assert "\n" not in str(caught.value)
