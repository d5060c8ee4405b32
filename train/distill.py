"""Distil a trained policy into small decision models: a tree, a tiny network, and a table from batch size to length.

    python train/distill.py --run runs/ppo/quickstart
    python train/distill.py --run runs/ppo/quickstart --student table    # only prints vLLM's --speculative-config

Dataset aggregation (DAgger, arXiv:1011.0686; for trees VIPER, arXiv:1805.08328): the student drives, the teacher says
what it would have done, and every state counts by what a wrong action costs in it, which replay can try out. The
teacher is PPO's policy, but where one action, or a table of constant lengths, serves a scenario faster it is that.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from specpilot.configs import ConfigError
from specpilot.controllers import LengthTableController
from specpilot.controllers.controller_file import load_controller, save_controller
from specpilot.controllers.policies import MlpPolicy, TreePolicy
from specpilot.controllers.priced import Action, Policy, PricedController
from specpilot.envs.traffic import Traffic
from specpilot.train.held_out import HeldOut
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig, from_mapping
from specpilot.train.run_record import run_record, write_json
from specpilot.train.scenario_teacher import ScenarioTeacher
from specpilot.train.student_fit import fit_mlp, fit_tree
from specpilot.train.vllm_table import KEY, TABLE, read_rows, speculative_config, vllm_rows
from specpilot.train.wrong_action import WrongActionCost

LEAST_WEIGHT = 0.02
"""Of a state in which no action seems to cost anything: what was tried is one draw of luck."""


@dataclass(frozen=True)
class DistillationConfig:
    """How much to collect and how small to be."""

    iterations: int = 4
    states: int = 3000
    """Per iteration."""
    max_leaf_nodes: int = 48
    hidden: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "states", "max_leaf_nodes", "hidden"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class Dataset:
    """States, the teacher's choices and what they are worth. ``N`` rows."""

    features: NDArray[np.float64]
    tier: NDArray[np.int64]
    weight: NDArray[np.float64]

    def with_rows(self, other: Dataset) -> Dataset:
        """Both."""
        return Dataset(
            np.concatenate([self.features, other.features]),
            np.concatenate([self.tier, other.tier]),
            np.concatenate([self.weight, other.weight]),
        )


class Distillation:
    """The teacher of one run, and the students made of it."""

    def __init__(self, run: Path, config: DistillationConfig) -> None:
        """Raises what the readers of the run's files raise."""
        self.run, self.config = run, config
        settings = json.loads((run / "results.json").read_text())["config"]
        self.ppo: PpoConfig = from_mapping({**settings, "output": str(run)}, str(run / "results.json"))
        self.material = Material.prepare(self.ppo, run)
        teacher = load_controller(run / "teacher", guard=False)
        if not isinstance(teacher, PricedController) or not isinstance(teacher.policy, MlpPolicy):
            raise ValueError(f"{run / 'teacher'} is not what train/ppo.py writes; train again")
        self.teacher = teacher
        self.tiers = tuple(teacher.policy.tiers)

    @cached_property
    def teaching(self) -> ScenarioTeacher:
        """Who labels the states."""
        seed = self.config.seed + 2
        return ScenarioTeacher(self.teacher.policy, self.tiers, self.material, self.ppo, seed, self.table)

    def collect(self, driver: Policy | None, number: int) -> Dataset:
        """States that ``driver`` (None: the teacher) comes to, labelled by the teacher."""
        fleet = self.material.training_fleet(seed=self.config.seed + 100 + number)
        cost = WrongActionCost(fleet, self.tiers, 12, self.config.seed + number)
        for e in range(fleet.num_envs):
            fleet.reset(e, scenario=e % len(self.ppo.scenarios))
        parts: list[Dataset] = []
        while sum(len(part.tier) for part in parts) < self.config.states:
            fleet.decide_now()
            features = fleet.observations.copy()
            tier = self.teaching.labels(fleet)
            weight = np.maximum(cost.of(tier), LEAST_WEIGHT)
            # What a constant is worth, staying off above all, shows only after some rounds.
            weight = np.where(self.teaching.chosen[fleet.scenario] >= 0, np.maximum(weight, weight.mean()), weight)
            parts.append(Dataset(features, tier, weight))
            for _ in range(max(4, self.ppo.hold)):  # Rounds in a row are alike.
                if driver is None:
                    actions = [self.tiers[own] for own in self.teaching.labels(fleet)]
                else:
                    actions = [driver.act(row) for row in fleet.observations]
                _, served, late = fleet.step(actions)
                for e in np.flatnonzero(served | late).tolist():
                    fleet.reset(e)
        whole = parts[0]
        for part in parts[1:]:
            whole = whole.with_rows(part)
        return whole

    def aggregate(self, fit: Callable[[Dataset], Policy]) -> tuple[Policy, Dataset]:
        """Teacher's states first, then the student's own, each time fitted to all."""
        data = self.collect(None, 0)
        student = fit(data)
        for number in range(1, self.config.iterations):
            data = data.with_rows(self.collect(student, number))
            student = fit(data)
        return student, data

    def speeds(self, policy: Policy) -> NDArray[np.float64]:
        """``[scenarios]`` tokens per request-second on held-out requests."""
        return np.median(self.material.held_out.of_policy(policy), axis=1)

    @cached_property
    def table(self) -> LengthTableController:
        """For each batch size the constant length that serves held-out requests fastest, mixed as in the recording.

        Batch sizes are powers of two up to the engine's slots; each row reaches to the next. A network cannot be put
        into such a table; the replay that it was trained in can.
        """
        own, rows = self.material, list[tuple[int, int | None, int]]()
        sizes = [2**power for power in range(12) if 2**power <= self.ppo.max_num_seqs]
        lengths = sorted({0, *self.ppo.lengths})
        traffic = [Traffic(concurrency=size) for size in sizes]
        held_out = HeldOut(
            own.held_out.fleet.trace,
            own.surface,
            own.predictor,
            traffic,
            own.engine,
            self.ppo.evaluation_requests,
            self.ppo.evaluation_seeds,
            self.config.seed,
        )
        speeds = np.stack([np.median(held_out.fixed(Action(length, 0.0)), axis=1) for length in lengths])
        for number, size in enumerate(sizes):
            high = sizes[number + 1] - 1 if number + 1 < len(sizes) else None
            rows.append((size, high, lengths[int(speeds[:, number].argmax())]))
        return LengthTableController(rows)

    def controller(self, policy: Policy) -> PricedController:
        """``policy`` with the run's predictor and costs."""
        own = self.material
        return PricedController(policy, own.predictor, own.surface, self.ppo.longest, hold=self.ppo.hold)

    def report(self, name: str, policy: Policy, data: Dataset, teacher: NDArray[np.float64]) -> dict[str, Any]:
        """Size, agreement with the teacher and tokens per second given up."""
        chosen = np.asarray([self.teaching.number[policy.act(row)] for row in data.features])
        speeds = self.speeds(policy)
        return {
            "student": name,
            "agreement": float(np.average(chosen == data.tier, weights=data.weight)),
            "speed_over_teacher": (speeds / teacher).tolist(),
            "mean_speed_over_teacher": float(np.mean(speeds / teacher)),
        }


def distil(run: Path, config: DistillationConfig) -> dict[str, Any]:
    """Make all students of a run and write them beside it; returns the report."""
    own = Distillation(run, config)
    teacher = own.speeds(own.teacher.policy)
    used_tiers = own.tiers
    tree, data = own.aggregate(
        lambda rows: fit_tree(rows.features, rows.tier, rows.weight, used_tiers, config.max_leaf_nodes, config.seed)
    )
    mlp, seen = own.aggregate(
        lambda rows: fit_mlp(
            rows.features, rows.tier, rows.weight, used_tiers, own.material.normaliser, config.hidden, config.seed
        )
    )
    assert isinstance(tree, TreePolicy)
    students = run / "students"
    reports = []
    for name, policy, rows in (("tree", tree, data), ("mlp", mlp, seen)):
        path = students / ("tree.json" if name == "tree" else name)
        report = own.report(name, policy, rows, teacher)
        written = save_controller(own.controller(policy), path, {"kind": f"student of {run.name}", **report})
        size = sum(file.stat().st_size for file in (path.iterdir() if path.is_dir() else [written]))
        reports.append({**report, "bytes": size, "path": str(path)})
    table = own.table
    save_controller(table, students / "table.json", {"kind": f"student of {run.name}"})
    vllm = vllm_rows(table.table)
    write_json(students / TABLE, {KEY: vllm})
    (students / "tree.txt").write_text(tree.text())
    draw_tree(tree, students / "tree.png")
    teachers = {traffic.label: own.teaching.teacher(number) for number, traffic in enumerate(own.ppo.scenarios)}
    taught = {label: None if teacher is None else str(teacher) for label, teacher in teachers.items()}
    result = run_record(config, seed=config.seed, run=str(run), students=reports, table=vllm, taught_by=taught)
    write_json(students / "report.json", result)
    return result


def vllm_config(run: Path, config: DistillationConfig) -> dict[str, Any]:
    """vLLM's ``--speculative-config`` with the run's table, which is made and written where it is not there yet."""
    students = run / "students"
    if not (students / TABLE).is_file():
        students.mkdir(parents=True, exist_ok=True)
        write_json(students / TABLE, {KEY: vllm_rows(Distillation(run, config).table.table)})
    settings = json.loads((run / "results.json").read_text())["config"]
    return speculative_config(read_rows(students), settings.get("drafter", PpoConfig.drafter))


def draw_tree(tree: TreePolicy, path: Path) -> None:
    """A picture of the first levels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = tree.text().splitlines()
    shown = [line for line in lines if (len(line) - len(line.lstrip())) // 2 <= 5][:70]
    figure = pyplot.figure(figsize=(9, 0.2 * len(shown) + 0.5))
    figure.text(0.02, 0.98, "\n".join(shown), va="top", family="monospace", fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="folder that train/ppo.py wrote")
    parser.add_argument(
        "--student",
        choices=("all", "table"),
        default="all",
        help="table: print the table from batch size to length as vLLM's --speculative-config, and nothing else",
    )
    for name, default in vars(DistillationConfig()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    options = vars(parser.parse_args(arguments))
    run, student = options.pop("run"), options.pop("student")
    try:
        if student == "table":
            print(json.dumps(vllm_config(run, DistillationConfig(**options))))
            return 0
        result = distil(run, DistillationConfig(**options))
    except (ConfigError, ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for report in result["students"]:
        print(
            f"{report['student']:<6} {report['bytes']:>8} bytes   agreement {report['agreement']:.2f}   "
            f"speed over the teacher's {report['mean_speed_over_teacher']:.3f} "
            f"({min(report['speed_over_teacher']):.3f} at least)"
        )
    print(f"table  {result['table']}")
    print(f"students: {run / 'students'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
