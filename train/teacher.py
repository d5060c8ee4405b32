"""Write the policy that PPO learned as a deployable controller."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO

from specpilot.controllers.controller_file import save_controller
from specpilot.controllers.observation import FEATURE_NAMES
from specpilot.controllers.policies import MlpPolicy
from specpilot.controllers.priced import PricedController
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig


def teacher_policy(model: PPO, config: PpoConfig, material: Material) -> MlpPolicy:
    """The actor as plain layers of tanh and one output for each action."""
    linear = [layer for layer in model.policy.mlp_extractor.policy_net if isinstance(layer, torch.nn.Linear)]
    assert isinstance(model.policy.action_net, torch.nn.Linear)
    layers = [
        (layer.weight.detach().numpy().astype(np.float32), layer.bias.detach().numpy().astype(np.float32))
        for layer in (*linear, model.policy.action_net)
    ]
    normaliser = material.normaliser
    return MlpPolicy(
        FEATURE_NAMES,
        config.tiers,
        (len(config.tiers),),
        normaliser.mean,
        normaliser.scale,
        normaliser.clip,
        layers,
    )


def save_teacher(path: Path, model: PPO, config: PpoConfig, material: Material, facts: dict[str, Any]) -> None:
    """Replace the controller at ``path`` in one go."""
    controller = PricedController(
        teacher_policy(model, config, material),
        material.predictor,
        material.surface,
        max_num_speculative_tokens=config.longest,
        hold=config.hold,
    )
    save_controller(controller, path, {"kind": "PPO teacher", "seed": config.seed, **facts})
