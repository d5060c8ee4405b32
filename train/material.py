"""What training stands on: recordings split in two, costs, the acceptance predictor, the normaliser."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from specpilot.controllers import CostSurface
from specpilot.controllers.acceptance import AcceptancePredictor
from specpilot.envs.fleet import FleetConfig, ReplayFleet
from specpilot.envs.replay import ReplayConfig
from specpilot.envs.trace import Trace
from specpilot.train.held_out import HeldOut, split
from specpilot.train.normaliser import Normaliser
from specpilot.train.ppo_config import PpoConfig
from specpilot.train.predictor import fit_what_is_told
from specpilot.train.run_record import write_json

WARM_UP_STEPS = 200


@dataclass
class Material:
    """Made once per run; predictor, normaliser and cost surface lie in the run's folder."""

    config: PpoConfig
    learning: Trace
    surface: CostSurface
    predictor: AcceptancePredictor
    normaliser: Normaliser
    engine: ReplayConfig
    held_out: HeldOut

    @classmethod
    def prepare(cls, config: PpoConfig, output: Path) -> Material:
        """Read the recording; fit what is not in ``output`` yet. Raises what the readers of the files raise."""
        record = Path(config.record)
        trace = Trace.load(record / "train.npz")
        surface = CostSurface.load(record / "cost_surface.json")
        longest = config.longest
        if longest > trace.max_num_speculative_tokens:
            raise ValueError(
                f"lengths go to {longest}, the recording to {trace.max_num_speculative_tokens}; shorten lengths "
                "and planned_lengths, or record longer drafts"
            )
        learning, judging = split(trace, config.held_out_share, config.seed)
        predictor = _predictor(learning, config, output / "predictor.json")
        surface.save(output / "cost_surface.json")
        engine = ReplayConfig(max_num_seqs=config.max_num_seqs)
        held_out = HeldOut(
            judging,
            surface,
            predictor,
            config.scenarios,
            engine,
            config.evaluation_requests,
            config.evaluation_seeds,
            config.seed + 1,
            config.hold,
        )
        material = cls(config, learning, surface, predictor, _IDENTITY, engine, held_out)
        material.normaliser = material._fit_normaliser(output / "normaliser.json")
        return material

    def training_fleet(self, num_envs: int | None = None, seed: int | None = None) -> ReplayFleet:
        """Engines that serve the requests to learn from."""
        config = FleetConfig(
            self.config.scenarios,
            self.config.max_rounds,
            reward=self.config.reward,
            hold=self.config.hold,
            slowness_spread=self.config.slowness_spread,
        )
        return ReplayFleet(
            self.learning,
            self.surface,
            self.predictor,
            config,
            self.engine,
            num_envs or self.config.num_envs,
            self.config.seed if seed is None else seed,
        )

    def _fit_normaliser(self, path: Path) -> Normaliser:
        """From rounds under random actions; every scenario is seen."""
        if path.exists():
            return Normaliser.parse(json.loads(path.read_text()))
        fleet = self.training_fleet(4 * len(self.config.scenarios), self.config.seed + 2)
        rng, seen = np.random.default_rng(self.config.seed), []
        for e in range(fleet.num_envs):
            fleet.reset(e, scenario=e % len(self.config.scenarios))
        for _ in range(WARM_UP_STEPS):
            seen.append(fleet.observations.copy())
            actions = [self.config.tiers[tier] for tier in rng.integers(len(self.config.tiers), size=fleet.num_envs)]
            _, served, late = fleet.step(actions)
            for e in np.flatnonzero(served | late).tolist():
                fleet.reset(e, scenario=e % len(self.config.scenarios))
        normaliser = Normaliser.fit(np.concatenate(seen))
        write_json(path, normaliser.document())
        return normaliser


def _predictor(trace: Trace, config: PpoConfig, path: Path) -> AcceptancePredictor:
    if path.exists():
        return AcceptancePredictor.parse(json.loads(path.read_text()))
    predictor = fit_what_is_told(trace, config.seed, config.predictor_hidden)
    write_json(path, predictor.document())
    return predictor


_IDENTITY = Normaliser(np.zeros(1), np.ones(1))
