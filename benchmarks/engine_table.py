"""Decode throughput over batch size and speculation length, each cell relative to K = 0 of the same repeat."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..controllers import ConstantController
from ..engine import Engine, EngineConfig, Pair, SamplingParams
from .engine_config import EngineBenchmark, TableSettings
from .measurement import Prompt, Prompts, differing, spread


@dataclass
class Cell:
    """One (batch, K) in one repeat."""

    steady_seconds: float = 0.0
    """Rounds in which the whole batch decodes, without target prefill; drafter catch-up and host time included."""
    steady_tokens: int = 0
    """Tokens committed in those rounds."""
    wall_seconds: float = 0.0
    """From the first request to the last result: prefill and the rounds of a shrinking batch included."""
    wall_tokens: int = 0
    drafts: int = 0
    """Requests' rounds in which something was drafted."""
    accepted: int = 0
    outputs: list[list[int]] = field(default_factory=list)

    @property
    def steady_rate(self) -> float:
        """Tokens per second in steady decoding."""
        return self.steady_tokens / self.steady_seconds

    @property
    def wall_rate(self) -> float:
        """Tokens per second of wall time."""
        return self.wall_tokens / self.wall_seconds


def measure_table(config: EngineBenchmark, pair: Pair, prompts: Prompts, tick: Callable[[], object]) -> dict[str, Any]:
    """(d) All temperatures, batches and lengths. K runs inside the repeat, so that a ratio's parts are neighbours."""
    settings = config.table
    # The whole batch is prefilled in one step: with the default chunk, early requests would decode (and end) while
    # late ones prefill, and few rounds would see the batch full.
    engine = Engine(
        pair,
        EngineConfig(
            max_num_seqs=max(settings.batches), max_num_speculative_tokens=config.max_length, prefill_chunk=1 << 20
        ),
    )
    tables = {}
    for temperature in settings.temperatures:
        rows = {}
        for batch in settings.batches:
            repeats = []
            for repeat in range(settings.repeats):
                groups = prompts.groups(repeat, settings.requests, batch)
                repeats.append(_repeat(engine, settings, temperature, groups, repeat))
                tick()
            rows[str(batch)] = _summary(repeats, settings.lengths)
        tables[f"{temperature:g}"] = rows
    return tables


def _repeat(
    engine: Engine, settings: TableSettings, temperature: float, groups: Sequence[Sequence[Prompt]], repeat: int
) -> dict[int, Cell]:
    cells = {length: Cell() for length in settings.lengths}
    if repeat == 0:  # warm-up: the first passes at a batch size allocate
        for length in (0, max(settings.lengths)):
            _serve(engine, length, settings.new_tokens, temperature, groups[0], Cell())
    for number, group in enumerate(groups):
        first = (repeat + number) % len(settings.lengths)
        for length in settings.lengths[first:] + settings.lengths[:first]:
            _serve(engine, length, settings.new_tokens, temperature, group, cells[length])
    return cells


def _serve(
    engine: Engine, length: int, new_tokens: int, temperature: float, prompts: Sequence[Prompt], cell: Cell
) -> None:
    engine.controller = ConstantController(length)
    params = [
        SamplingParams(temperature=temperature, seed=prompt.index, max_tokens=new_tokens, ignore_eos=True)
        for prompt in prompts
    ]
    before = engine.stats.num_rounds
    start = time.perf_counter()
    results = engine.generate([prompt.token_ids for prompt in prompts], params)
    cell.wall_seconds += time.perf_counter() - start
    cell.wall_tokens += sum(len(result.token_ids) for result in results)
    cell.outputs += [list(result.token_ids) for result in results]
    for record in engine.stats.rounds:
        if record.index < before:
            continue
        cell.drafts += sum(drafted > 0 for drafted in record.num_drafted)
        cell.accepted += sum(record.accepted_length)
        if len(record.request_ids) == len(prompts):
            cell.steady_seconds += record.total_seconds - record.prefill_seconds
            cell.steady_tokens += record.num_committed


def _summary(repeats: Sequence[dict[int, Cell]], lengths: Sequence[int]) -> dict[str, Any]:
    summary = {}
    for length in lengths:
        cells, plain = [cells[length] for cells in repeats], [cells[0] for cells in repeats]
        drafts = sum(cell.drafts for cell in cells)
        raw = [{key: value for key, value in asdict(cell).items() if key != "outputs"} for cell in cells]
        summary[str(length)] = {
            "tokens_per_second": spread([cell.steady_rate for cell in cells]),
            "speed_relative_to_k0": spread(
                [cell.steady_rate / base.steady_rate for cell, base in zip(cells, plain, strict=True)]
            ),
            "wall_speed_relative_to_k0": spread(
                [cell.wall_rate / base.wall_rate for cell, base in zip(cells, plain, strict=True)]
            ),
            "mean_accepted_length": sum(cell.accepted for cell in cells) / drafts if drafts else 0.0,
            "requests": sum(len(cell.outputs) for cell in cells),
            # Lossless means that K never shows in the text; rounding may break a tie differently.
            "mismatching": sum(
                len(differing(cell.outputs, base.outputs)) for cell, base in zip(cells, plain, strict=True)
            ),
            "samples": raw,
        }
    return summary
