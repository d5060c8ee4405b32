"""The ablation's variants are settings of train/ppo.py, and its figures are those of the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from specpilot.benchmarks.ablation import VARIANTS, figures, markdown
from specpilot.benchmarks.measurement import ROOT
from specpilot.train.ppo_config import PpoConfig, from_mapping


def settings(name: str) -> PpoConfig:
    own = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    return from_mapping({**own, **VARIANTS[name]}, name)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_configuration_that_differs_in_what_it_says(name: str) -> None:
    full, own = settings("full"), settings(name)
    changed = {key for key in vars(full) if getattr(full, key) != getattr(own, key)}
    assert changed == set(VARIANTS[name])


def test_variants_without_a_kind_of_action_have_none_of_it() -> None:
    def kinds(name: str) -> set[tuple[bool, int]]:
        return {(action.price > 0, action.looks) for action in settings(name).tiers}

    constant, planned, looking = (False, 0), (True, 0), {(True, 1), (True, 2), (True, 3)}
    assert kinds("full") == {constant, planned, *looking}
    assert kinds("constant lengths alone") == {constant}
    assert kinds("no looks") == {constant, planned}


def test_figures_are_geometric_means_over_scenarios() -> None:
    def scenario(one: float, two: float) -> dict[str, object]:
        of = {"a #0": one, "a #1": two}
        return {"contenders": {name: {"relative_to_best_constant": {"median": own}} for name, own in of.items()}}

    found = figures({"x": scenario(1.0, 0.5), "y": scenario(4.0, 2.0)}, ["a #0", "a #1"])
    assert found["mean_of_each_seed"] == pytest.approx([2.0, 1.0])
    assert found["mean"] == pytest.approx(1.5) and found["least"] == 0.5
    assert "| a | 1.500 | 2.000, 1.000 | 0.500 |" in markdown({"a": found})


def test_the_configuration_that_is_varied_is_there() -> None:
    assert Path(ROOT / "configs/quickstart.yaml").is_file()
