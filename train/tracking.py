"""Weights & Biases where it is asked for; nothing where it is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specpilot.train.held_out import Act
from specpilot.train.run_record import git_revision

if TYPE_CHECKING:
    from specpilot.train.material import Material


class Tracker:
    """Does nothing: the tracker of a run that asks for none."""

    @staticmethod
    def start(tracking: str, config: Any, output: Path, job_type: str = "train") -> Tracker:
        """``tracking``: ``none`` or ``wandb``. Raises ValueError where wandb is asked for and not installed."""
        if tracking == "none":
            return Tracker()
        try:
            import wandb
        except ImportError:
            raise ValueError("tracking: wandb needs the package; pip install wandb, or set tracking: none") from None
        run = wandb.init(
            project=config.wandb_project,
            dir=str(output),
            job_type=job_type,
            group=Path(config.output).name,
            config={**dataclasses.asdict(config), "git_revision": git_revision()},
        )
        return WandbTracker(run)

    def log(self, values: dict[str, float], step: int) -> None:
        """Log numbers at a step."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def finish(self, output: Path, material: Material | None = None, act: Act | None = None) -> None:
        """Log what came of the run and end it."""


class WandbTracker(Tracker):
    """Logs to one W&B run: curves, evaluation table, plot of length over load, checkpoint as artifact."""

    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, values: dict[str, float], step: int) -> None:
        """See `Tracker.log`."""
        self.run.log(values, step=step)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See `Tracker.table`."""
        import wandb

        self.run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, output: Path, material: Material | None = None, act: Act | None = None) -> None:
        """See `Tracker.finish`."""
        import wandb

        if material is not None and act is not None:
            rows = length_over_load(material, act)
            self.table("length_over_load", ("decoding", "length", "price"), rows)
            points = wandb.Table(columns=["decoding", "length"], data=[row[:2] for row in rows])
            plot = wandb.plot.scatter(points, "decoding", "length", "length over load")
            self.run.log({"length_over_load_plot": plot})
        if (output / "teacher").exists():
            artifact = wandb.Artifact("controller", type="model")
            artifact.add_dir(str(output / "teacher"))
            self.run.log_artifact(artifact, aliases=["best", "latest"])
        self.run.finish()


def length_over_load(material: Material, act: Act, steps: int = 64) -> list[list[float]]:
    """``[decoding requests, longest length, price]`` of the policy's decisions over the training traffic."""
    fleet = material.training_fleet(2 * len(material.config.scenarios), seed=material.config.seed + 3)
    for e in range(fleet.num_envs):
        fleet.reset(e, scenario=e % len(material.config.scenarios))
    rows = []
    for _ in range(steps):
        actions = act(fleet.observations)
        rows += [[float(o[0]), float(a.max_length), a.price] for o, a in zip(fleet.observations, actions, strict=True)]
        _, served, late = fleet.step(actions)
        for e in np.flatnonzero(served | late).tolist():
            fleet.reset(e)
    return rows
