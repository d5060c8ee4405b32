"""One evaluation: tune on training requests, serve every scenario, write what came of it; resumable by scenario."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from specpilot.controllers import AcceptancePredictor, Action, CostSurface
from specpilot.envs.replay import ReplayConfig, Served
from specpilot.envs.replay_state import Recording
from specpilot.envs.trace import Trace
from specpilot.envs.traffic import ArrivalFile
from specpilot.train.baseline_tuning import TunedBaselines
from specpilot.train.contenders import (
    CEILING,
    OFF,
    PRICE_RULE,
    REQUEST,
    UNIFORM,
    Ceiling,
    ControllerFile,
    Field,
    ceiling_actions,
    file_digest,
    tune,
)
from specpilot.train.predictor import CeilingPredictor, fit_ceiling, fit_what_is_told, quality
from specpilot.train.priced_replay import ceiling_recording
from specpilot.train.run_record import write_json
from specpilot.train.scenarios import Scenario, ScenarioConfig, Stage, scenarios

NAMES_TAKEN = (OFF, PRICE_RULE, CEILING, UNIFORM, REQUEST)
VERSION = 3
"""Of the parts; a part of another version is made again."""


@dataclass(frozen=True)
class LiveConfig:
    """What is served on the real engine with ``--backend live``."""

    target: str = "pairs/pystdlib/target"
    drafter: str = "pairs/pystdlib/drafter"
    contenders: tuple[str, ...] = ()
    """Names of replay's contenders beside off and the best constant, such as a controller file's."""
    concurrencies: tuple[int, ...] = (4, 16)
    requests: int = 64
    repeats: int = 5
    threads: int = 0
    """Of torch, 0: its default."""


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared, on what, and where results go."""

    output: str
    record: str
    """Folder of train/record.py: train.npz, evaluation.npz, cost_surface.json."""
    scenarios: ScenarioConfig = ScenarioConfig()  # noqa: RUF009 - frozen
    controllers: tuple[ControllerFile, ...] = field(default=())
    """Saved controllers (`save_controller`), each with a ``name`` and a ``path``."""
    engine: ReplayConfig = ReplayConfig()  # noqa: RUF009 - frozen
    seed: int = 0
    tracking: str = "none"
    """``wandb``: log the table."""
    wandb_project: str = "specpilot"
    live: LiveConfig = LiveConfig()

    def __post_init__(self) -> None:
        names = [own.name for own in self.controllers]
        for name in names:
            if names.count(name) > 1 or name in NAMES_TAKEN or name.startswith("constant_"):
                raise ValueError(f"the controller name {name!r} is taken; choose another")
        if self.tracking not in ("none", "wandb"):
            raise ValueError(f"tracking must be 'none' or 'wandb', got {self.tracking!r}")


def figures(served: Served, scenario: Scenario) -> dict[str, Any]:
    """The numbers of one contender on one schedule; the counts per round are None where they were not kept."""
    waits = served.first_token_seconds
    per_round = max(served.request_rounds, 1)
    counted = served.request_rounds > 0
    return {
        "figure": float(getattr(served, scenario.figure)),
        "tokens_per_second": served.tokens_per_second,
        "request_tokens_per_second": served.request_tokens_per_second,
        "first_token_p50": float(np.quantile(waits, 0.5)) if waits else None,
        "first_token_p99": float(np.quantile(waits, 0.99)) if waits else None,
        "accepted_per_round": served.accepted / per_round if counted else None,
        "drafted_per_round": served.drafted / per_round if counted else None,
        "tokens": served.tokens,
    }


def serve_scenario(contest: Field, scenario: Scenario, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of every contender on every seed's schedule."""
    return [
        {"contender": name, "seed": seed, **figures(served, scenario)}
        for seed in seeds
        for name, served in contest.serve(scenario, seed).items()
    ]


class ReplayEvaluation:
    """The replay part of an evaluation and its files in ``parts/``."""

    def __init__(self, config: EvaluateConfig) -> None:
        """Raises what the readers of the files raise."""
        self.config = config
        self.parts = Path(config.output) / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        record = Path(config.record)
        paths = [record / "train.npz", record / "evaluation.npz", record / "cost_surface.json"]
        arrivals = config.scenarios.arrivals
        train, evaluation, self.surface = Trace.load(paths[0]), Trace.load(paths[1]), CostSurface.load(paths[2])
        stream = None if arrivals is None else ArrivalFile.load(arrivals)
        self.train = Stage.build(train, self.surface, config.engine, stream)
        self.stage = Stage.build(evaluation, self.surface, config.engine, stream)
        self.scenarios = scenarios(config.scenarios)
        inputs = [file_digest(path) for path in paths + ([] if arrivals is None else [Path(arrivals)])]
        self._tuning_key = digest([VERSION, inputs, asdict(config.scenarios), asdict(config.engine), config.seed])
        self.key = digest([self._tuning_key, [[own.name, file_digest(own.path)] for own in config.controllers]])
        """Of everything that the results depend on."""

    def run(self, workers: int = 1) -> dict[str, list[dict[str, Any]]]:
        """Rows by scenario; those that an earlier run has finished are read."""
        done = {own.name: rows for own in self.scenarios if (rows := self._read(own.name, self.key)) is not None}
        missing = [own for own in self.scenarios if own.name not in done]
        if missing:
            seeds = range(self.config.scenarios.seeds)
            results = _results(self.contest, missing, seeds, min(workers, len(missing)))
            for name, rows in tqdm(results, total=len(missing), desc="scenarios", mininterval=1):
                self._write(name, self.key, rows)
                done[name] = rows
        return {own.name: done[own.name] for own in self.scenarios}

    @cached_property
    def contest(self) -> Field:
        """All contenders, tuned and fitted."""
        own, found = self, self.tuning
        ceiling = None
        if found["ceiling"] is not None:
            actions = ({name: Action(*one) for name, one in each.items()} for each in found["ceiling"])
            ceiling = Ceiling(ceiling_recording(own.best, own.predictor, own.stage.trace), *actions)
        recording = Recording.of(own.stage.trace, own.predictor)
        tuned = TunedBaselines.parse(found["baselines"])
        return Field(own.stage, recording, own.predictor, own.train, tuned, ceiling, own.config.controllers)

    @cached_property
    def predictor(self) -> AcceptancePredictor:
        """The price rule's."""
        return fit_what_is_told(self.train.trace, self.config.seed)

    @cached_property
    def best(self) -> CeilingPredictor:
        """The informed ceiling's."""
        return fit_ceiling(self.train.trace, self.config.seed)

    @cached_property
    def tuning(self) -> dict[str, Any]:
        """What was chosen on the training requests, and how good the predictors are; kept in ``parts/tuning.json``."""
        if (found := self._read("tuning", self._tuning_key)) is not None:
            return dict(found)
        print("== tuning on the training requests", flush=True)
        informed = self.train.trace.confidence is not None and self.stage.trace.confidence is not None
        actions = ceiling_actions(self.train, self.predictor, self.scenarios, self.config.seed) if informed else None
        fresh = {
            "baselines": asdict(tune(self.train, self.predictor, self.config.scenarios)),
            "ceiling": actions,
            "quality": self._quality() if informed else {},
        }
        self._write("tuning", self._tuning_key, fresh)
        return json.loads(json.dumps(fresh))  # type: ignore[no-any-return]

    def _quality(self) -> dict[str, Any]:
        """Of both predictors, by temperature, on the evaluation requests."""
        both: dict[str, AcceptancePredictor | CeilingPredictor] = {
            PRICE_RULE: self.predictor,
            CEILING: self.best,
        }
        return {
            name: {f"{temperature:g}": asdict(own) for temperature, own in quality(predictor, self.stage.trace).items()}
            for name, predictor in both.items()
        }

    def _path(self, name: str) -> Path:
        return self.parts / f"{name.replace(' ', '_').replace('=', '')}.json"

    def _read(self, name: str, key: str) -> Any:
        """A part's content; None where it is absent, damaged or of other settings."""
        try:
            part = json.loads(self._path(name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return part["content"] if isinstance(part, dict) and part.get("key") == key else None

    def _write(self, name: str, key: str, content: Any) -> None:
        write_json(self._path(name), {"key": key, "name": name, "content": content})


def digest(value: Any) -> str:
    """SHA-256 of what JSON says of ``value``."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


_contest: Field | None = None
"""Of a worker process."""


def _begin_worker(contest: Field) -> None:
    global _contest
    _contest = contest


def _work(job: tuple[Scenario, Sequence[int]]) -> tuple[str, list[dict[str, Any]]]:
    assert _contest is not None
    return job[0].name, serve_scenario(_contest, *job)


def _results(
    contest: Field, missing: Sequence[Scenario], seeds: Sequence[int], workers: int
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Scenarios as they are finished."""
    if workers <= 1:
        yield from ((own.name, serve_scenario(contest, own, seeds)) for own in missing)
        return
    # Fork would copy the threads' locks of torch and numba.
    with multiprocessing.get_context("spawn").Pool(workers, _begin_worker, (contest,)) as pool:
        yield from pool.imap_unordered(_work, [(own, seeds) for own in missing])
