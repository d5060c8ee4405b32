"""A training loop of another library runs on the untouched vector environment and gets better."""

from __future__ import annotations

import gymnasium
import numpy as np

import specpilot.envs  # noqa: F401 - registers the environments
from specpilot.tests.support.priced import random_predictor
from specpilot.tests.support.traces import MAX_BATCH, MAX_CONTEXT, random_trace, rich_surface
from specpilot.train.other_library import train


def test_plain_ppo_improves_the_reward() -> None:
    env = gymnasium.make_vec(
        "SpecPilot/SpeculationLength-v0",
        num_envs=16,
        vectorization_mode="vector_entry_point",
        trace=random_trace(64),
        cost_surface=rich_surface(),
        predictor=random_predictor(),
        traffic={"concurrency": 4},
        max_num_seqs=MAX_BATCH,
        max_model_len=MAX_CONTEXT,
        reward="round_ratio",
        lengths=(0, 1, 2, 6),
        prices=(0.0, 1.0),
        looks=(1,),
    )
    rewards = train(env, updates=12, steps=32, seed=0)
    assert len(rewards) == 12 and np.mean(rewards[-2:]) > np.mean(rewards[:2])
