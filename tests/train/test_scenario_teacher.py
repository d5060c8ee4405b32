"""The teacher of a scenario is the policy, unless one action is faster there on held-out requests."""

from __future__ import annotations

import numpy as np
import pytest

from specpilot.controllers import LengthTableController
from specpilot.controllers.action import FixedPolicy
from specpilot.controllers.priced import Action
from specpilot.envs.traffic import Traffic
from specpilot.tests.support.traces import random_trace, rich_surface
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig
from specpilot.train.scenario_teacher import ScenarioTeacher

SCENARIOS = (Traffic(concurrency=1), Traffic(concurrency=4))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> PpoConfig:
    record = tmp_path_factory.mktemp("record")
    random_trace(48).save(record / "train.npz")
    rich_surface().save(record / "cost_surface.json")
    return PpoConfig(
        str(record), "", SCENARIOS, lengths=(0, 2, 4), prices=(1.0,), planned_lengths=(4,), looks=(0, 1),
        max_num_seqs=4, evaluation_requests=6, evaluation_seeds=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def material(config: PpoConfig, tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material.prepare(config, tmp_path_factory.mktemp("run"))


def test_a_policy_that_is_never_beaten_teaches_everywhere(config: PpoConfig, material: Material) -> None:
    beaten = ScenarioTeacher(FixedPolicy(Action(0, 0.0)), config.tiers, material, config, 1)
    number = next(own for own in range(len(SCENARIOS)) if beaten.teacher(own) is not None)
    best = beaten.teacher(number)
    assert best is not None and set(best.tiers) <= set(config.tiers)
    same = ScenarioTeacher(best, config.tiers, material, config, 1)
    assert same.teacher(number) is None  # The best action does not beat itself.


def test_labels_are_the_fixed_action_where_it_teaches_and_the_policy_elsewhere(
    config: PpoConfig, material: Material
) -> None:
    policy = FixedPolicy(Action(4, 1.0))
    teaching = ScenarioTeacher(policy, config.tiers, material, config, 1)
    teaching.chosen = np.asarray([teaching.number[Action(2, 0.0)], -1])
    fleet = material.training_fleet(4, 0)
    for e in range(4):
        fleet.reset(e, scenario=e % 2)
    labels = [config.tiers[own] for own in teaching.labels(fleet).tolist()]
    assert labels == [Action(2, 0.0), Action(4, 1.0)] * 2
    assert teaching.teacher(1) is None


def test_a_table_teaches_by_how_many_requests_run(config: PpoConfig, material: Material) -> None:
    table = LengthTableController([(1, 1, 4), (2, None, 0)])
    teaching = ScenarioTeacher(FixedPolicy(Action(4, 1.0)), config.tiers, material, config, 1, table)
    teaching.chosen = np.full(len(SCENARIOS), len(config.tiers))
    fleet = material.training_fleet(4, 0)
    for e in range(4):
        fleet.reset(e, scenario=e % 2)
    labels = [config.tiers[own] for own in teaching.labels(fleet).tolist()]
    assert labels == [Action(4, 0.0), Action(0, 0.0)] * 2
    other = LengthTableController([(1, 1, 4), (2, None, 7)])
    without = ScenarioTeacher(FixedPolicy(Action(4, 1.0)), config.tiers, material, config, 1, other)
    assert len(without.simple) == len(config.tiers), "a length that is no tier cannot be taught"
