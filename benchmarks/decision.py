"""What a controller's answers cost, and their share of the round.

    python benchmarks/decision.py    # half a minute; writes benchmarks/results/decision.json

Rounds are played without an engine: states, confidences and outcomes are made up, the predictor and the policies have
random weights of the sizes that training gives (the time does not depend on them, how far a draft goes does). A
round's seconds are those of the cost surface in ``--record`` for what was drafted; without one there are no shares.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.benchmarks.measurement import ROOT, machine_state, spread
from specpilot.controllers import (
    AcceptancePredictor,
    Action,
    ConstantController,
    Controller,
    CostSurface,
    CostSurfaceError,
    DraftLevel,
    FixedPolicy,
    GuardedController,
    GuardSettings,
    LengthTableController,
    MlpPolicy,
    Policy,
    PricedController,
    RoundOutcome,
    RoundState,
    TreePolicy,
    TurboSpecController,
)
from specpilot.controllers.acceptance import LEVEL_INPUTS
from specpilot.controllers.acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS
from specpilot.controllers.observation import FEATURE_NAMES
from specpilot.controllers.pass_costs import PassCosts
from specpilot.controllers.policies import factored_tiers
from specpilot.train.run_record import run_record, write_json

CALLS = ("decide", "new_lengths", "verify_lengths", "observe")
LENGTHS, PRICES, LOOKS = (0, 1, 2, 3, 4, 6, 8), (0.8, 0.9, 1.0), (0, 1, 2)


@dataclass(frozen=True)
class Settings:
    """What is timed."""

    batches: tuple[int, ...] = (1, 32)
    rounds: int = 200
    """Played per controller and batch, in turn; the first tenth warms up."""
    context: int = 256
    max_length: int = 8
    tree_depth: int = 7
    hidden: tuple[int, ...] = (64, 64)
    seed: int = 0


class Stopwatch:
    """A controller that times another one's answers."""

    def __init__(self, controller: Controller) -> None:
        self.controller = controller
        self.seconds: dict[str, list[float]] = {name: [] for name in (*CALLS, "round")}

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Ask for ``name``."""
        call: Callable[..., Any] = getattr(self.controller, name)
        start = time.perf_counter()
        answer = call(*arguments)
        self.seconds[name].append(time.perf_counter() - start)
        return answer


def controllers(settings: Settings, surface: CostSurface) -> dict[str, Controller]:
    """One of every kind."""
    rng = np.random.default_rng(settings.seed)
    inside, first = (
        rng.normal(0, 0.1, (len(LEVEL_INPUTS), 16)),
        rng.normal(0, 0.1, (HISTORY_DEPTHS, len(HISTORY_INPUTS))),
    )
    predictor = AcceptancePredictor(
        {
            "hidden_weight": inside,
            "hidden_bias": rng.normal(0, 0.1, 16),
            "output_weight": rng.normal(0, 0.5, (16, 2)),
            "output_bias": [2.5, 2.5],
            "history_weight": first,
            "history_bias": np.full(HISTORY_DEPTHS, 2.5),
            "carry": [0.6],
        }
    )
    policies: dict[str, Policy] = {
        "tree": tree(settings, rng),
        "mlp": mlp(settings, rng),
        "plan": FixedPolicy(Action(8, 1.0)),
        "looks": FixedPolicy(Action(8, 1.0, 2)),
    }
    priced = {
        name: PricedController(policy, predictor, surface, settings.max_length, max(settings.batches))
        for name, policy in policies.items()
    }
    priced["plan held for 4 rounds"] = PricedController(
        policies["plan"], predictor, surface, settings.max_length, max(settings.batches), hold=4
    )
    rows = [(1, 8, 6), (9, None, 3)]
    guarded = GuardedController(priced["tree"], settings=GuardSettings(probe_every=0))
    table, turbospec = LengthTableController(rows), TurboSpecController(surface, settings.max_length)
    return {
        **priced,
        "guarded tree": guarded,
        "table": table,
        "turbospec": turbospec,
        "constant": ConstantController(4),
    }


def tree(settings: Settings, rng: np.random.Generator) -> TreePolicy:
    """A full tree over twelve features; leaves that speculate."""
    splits = 2**settings.tree_depth - 1
    nodes = 2 * splits + 1
    tiers = [action for action in factored_tiers(LENGTHS, PRICES, LOOKS) if action.max_length > 2]
    names = [FEATURE_NAMES[place] for place in rng.choice(len(FEATURE_NAMES), 12, replace=False)]
    feature = [*rng.integers(0, 12, splits).tolist(), *[-1] * (splits + 1)]
    children = [2 * node + 1 if node < splits else 0 for node in range(nodes)]
    right = [child + 1 if child else 0 for child in children]
    tier = rng.integers(0, len(tiers), nodes).tolist()
    return TreePolicy(names, tiers, feature, rng.uniform(0, 1, nodes).tolist(), children, right, tier)


def mlp(settings: Settings, rng: np.random.Generator) -> MlpPolicy:
    """A network over all features, with a head each for lengths, prices and looks; it speculates at full length."""
    sizes = (len(FEATURE_NAMES), *settings.hidden, len(LENGTHS) + len(PRICES) + len(LOOKS))
    layers = [(rng.normal(0, 0.2, (out, into)), np.zeros(out)) for into, out in pairwise(sizes)]
    layers[-1][1][len(LENGTHS) - 1] = 100.0
    zeros, ones = np.zeros(sizes[0]), np.ones(sizes[0])
    heads = (len(LENGTHS), len(PRICES), len(LOOKS))
    return MlpPolicy(FEATURE_NAMES, factored_tiers(LENGTHS, PRICES, LOOKS), heads, zeros, ones, 10.0, layers)


def play(ask: Stopwatch, settings: Settings, batch: int, number: int, surface: CostSurface) -> None:
    """One round; adds the round's seconds by the cost surface."""
    rng = np.random.default_rng((settings.seed, batch, number))
    state = round_state(settings, batch, rng)
    lengths = np.minimum(ask("decide", state).num_speculative_tokens, settings.max_length)
    bound, drafted, active = lengths.copy(), np.zeros(batch, dtype=np.int64), np.flatnonzero(lengths)
    for depth in range(1, settings.max_length + 1):
        drafted[active] = depth
        if depth <= ask.controller.asked_levels and len(active):
            lengths[active] = np.minimum(ask("new_lengths", level(depth, active, rng)), bound[active])
        active = active[lengths[active] > depth]
        if not len(active):
            break
    trims = ask.controller.trims and drafted.any()
    verified = ask("verify_lengths", drafted.copy()) if trims else drafted
    kept = rng.integers(0, verified + 1)
    seconds = surface.round_seconds(
        drafted,
        state.context_length,
        state.lag,
        verified=verified,
        temperatures=state.temperature,
        asked_levels=ask.controller.asked_levels,
    )
    ask.seconds["round"].append(seconds)
    ask("observe", RoundOutcome(drafted, verified, kept, kept + 1, seconds / 2, seconds / 2, 0.0, 0.0))


def round_state(settings: Settings, batch: int, rng: np.random.Generator) -> RoundState:
    """Requests of mixed temperature and history around ``settings.context``."""
    most = np.full(batch, settings.max_length)
    return RoundState(
        request_ids=tuple(str(number) for number in range(batch)),
        context_length=settings.context + rng.integers(-64, 64, batch),
        num_generated=np.full(batch, 64),
        lag=rng.integers(0, 2, batch),
        max_num_speculative_tokens=most,
        last_num_speculative_tokens=most,
        last_accepted_length=most // 2,
        acceptance_rate=rng.random(batch),
        temperature=rng.choice([0.0, 0.6, 1.0], batch),
        tokens_left=np.full(batch, 100),
        running=batch,
        waiting=1,
        kv_free=0.5,
        arrival_rates=(1.0, 1.0),
    )


def level(depth: int, requests: np.ndarray[Any, Any], rng: np.random.Generator) -> DraftLevel:
    """A drafter that is sure of itself."""
    top1 = rng.uniform(0.7, 1.0, len(requests))
    return DraftLevel(depth, requests, top1, 1 - top1, 5 * top1, np.ones(len(requests)))


def measure(settings: Settings, surface: CostSurface, has_record: bool) -> dict[str, Any]:
    """Seconds of each call and of all calls of a round by controller and batch, and their share of the round."""
    results: dict[str, Any] = {}
    for batch in settings.batches:
        watches = {name: Stopwatch(own) for name, own in controllers(settings, surface).items()}
        for number in range(settings.rounds):
            for ask in watches.values():
                play(ask, settings, batch, number, surface)
        for name, ask in watches.items():
            results.setdefault(name, {})[str(batch)] = summary(ask, settings.rounds, has_record)
        policy = watches["tree"].controller.policy  # type: ignore[attr-defined]
        features = watches["tree"].controller.features.array().tolist()  # type: ignore[attr-defined]
        walk = Stopwatch(policy)
        walk.seconds["act"] = []
        for _ in range(settings.rounds):
            walk("act", features)
        results["tree"][str(batch)]["walk"] = spread(walk.seconds["act"])
    return results


def summary(ask: Stopwatch, rounds: int, has_record: bool) -> dict[str, Any]:
    """Medians and samples; ``share``: of all calls in the rounds' time."""
    told = {
        name: spread([round(value, 8) for value in own[len(own) // 10 :]]) for name, own in ask.seconds.items() if own
    }
    per_round = {name: len(own) / rounds for name, own in ask.seconds.items() if own and name != "round"}
    total = sum(told[name]["median"] * count for name, count in per_round.items())
    of_round = told.pop("round")["median"]
    share = {"round_seconds": of_round, "share": total / of_round} if has_record else {}
    return {**told, "calls_per_round": per_round, "seconds_per_round": total, **share}


def stand_in() -> CostSurface:
    """Seconds of a machine that does not exist, so that controllers can be made at all."""

    def costs(base: float, each: float) -> PassCosts:
        samples = [[[[base + each * batch * tokens] for _ in range(2)] for tokens in (1, 9)] for batch in (1, 32)]
        return PassCosts(((1, 32), (1, 9), (64, 512)), np.asarray(samples))

    kinds = {"draft": (1e-3, 1e-5), "verify": (5e-3, 1e-4), "catch_up": (1e-3, 1e-5), "prefill": (5e-3, 1e-4)}
    fields = {"hardware": "none", "dtype": "none", "versions": "none"}
    return CostSurface({kind: costs(*own) for kind, own in kinds.items()}, fields, "2026-01-01T00:00:00+00:00")


def table(results: dict[str, Any]) -> str:
    """The results as lines."""
    lines = [
        f"{'controller':14}{'batch':>6}" + "".join(f"{name:>16}" for name in CALLS) + f"{'round us':>10}{'share':>8}"
    ]
    for name, batches in results.items():
        for batch, own in batches.items():
            calls = [f"{own[call]['median'] * 1e6:13.1f} us" if call in own else f"{'-':>16}" for call in CALLS]
            share = f"{own['share']:8.2%}" if "share" in own else f"{'-':>8}"
            lines.append(f"{name:14}{batch:>6}{''.join(calls)}{own['seconds_per_round'] * 1e6:10.0f}{share}")
    walks = ", ".join(f"{own['walk']['median'] * 1e6:.2f} us" for own in results["tree"].values())
    return "\n".join([*lines, f"the tree's walk alone: {walks}"])


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", type=Path, default=ROOT / "runs/record/pystdlib", help="with cost_surface.json")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks/results/decision.json")
    arguments = parser.parse_args()
    settings, has_record = Settings(), True
    try:
        surface = CostSurface.load(arguments.record / "cost_surface.json")
    except CostSurfaceError as error:
        print(f"no share of the round: {error}")
        surface, has_record = stand_in(), False
    results = measure(settings, surface, has_record)
    fingerprint = surface.fingerprint if has_record else None
    write_json(
        arguments.output,
        run_record(settings, machine=machine_state(), cost_surface=fingerprint) | {"controllers": results},
    )
    print(table(results))


if __name__ == "__main__":
    main()
