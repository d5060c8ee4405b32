"""Measure what vLLM's steps cost, and write it as a cost surface.

vLLM runs no single passes. So its steps are timed, and in each the part that drafts (`propose_draft_token_ids` of
``v1/worker/gpu_model_runner.py``, catch-up included). The rest of a step that verifies is the pass ``verify``, with
all that vLLM does around it; what a draft of 8 tokens takes longer than one of 2 gives the pass ``draft``. The first
level of a draft also takes in the tokens of the round before: what it costs more goes into the surface's overhead, and
so does what steps of requests that sample take longer than those of greedy ones: for each row of logits, and once for
rejection sampling where there are drafts to verify.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import cycle, islice, product
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.optimize import linprog, nnls
from tqdm.auto import tqdm

from specpilot.controllers import CostSurface
from specpilot.controllers.controller import FloatArray
from specpilot.controllers.pass_costs import PassCosts
from specpilot.controllers.round_overhead import RoundOverhead
from specpilot.engine import SamplingParams
from specpilot.engine.profiler import cpu_name
from specpilot.envs.live import drop_requests

if TYPE_CHECKING:
    from specpilot.engine.vllm.engine import VllmEngine

LEAST_SECONDS = 1e-7
"""Of a difference that came out as nothing."""


class StepTime(NamedTuple):
    """Seconds of a step."""

    draft: float
    rest: float


@dataclass(frozen=True)
class StepGrid:
    """Where steps are measured."""

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    lengths: tuple[int, ...] = (0, 1, 2, 4, 8)
    """Speculation lengths; 0 and two others at least."""
    contexts: tuple[int, ...] = (64, 384)
    chunk_batches: tuple[int, ...] = (1, 4)
    chunk_tokens: tuple[int, ...] = (4, 16, 64, 192)
    """Prompts, and what a drafter has missed."""
    steps: int = 2
    """Measured in a row, for each length."""
    sampled_context: int = 64
    """Where steps are measured that sample, too."""
    sweeps: int = 4
    """Over the whole grid, in shuffled order: a slow spell of the machine then hits different points."""

    def cut(self, max_batch: int, longest: int) -> StepGrid:
        """Within what an engine can do."""
        lengths = sorted({min(own, longest) for own in self.lengths})
        batches = sorted({min(own, max_batch) for own in self.batches})
        chunks = sorted({min(own, max_batch) for own in self.chunk_batches})
        return replace(self, lengths=tuple(lengths), batches=tuple(batches), chunk_batches=tuple(chunks))


class StepMeter:
    """Times steps of an idle engine with the `RecordingScheduler`."""

    def __init__(self, engine: VllmEngine, seed: int) -> None:
        self.engine = engine
        self.rng = np.random.default_rng((seed, 9))
        self.vocabulary = int(engine.scheduler.vllm_config.model_config.get_vocab_size())
        self._draft_seconds = 0.0

    @contextmanager
    def timing(self) -> Iterator[None]:
        """Time the drafting from here on."""
        runner = self.engine.model_runner
        propose = runner.propose_draft_token_ids

        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            found = propose(*arguments, **named)
            self._draft_seconds += time.perf_counter() - start
            return found

        runner.propose_draft_token_ids = timed
        try:
            yield
        finally:
            del runner.propose_draft_token_ids

    def step(self, length: int, verify: bool = True) -> StepTime:
        """One step that drafts ``length`` tokens; ``verify``: the next verifies them."""
        scheduler = self.engine.scheduler
        scheduler.length, scheduler.verify = length, verify
        self._draft_seconds, start = 0.0, time.perf_counter()
        self.engine.step()
        return StepTime(self._draft_seconds, time.perf_counter() - start - self._draft_seconds)

    @contextmanager
    def requests(self, batch: int, prompt: int, steps: int, temperatures: Sequence[float] = (0.0,)) -> Iterator[None]:
        """``batch`` requests of ``prompt`` random tokens that go on for ``steps`` steps at least, ``temperatures`` in
        turn."""
        names = [
            self.engine.add_request(
                self.rng.integers(self.vocabulary, size=prompt).tolist(),
                SamplingParams(temperature=own, max_tokens=steps + 2, ignore_eos=True),
            )
            for own in islice(cycle(temperatures), batch)
        ]
        try:
            yield
        finally:
            drop_requests(self.engine, names)

    def decode_times(
        self, batch: int, context: int, grid: StepGrid, temperatures: Sequence[float] = (0.0,)
    ) -> dict[int, list[StepTime]]:
        """Steps of each speculation length, at about ``context`` tokens."""
        total = len(grid.lengths) * (grid.steps + 1)
        times: dict[int, list[StepTime]] = {}
        # Above 0 a spoiled draft may be accepted, which takes no longer but ends a request sooner.
        with self.requests(batch, max(1, context - total // 2), 2 * total + context, temperatures):
            while any(request.is_prefill_chunk or not request.num_output_tokens for request in self._alive()):
                self.step(grid.lengths[-1], verify=False)
            for length in self.rng.permutation(grid.lengths).tolist():
                self.step(length)  # Verifies the length before.
                times[length] = [self.step(length) for _ in range(grid.steps)]
        return times

    def chunk_times(self, batch: int, tokens: int) -> tuple[float, float]:
        """Seconds of a prefill of ``tokens`` tokens for each request, and of the drafter's when it comes to it."""
        with self.requests(batch, tokens, 8):
            first = self.step(0)
            while any(not request.num_output_tokens for request in self._alive()):
                more = self.step(0)
                first = StepTime(first.draft + more.draft, first.rest + more.rest)
            missed, usual = self.step(1, verify=False), self.step(1, verify=False)
        prefill = first.rest - usual.rest + max(0.0, first.draft - usual.draft)
        return max(prefill, LEAST_SECONDS), max(missed.draft - usual.draft, LEAST_SECONDS)

    def _alive(self) -> list[Any]:
        scheduler = self.engine.scheduler
        return [*scheduler.running, *scheduler.waiting]


def measure_steps(
    engine: VllmEngine, seed: int = 0, grid: StepGrid | None = None, progress: bool = False
) -> CostSurface:
    """Measure an idle engine with the `RecordingScheduler` and a drafter."""
    grid = (grid or StepGrid()).cut(engine.config.max_num_seqs, engine.config.max_num_speculative_tokens)
    meter = StepMeter(engine, seed)
    decode = list(product(grid.batches, grid.contexts))
    chunks = list(product(grid.chunk_batches, grid.chunk_tokens))
    times: dict[tuple[int, int], dict[int, list[StepTime]]] = {}
    chunked: dict[tuple[int, int], list[tuple[float, float]]] = {}
    sampled: list[tuple[int, bool, float]] = []
    jobs: list[Any] = [partial(_enter_decode, meter, grid, times, *own) for own in decode]
    jobs += [partial(_enter_chunk, meter, grid, chunked, *own) for own in chunks]
    jobs += [partial(_enter_sampled, meter, grid, sampled, own) for own in grid.batches]
    with meter.timing(), tqdm(total=len(jobs) * grid.sweeps, desc="cost surface", disable=not progress) as bar:
        jobs[0]()  # Warms up.
        times.clear()
        for _ in range(grid.sweeps):
            for number in meter.rng.permutation(len(jobs)).tolist():
                jobs[number]()
                bar.update()
    surface = surface_of(grid, times, chunked, fingerprint_fields(engine))
    return replace(surface, overhead=replace(surface.overhead, **sampling_overhead(sampled)))


def _enter_decode(
    meter: StepMeter, grid: StepGrid, times: dict[tuple[int, int], dict[int, list[StepTime]]], batch: int, context: int
) -> None:
    own = times.setdefault((batch, context), {length: [] for length in grid.lengths})
    for length, found in meter.decode_times(batch, context, grid).items():
        own[length] += found


def _enter_sampled(meter: StepMeter, grid: StepGrid, rows: list[tuple[int, bool, float]], batch: int) -> None:
    """For every speculation length: rows of logits that are sampled from, whether drafts are among them, and what their
    step takes longer than one of greedy requests alone.

    Every second request samples: vLLM then works out both kinds of token for all.
    """
    greedy, sampling = (meter.decode_times(batch, grid.sampled_context, grid, own) for own in ((0.0,), (1.0, 0.0)))
    sampled = (batch + 1) // 2
    for length in grid.lengths:
        longer = np.median([own.rest for own in sampling[length]]) - np.median([own.rest for own in greedy[length]])
        rows.append((sampled * (length + 1), length > 0, float(longer)))


def sampling_overhead(rows: list[tuple[int, bool, float]]) -> dict[str, float]:
    """Seconds of a row, and of drafting at all, by least absolute deviations from what `_enter_sampled` found: one slow
    step then does not count.
    """
    units, seconds = np.asarray([own[:2] for own in rows], dtype=np.float64), np.asarray([own[2] for own in rows])
    each = np.eye(len(rows))
    # min sum(over + under) where units @ found + over - under = seconds, all of them 0 or more.
    solved = linprog(
        np.r_[np.zeros(units.shape[1]), np.ones(2 * len(rows))], A_eq=np.hstack([units, each, -each]), b_eq=seconds
    )
    per_row, per_round = solved.x[: units.shape[1]].tolist()
    return {"per_noise_row": per_row, "noisy_drafting": per_round}


def _enter_chunk(
    meter: StepMeter, grid: StepGrid, times: dict[tuple[int, int], list[tuple[float, float]]], batch: int, tokens: int
) -> None:
    times.setdefault((batch, tokens), []).extend(meter.chunk_times(batch, tokens) for _ in range(grid.steps))


def surface_of(
    grid: StepGrid,
    times: dict[tuple[int, int], dict[int, list[StepTime]]],
    chunked: dict[tuple[int, int], list[tuple[float, float]]],
    fields: dict[str, str],
) -> CostSurface:
    """The cost surface of what was measured, see the module."""
    shape = (len(grid.batches), len(grid.contexts))
    cells = [[times[batch, context] for context in grid.contexts] for batch in grid.batches]
    draft = np.asarray([[[[t.draft for t in c[k]] for k in grid.lengths] for c in row] for row in cells])
    rest = np.asarray([[[[t.rest for t in c[k]] for k in grid.lengths] for c in row] for row in cells])
    idle = np.median(draft[:, :, 0], axis=-1)[:, :, None, None]  # [B, C, 1, 1]; 0 where catch-up is lazy.
    verify = np.moveaxis(rest + idle, 1, 2)  # [B, K, C, samples]
    level = level_seconds(grid, draft - idle)
    chunk = np.asarray([[chunked[b, n] for n in grid.chunk_tokens] for b in grid.chunk_batches])  # [B, N, samples, 2]
    tokens = tuple(length + 1 for length in grid.lengths)
    costs = {
        "draft": PassCosts((grid.batches, (1,), grid.contexts), level.reshape(shape[0], 1, shape[1], -1)),
        "verify": PassCosts((grid.batches, tokens, grid.contexts), verify),
        "catch_up": PassCosts((grid.chunk_batches, grid.chunk_tokens, (1,)), chunk[:, :, None, :, 1]),
        "prefill": PassCosts((grid.chunk_batches, grid.chunk_tokens, (1,)), chunk[:, :, None, :, 0]),
    }
    overhead = first_level_overhead(grid, np.median(draft - idle, axis=-1), np.median(level, axis=-1))
    return CostSurface(
        costs, fields, datetime.now(UTC).isoformat(timespec="seconds"), overhead, drafts_whole_batch=True
    )


def level_seconds(grid: StepGrid, draft: FloatArray) -> FloatArray:
    """``[B, C, samples]`` of one more draft level; ``draft`` ``[B, C, K, samples]``."""
    short = 2 if len(grid.lengths) > 3 else 1
    span = grid.lengths[-1] - grid.lengths[short]
    return np.maximum((draft[:, :, -1] - draft[:, :, short]) / span, LEAST_SECONDS)


def first_level_overhead(grid: StepGrid, draft: FloatArray, level: FloatArray) -> RoundOverhead:
    """What drafting costs beyond its levels, per round and per drafted token: ``draft`` ``[B, C, K]``, ``level``
    ``[B, C]``, medians."""
    rows, extra = [], []
    for b, batch in enumerate(grid.batches):
        for c in range(len(grid.contexts)):
            for k, length in enumerate(grid.lengths):
                if length:
                    rows.append((1.0, float(batch * length)))
                    extra.append(draft[b, c, k] - length * level[b, c])
    found, _ = nnls(np.asarray(rows), np.maximum(extra, 0.0))
    return RoundOverhead(drafting=float(found[0]), per_drafted_token=float(found[1]))


def fingerprint_fields(engine: VllmEngine) -> dict[str, str]:
    """See `PassTimer.fingerprint_fields`."""
    import torch
    import vllm

    config = engine.config
    own = engine.scheduler.vllm_config
    hardware = torch.cuda.get_device_name() if torch.cuda.is_available() else cpu_name()
    return {
        "hardware": f"{hardware}, {torch.get_num_threads()} threads",
        "dtype": config.dtype,
        "versions": f"python {platform.python_version()}, torch {torch.__version__}, vllm {vllm.__version__}, "
        f"specpilot {version('specpilot')}",
        "target": _shape(own.model_config),
        "drafter": _shape(own.speculative_config.draft_model_config),
        "catch_up": "lazy" if config.lazy_catch_up else "stock",
    }


def _shape(model_config: Any) -> str:
    own = model_config.hf_text_config
    return (
        f"{own.model_type}, {own.num_hidden_layers} layers, {own.num_attention_heads} heads "
        f"({own.num_key_value_heads} for keys), width {own.hidden_size}, vocabulary {own.vocab_size}"
    )
