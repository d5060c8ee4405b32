"""Find what live rounds cost beyond their passes: each cost from rounds that differ in it alone, checked on others.

Rounds of random loads do not tell the costs apart: what they count grows together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from specpilot.controllers import KINDS, CostSurface
from specpilot.controllers.controller import FloatArray
from specpilot.controllers.round_overhead import COEFFICIENTS, NO_OVERHEAD, RoundOverhead
from specpilot.engine import Engine
from specpilot.train.clean_rounds import Block, CleanRounds, Plan
from specpilot.train.live_rounds import LiveRound, RoundMeter, as_measured
from specpilot.train.overhead_fit import MeasuredRounds, fit_overhead, fit_report, fit_units
from specpilot.train.ragged_passes import RaggedTimes
from specpilot.train.random_rounds import EPISODE_ROUNDS, RandomRounds

ASKED = ("asking", "per_asked_level", "per_asked_token")
ASKING = ("asking",)
NOISE = ("per_noise_row",)
PLANNED = ("planning", "per_planned_request")
PHASES = {
    "host": ("constant", "per_request", "per_level", "per_drafted_token", "per_verified_token", "drafting"),
    "draft": ("per_level", "per_drafted_token", "drafting"),
    "verify": ("constant", "per_request", "per_verified_token"),
}
"""What the seconds of each phase of a round can depend on, beyond its passes; ``host`` has none."""
CHECKED_SHARE = 1 / 3
"""Of the rounds, random ones that nothing is fitted to."""


@dataclass(frozen=True)
class Calibration:
    """The fitted overhead and how well it predicts."""

    overhead: RoundOverhead
    report: dict[str, Any]
    """Errors on random rounds that nothing was fitted to (``held_out``), and the drift of the machine."""


def calibrate(
    engine: Engine,
    surface: CostSurface,
    prompts: Sequence[Sequence[int]],
    seed: int,
    num_rounds: int = 1500,
    progress: bool = False,
) -> Calibration:
    """Serve about ``num_rounds`` rounds on an idle ``engine`` and find what ``surface`` leaves out.

    Blocks of requests alike are served by controllers in turn, between passes of the same sizes, and differences are
    taken within a block, so that neither the machine's drift nor errors of the surface count as overhead
    (`overhead_of`). Episodes of random loads check the result; their seconds are divided by how slow the machine's
    passes were before and after, compared to the surface's. ``engine``'s controller is replaced.
    """
    meter = RoundMeter(engine, replace(surface, overhead=NO_OVERHEAD))
    clean, random = CleanRounds(meter, prompts, seed), RandomRounds(meter, prompts, seed)
    sweeps = max(1, round(num_rounds * (1 - CHECKED_SHARE) / clean.rounds_per_sweep))
    episodes = max(1, round(num_rounds * CHECKED_SHARE / EPISODE_ROUNDS))
    total = sweeps * clean.rounds_per_sweep + episodes * EPISODE_ROUNDS
    with tqdm(total=total, desc="calibration", disable=not progress, mininterval=2) as bar:
        blocks = list[Block]()
        for batch in clean.batches * sweeps:
            blocks.append(clean.serve(batch))
            bar.update(clean.rounds_per_sweep // len(clean.batches))
        blocks, level = levelled(blocks)
        checks, ratios = list[MeasuredRounds](), [level * meter.machine_slowness()]
        for _ in range(episodes):
            rounds = random.episode()
            ratios.append(level * meter.machine_slowness())
            slowness = (ratios[-2] + ratios[-1]) / 2
            checks.append(as_measured(rounds, [own.seconds / slowness for own in rounds]))
            bar.update(EPISODE_ROUNDS)
        ragged = RaggedTimes(engine, seed).costs(ratios[-1])
    overhead, checked = overhead_of(blocks, ragged), MeasuredRounds.joined(checks)
    ratios += [block.machine_slowness for block in blocks]
    report = {
        "overhead": overhead.document(),
        "held_out": fit_report(checked, overhead),
        "without_overhead": fit_report(checked, NO_OVERHEAD),
        "speed_ratio": {"least": min(ratios), "largest": max(ratios)},
    }
    return Calibration(overhead, report)


def levelled(blocks: Sequence[Block]) -> tuple[list[Block], float]:
    """The blocks with their machine's slowness times a number, the same for all, and that number.

    The few passes that follow the drift lie at points where the surface may be wrong by a quarter; over all blocks,
    the machine shall be as slow as all of their passes say.
    """
    everywhere = np.mean([np.log(own) for block in blocks for own in block.slowness.values()])
    level = float(np.exp(everywhere - np.mean([np.log(block.machine_slowness) for block in blocks])))
    return [replace(block, machine_slowness=level * block.machine_slowness) for block in blocks], level


def overhead_of(blocks: Sequence[Block], ragged: Mapping[str, float]) -> RoundOverhead:
    """The overhead by what was measured to find it; ``ragged``: what passes of unlike requests have told.

    What planning costs: deciding and observing in rounds that plan against rounds that do not. Asking: `asking_costs`.
    Noise: rounds at temperature 1 against those at 0. Factors of prefill and catch-up: these phases over their passes.
    The rest: the phases of rounds at temperature 0 that do not plan, less passes of their sizes.
    """
    known = {
        **ragged,
        **fit_units(*_differences(blocks, _without_planning, _deciding), PLANNED),
        **asking_costs(blocks),
        **fit_units(*_differences(blocks, _without_noise, _beyond_passes), NOISE),
        **{f"{kind}_factor": _phase_ratio(blocks, KINDS.index(kind)) for kind in ("catch_up", "prefill")},
    }
    total = dict.fromkeys(COEFFICIENTS, 0.0)
    for phase, names in PHASES.items():
        found = fit_phase(blocks, phase, names)
        if phase in KINDS:
            known[f"{phase}_factor"] = found.factor(phase)
        for name in names:
            total[name] += getattr(found, name)
    return RoundOverhead(**{**total, **known})


def asking_costs(blocks: Sequence[Block]) -> dict[str, float]:
    """What rounds with looks take longer than rounds that neither plan nor look, once and for all that is asked.

    The answers alone are too short to be seen in whole rounds, so they are timed. What they cost the passes behind
    them, whose code and weights they drive from the processor's caches, is not in that: rounds say it, once a round.
    """
    cells, answering = _differences(blocks, _without_asking, _deciding)
    answers = fit_units(cells, answering, ASKED)
    known = RoundOverhead(**answers | {"asking": 0.0}).seconds(cells.work) if len(cells) else answering
    _, longer = _differences(blocks, _without_asking, _beyond_drafts)
    in_rounds = fit_units(cells, longer - known, ASKING)
    return {**answers, "asking": max(answers["asking"], in_rounds["asking"])}


def fit_phase(blocks: Sequence[Block], phase: str, names: Sequence[str]) -> RoundOverhead:
    """The coefficients ``names`` for one of `PHASES` alone, and the factor of its passes if it has any.

    One phase at a time, because errors of milliseconds in the passes of a large batch would otherwise be made up for by
    what the host does, which is known to microseconds.
    """
    cells, seconds = list[LiveRound](), list[float]()
    for block in blocks:
        for plan, rounds in block.rounds.items():
            if plan.temperature == 0 and not plan.planned and (phase != "draft" or plan.length):
                alone = [_only(phase, own) for own in rounds]
                beyond = float(np.median([_beyond_passes(block, plan, own) for own in alone]))
                cells.append(alone[len(alone) // 2])
                seconds.append(sum(cells[-1].passes) + beyond)
    live = as_measured(cells, seconds)
    live = live.select(live.seconds > 0)
    unused = [name for name in COEFFICIENTS if name not in names]
    factors = {f"{kind}_factor": 1.0 for kind in KINDS if kind != phase}
    return fit_overhead(live, {**dict.fromkeys(unused, 0.0), **factors}) if len(live) else NO_OVERHEAD


def _only(phase: str, own: LiveRound) -> LiveRound:
    """The round as if it had been one of `PHASES` and nothing else."""
    if phase not in KINDS:
        return own._replace(passes=(0.0,) * len(KINDS), seconds=own.seconds - sum(own.phases))
    at = KINDS.index(phase)
    passes = tuple(seconds if index == at else 0.0 for index, seconds in enumerate(own.passes))
    return own._replace(passes=passes, seconds=own.phases[at])


def _beyond_passes(block: Block, plan: Plan, own: LiveRound) -> float:
    """Seconds of a round beyond its passes, on a machine as fast as when the surface was measured."""
    return float(own.seconds - block.seconds_now(plan, own).sum()) / block.machine_slowness


def _beyond_drafts(block: Block, plan: Plan, own: LiveRound) -> float:
    """Seconds beyond draft passes, without verification: its time varies most, and does not depend on who was asked."""
    rest = own.seconds - own.phases[KINDS.index("verify")]
    return float(rest - block.seconds_now(plan, own)[KINDS.index("draft")]) / block.machine_slowness


def _deciding(block: Block, plan: Plan, own: LiveRound) -> float:
    """Seconds of the controller: too few to be seen in those of a whole round, which vary by a tenth."""
    return own.deciding / block.machine_slowness


def _without_asking(plan: Plan) -> Plan:
    return plan._replace(looks=0, planned=False)


def _without_planning(plan: Plan) -> Plan:
    return plan if plan.looks else plan._replace(planned=False)


def _without_noise(plan: Plan) -> Plan:
    return plan._replace(temperature=0.0)


def _differences(
    blocks: Sequence[Block],
    counterpart: Callable[[Plan], Plan],
    beyond: Callable[[Block, Plan, LiveRound], float],
) -> tuple[MeasuredRounds, FloatArray]:
    """A round of each plan that is not its own counterpart, and the median seconds it takes longer; by block."""
    cells, extra = list[LiveRound](), list[float]()
    for block in blocks:
        for plan, rounds in block.rounds.items():
            other = counterpart(plan)
            pairs = list(zip(rounds, block.rounds.get(other, ()), strict=False))
            if plan != other and pairs:
                cells.append(rounds[len(rounds) // 2])
                more = [beyond(block, plan, one) - beyond(block, other, two) for one, two in pairs]
                extra.append(float(np.median(more)))
    return as_measured(cells), np.asarray(extra)


def _phase_ratio(blocks: Sequence[Block], kind: int) -> float:
    """Seconds of a phase over the surface's of its passes; 1 where it never ran."""
    ratios = [
        own.phases[kind] / own.passes[kind] / block.machine_slowness
        for block in blocks
        for own in block.moving
        if own.passes[kind] > 0 and own.phases[kind] > 0
    ]
    return float(np.median(ratios)) if ratios else 1.0
