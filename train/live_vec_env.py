"""The live engine as a stable-baselines3 vector environment."""

from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from specpilot.controllers.observation import NUM_FEATURES
from specpilot.train.material import Material
from specpilot.train.ppo_config import PpoConfig


def live_vec_env(config: PpoConfig, material: Material) -> VecEnv:
    """One engine around the configured pair, serving the recorded requests; observations normalised."""
    normaliser = material.normaliser
    heads = [sorted(set(choices)) for choices in zip(*config.tiers, strict=True)]
    indices = [np.asarray([own.index(part) for own, part in zip(heads, tier, strict=True)]) for tier in config.tiers]
    lengths, prices, looks = heads

    def make() -> gymnasium.Env:
        env = gymnasium.make(
            "SpecPilot/SpeculationLength-v0",
            backend=config.backend,
            trace=material.learning,
            cost_surface=material.surface,
            predictor=material.predictor,
            traffic=config.scenarios,
            reward=config.reward,
            max_rounds=config.max_rounds,
            max_num_seqs=config.max_num_seqs,
            lengths=lengths,
            prices=prices,
            looks=looks,
            target=Path(config.target),
            drafter=Path(config.drafter),
        )
        space = gymnasium.spaces.Box(-normaliser.clip, normaliser.clip, (NUM_FEATURES,), np.float32)
        tiers = gymnasium.spaces.Discrete(len(indices))
        env = gymnasium.wrappers.TransformAction(env, lambda tier: indices[int(tier)], tiers)
        return Monitor(gymnasium.wrappers.TransformObservation(env, normaliser, space))

    return DummyVecEnv([make])
