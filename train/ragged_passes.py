"""What it costs that requests are not alike: passes of unlike requests, timed in turn with passes of as many alike.

A pass each, because in whole rounds, which vary by a tenth, a few hundredths cannot be seen.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from specpilot.controllers.controller import FloatArray, IntArray
from specpilot.controllers.round_overhead import RoundWork, idleness, padding
from specpilot.engine import Engine
from specpilot.train.overhead_fit import MeasuredRounds, fit_units

TURNS = 24
"""Times that every pass runs."""
CONTEXTS = 100, 260
"""Cached tokens of the requests, from … to: as different as those of requests that are served."""
COSTS = {"verify": ("per_padded_token",), "draft": ("per_idle_request",)}


@dataclass(frozen=True)
class RaggedPass:
    """A pass of unlike requests and the one it is compared with, which does as much work; ``[B]`` tokens of each."""

    kind: str
    unlike: IntArray
    alike: IntArray
    """Of a draft level those that draft in it, without the others."""

    @property
    def work(self) -> RoundWork:
        """What the unlike pass does beyond the other."""
        if self.kind == "verify":
            return RoundWork(len(self.unlike), 0, 0, 0, padded=int(padding(self.unlike)))
        return RoundWork(len(self.unlike), 0, 0, 0, idle=int(idleness(self.unlike)))


def ragged_passes(max_batch: int, max_length: int, drafts: bool) -> list[RaggedPass]:
    """Passes of all batches up to ``max_batch`` in which some verify more and some less, or some do not draft."""
    half, passes = 1 + max_length // 2, list[RaggedPass]()
    for batch in (size for size in (4, 8, 16, 32) if size <= max_batch and max_length > 1):
        signs = 1 - 2 * (np.arange(batch) % 2)
        few = signs * (np.arange(batch) // 2 == batch // 4)  # One more, one less.
        for unlike in (half + signs, half + (half // 2) * signs, half + (half // 2) * few):
            passes.append(RaggedPass("verify", unlike, np.full(batch, half)))
        for idle in sorted({2, batch // 2, batch - max(2, batch // 4)}) if drafts else ():
            unlike = np.ones(batch, dtype=np.int64)
            unlike[np.linspace(1, batch - 2, idle).astype(np.int64)] = 0
            passes.append(RaggedPass("draft", unlike, np.ones(int(unlike.sum()), dtype=np.int64)))
    return passes


class RaggedTimes:
    """Seconds that passes of unlike requests take longer; one idle engine."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.profiler, limits = engine.profiler(), engine.profiler().limits
        drafts = "draft" in self.profiler.kinds
        self.passes = ragged_passes(limits.max_batch, engine.config.max_num_speculative_tokens, drafts)
        most = limits.max_context - 2 * engine.config.max_num_speculative_tokens
        low, high = (min(own, most) for own in CONTEXTS)
        self.contexts: list[int] = np.random.default_rng((seed, 8)).integers(low, high + 1, limits.max_batch).tolist()

    def measure(self) -> FloatArray:
        """``[P, 2]`` seconds of every pass in `passes`: what it takes longer, and what it takes in all; medians."""
        found = np.empty((len(self.passes), TURNS, 2))
        for turn in range(TURNS):
            for at, own in enumerate(self.passes):
                # Each comes first every other time: who comes second finds the weights in the processor's caches.
                order = (0, 1) if turn % 2 else (1, 0)
                for which in order:
                    tokens = (own.unlike, own.alike)[which]
                    found[at, turn, which] = self.profiler.time_ragged_pass(
                        own.kind, tokens.tolist(), self.contexts[: len(tokens)]
                    )
        found[..., 1] = found[..., 0] - found[..., 1]
        middle: FloatArray = np.median(found, axis=1)[:, ::-1]
        return middle

    def costs(self, slowness: float) -> dict[str, float]:
        """The coefficients of `COSTS`, as they were before the machine became ``slowness`` times as slow."""
        return fit_ragged(self.passes, self.measure() / slowness)


def fit_ragged(passes: list[RaggedPass], seconds: FloatArray) -> dict[str, float]:
    """The coefficients of `COSTS` from `RaggedTimes.measure`'s ``seconds`` ``[P, 2]``; 0 where nothing was timed."""
    found = dict[str, float]()
    for kind, names in COSTS.items():
        chosen = [at for at, own in enumerate(passes) if own.kind == kind]
        counts = np.asarray([passes[at].work for at in chosen], dtype=np.float64).reshape(
            len(chosen), len(RoundWork._fields)
        )
        rounds = MeasuredRounds(RoundWork(*counts.T), np.zeros((len(chosen), 4)), seconds[chosen, 1])
        found |= fit_units(rounds, seconds[chosen, 0], names) if chosen else dict.fromkeys(names, 0.0)
    return found
