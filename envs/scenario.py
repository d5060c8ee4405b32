"""What an environment is made of: recording, costs, predictor and traffic, read from files where paths are given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..controllers import AcceptancePredictor, CostSurface
from .fleet import FleetConfig
from .replay import ReplayConfig
from .trace import Trace
from .traffic import Traffic

BACKENDS = ("replay", "live", "vllm")
TrafficLike = Traffic | Mapping[str, Any]
DEFAULT_TRAFFIC = Traffic()


class ScenarioError(ValueError):
    """An environment cannot be made from what was given; the message is one line with the fix."""


@dataclass(frozen=True, eq=False)
class Scenario:
    """What is served, on which machine, and what counts."""

    trace: Trace
    surface: CostSurface
    predictor: AcceptancePredictor
    fleet: FleetConfig
    engine: ReplayConfig


def load_scenario(
    trace: str | Path | Trace | None,
    cost_surface: str | Path | CostSurface | None,
    predictor: str | Path | AcceptancePredictor | None,
    traffic: TrafficLike | Sequence[TrafficLike],
    engine: ReplayConfig,
    max_rounds: int,
    reward: str,
) -> Scenario:
    """Read what is given as a path.

    Raises `ScenarioError` where something is missing or does not fit, `TraceError`, `CostSurfaceError` and
    `TrafficError` where the file or the traffic is wrong.
    """
    if trace is None or cost_surface is None:
        missing = "trace" if trace is None else "cost_surface"
        raise ScenarioError(f"{missing} is None; record a pair with train/record.py and name the file it writes")
    recording = trace if isinstance(trace, Trace) else Trace.load(trace)
    surface = cost_surface if isinstance(cost_surface, CostSurface) else CostSurface.load(cost_surface)
    longest = int((recording.prompt_tokens + recording.token_limit).max())
    if longest > engine.max_model_len:
        raise ScenarioError(
            f"a recorded request may have {longest} tokens, max_model_len is {engine.max_model_len}; raise it"
        )
    config = FleetConfig(load_traffic(traffic), max_rounds, reward)
    return Scenario(recording, surface, load_predictor(predictor, recording), config, engine)


def load_predictor(predictor: str | Path | AcceptancePredictor | None, trace: Trace) -> AcceptancePredictor:
    """Read a predictor from JSON; None: the recording's mean acceptance for every token."""
    if isinstance(predictor, AcceptancePredictor):
        return predictor
    if predictor is None:
        return AcceptancePredictor.uninformed(mean_acceptance(trace))
    try:
        return AcceptancePredictor.parse(json.loads(Path(predictor).read_text(encoding="utf-8")))
    except OSError as error:
        raise ScenarioError(f"{predictor}: cannot be read ({error.strerror or error})") from None
    except ValueError as error:
        raise ScenarioError(f"{predictor}: {error}") from None


def mean_acceptance(trace: Trace) -> float:
    """Share of the drafted tokens that were accepted of those whose predecessors were, within 0.01 … 0.99."""
    accepted = trace.accepted_length[trace.has_draft()].astype(np.int64)
    tried = np.minimum(accepted + 1, trace.max_num_speculative_tokens)
    return float(np.clip(accepted.sum() / tried.sum(), 0.01, 0.99))


def load_traffic(traffic: TrafficLike | Sequence[TrafficLike]) -> tuple[Traffic, ...]:
    """One scenario or several; a mapping has the fields of `Traffic`."""
    several = [traffic] if isinstance(traffic, Traffic | Mapping) else traffic
    return tuple(own if isinstance(own, Traffic) else _traffic(own) for own in several)


def _traffic(values: Mapping[str, Any]) -> Traffic:
    known = [field.name for field in fields(Traffic)]
    if unknown := [name for name in values if name not in known]:
        raise ScenarioError(f"traffic has no {unknown[0]!r}; it has {', '.join(known)}")
    values = dict(values)
    if "temperatures" in values:
        values["temperatures"] = tuple(values["temperatures"])
    return Traffic(**values)
