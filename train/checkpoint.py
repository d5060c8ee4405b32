"""Checkpoints of PPO without pickle: tensors that torch loads as tensors only, and JSON."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO

from specpilot.train.ppo_config import PpoConfig, plain
from specpilot.train.run_record import write_json

MAY_CHANGE = ("output", "total_steps", "tracking", "wandb_project", "progress_bar", "evaluation_interval")
"""Settings that a resumed run may have otherwise."""


@dataclass(frozen=True)
class Progress:
    """How far a run had come."""

    steps: int
    best: float
    curve: list[dict[str, Any]]


def save_checkpoint(
    folder: Path, model: PPO, config: PpoConfig, steps: int, best: float, curve: list[dict[str, Any]]
) -> None:
    """Write tensors under a temporary name, rename, then say in the JSON which file counts."""
    folder.mkdir(parents=True, exist_ok=True)
    name, temporary = f"state-{steps}.pt", folder / "state.tmp"
    torch.save({"policy": model.policy.state_dict(), "optimizer": model.policy.optimizer.state_dict()}, temporary)
    os.replace(temporary, folder / name)
    write_json(
        folder / "progress.json",
        {"config": plain(config), "state": name, "steps": steps, "best": best, "curve": curve},
    )
    for old in folder.glob("state-*.pt"):
        if old.name != name:
            old.unlink()


def load_checkpoint(folder: Path, model: PPO, config: PpoConfig) -> Progress | None:
    """Put a checkpoint into ``model``; None without one. Raises ValueError where it is of another configuration."""
    path = folder / "progress.json"
    if not path.exists():
        return None
    progress = json.loads(path.read_text())
    own = json.loads(json.dumps(plain(config)))
    different = [name for name in own if name not in MAY_CHANGE and own[name] != progress["config"].get(name)]
    if different:
        raise ValueError(f"{folder} was trained with another {different[0]!r}; give another output or delete it")
    state = torch.load(folder / Path(progress["state"]).name, map_location="cpu", weights_only=True)
    model.policy.load_state_dict(state["policy"])
    model.policy.optimizer.load_state_dict(state["optimizer"])
    model.num_timesteps = int(progress["steps"])
    return Progress(int(progress["steps"]), float(progress["best"]), progress["curve"])
