"""The README's figures are those of the committed results."""

from __future__ import annotations

import re

import pytest

from specpilot.benchmarks.readme import README, filled


def test_readme_states_what_the_results_hold() -> None:
    text = README.read_text()
    assert filled(text) == text, "run python benchmarks/readme.py"


def test_a_changed_figure_is_found() -> None:
    text = README.read_text()
    changed = re.sub(r"\| (\d\.\d\d)x", "| 9.99x", text, count=1)
    assert changed != text and filled(changed) == text


def test_missing_markers_are_named() -> None:
    with pytest.raises(ValueError, match="<!-- shipped pair -->"):
        filled(README.read_text().replace("<!-- shipped pair -->", ""))
