"""Who arrives when: a closed loop, a steady or bursting stream, or a real trace's arrivals; of recorded requests."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..controllers.cost_table import CHUNK_STEP, CostTable, interpolate
from ..controllers.observation import plain_round_seconds
from .replay_state import Schedule
from .trace import Trace

MODES = ("closed", "poisson", "bursty", "csv")
BURST_SHARE, BURST_RATE, BURST_REQUESTS = 0.2, 3.5, 24
"""``bursty``: share of the time in bursts, their rate over the mean rate, requests in a burst on average."""
CSV_FIELDS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
"""Columns of the Azure LLM inference trace (github.com/Azure/AzurePublicDataset, CC-BY)."""


class TrafficError(ValueError):
    """Traffic cannot be made from what was given; the message is one line with the fix."""


@dataclass(frozen=True)
class Traffic:
    """What an environment or an evaluation serves."""

    mode: str = "closed"
    """``closed``: a number of requests in the system at any time; ``poisson``; ``bursty``: Poisson streams of two rates
    in turn; ``csv``: arrivals of a real trace."""
    concurrency: int = 8
    """Closed loop: requests in the system."""
    load: float = 0.8
    """Otherwise: arrival rate over the rate that plain decoding could serve with all slots in use."""
    path: str | None = None
    """``csv``: file with the columns of the Azure LLM inference trace. Times are scaled to ``load``; each request is
    the recorded one whose output ranks among the recorded as its ``GeneratedTokens`` does among the file's."""
    temperatures: tuple[float, ...] = ()
    """Serve only recorded requests of these temperatures; empty: all, mixed."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise TrafficError(f"traffic mode must be one of {MODES}, got {self.mode!r}")
        if self.concurrency < 1:
            raise TrafficError(f"concurrency must be 1 or more, got {self.concurrency}")
        if not 0 < self.load < np.inf:
            raise TrafficError(f"load must be positive, got {self.load}")
        if (self.mode == "csv") != (self.path is not None):
            raise TrafficError("traffic mode 'csv' needs a path, and only it takes one")

    @property
    def label(self) -> str:
        """A short name."""
        mix = "mix" if not self.temperatures else "T=" + ",".join(f"{value:g}" for value in self.temperatures)
        load = f"concurrency {self.concurrency}" if self.mode == "closed" else f"{self.mode} load {self.load:g}"
        return f"{mix}, {load}"


@dataclass(frozen=True, eq=False)
class ArrivalFile:
    """A trace of real arrivals; arrays are ``[N]``, in order of time."""

    seconds: NDArray[np.float64]
    """Since the first arrival."""
    generated_tokens: NDArray[np.int64]

    @classmethod
    def load(cls, path: str | Path) -> ArrivalFile:
        """Read a CSV. Raises `TrafficError` with file, line and what is wrong."""
        times, tokens = list[float](), list[int]()
        try:
            with open(path, newline="", encoding="utf-8") as file:
                rows = csv.DictReader(file)
                if missing := [name for name in CSV_FIELDS if name not in (rows.fieldnames or ())]:
                    raise TrafficError(f"{path}: lacks the column {missing[0]!r}; it needs {', '.join(CSV_FIELDS)}")
                for row in rows:
                    moment = datetime.fromisoformat(_microseconds(row["TIMESTAMP"])).timestamp()
                    tokens.append(int(row["GeneratedTokens"]))
                    times.append(moment)  # Last: their number says which line is read.
        except OSError as error:
            raise TrafficError(f"{path}: cannot be read ({error.strerror})") from None
        except TrafficError:
            raise
        except (ValueError, TypeError, csv.Error) as error:
            raise TrafficError(f"{path}: line {len(times) + 2}: {error}") from None
        if len(times) < 2 or max(times) == min(times):
            raise TrafficError(f"{path}: needs two or more arrivals at different times, got {len(times)}")
        order = np.argsort(times, kind="stable")
        seconds = np.asarray(times)[order]
        return cls(seconds - seconds[0], np.asarray(tokens, dtype=np.int64)[order])


def _microseconds(text: str) -> str:
    """Cut a time stamp of seven decimals to the six that Python reads."""
    head, dot, decimals = text.strip().partition(".")
    return head + dot + decimals[:6] if dot else head


def plain_capacity(trace: Trace, costs: CostTable, num_slots: int) -> float:
    """Requests of ``trace`` that plain decoding can serve per second with all slots in use."""
    batch = min(num_slots, costs.max_batch)
    context = float(np.mean(trace.prompt_tokens + trace.output_tokens / 2))
    decode = float(np.mean(trace.output_tokens)) * plain_round_seconds(costs, batch, context) / batch
    prefill = interpolate(costs.prefill, 1, float(np.mean(trace.prompt_tokens)) / CHUNK_STEP, 0.0)
    return 1.0 / (decode + prefill)


def make_schedule(
    trace: Trace,
    traffic: Traffic,
    costs: CostTable,
    num_slots: int,
    num_requests: int,
    rng: np.random.Generator,
    arrivals: ArrivalFile | None = None,
) -> Schedule:
    """One engine's arrivals (``E`` = 1). ``arrivals``: the loaded file of ``csv`` traffic.

    Raises `TrafficError` where no recorded request has one of the traffic's temperatures.
    """
    pool = np.arange(len(trace))
    if traffic.temperatures:
        chosen = np.isin(
            np.round(trace.temperature, 4), np.round(np.asarray(traffic.temperatures, dtype=np.float32), 4)
        )
        pool = np.flatnonzero(chosen)
        if not pool.size:
            raise TrafficError(f"no recorded request has a temperature of {traffic.temperatures}; record some")
    times = np.zeros(num_requests)
    ranks = rng.random(num_requests)
    rate = traffic.load * plain_capacity(trace.select(pool), costs, num_slots)
    if traffic.mode == "poisson":
        times = np.cumsum(rng.exponential(1 / rate, size=num_requests))
    elif traffic.mode == "bursty":
        times = bursty_times(num_requests, rate, rng)
    elif traffic.mode == "csv":
        times, ranks = _from_file(arrivals or ArrivalFile.load(str(traffic.path)), num_requests, rate, rng)
    if traffic.mode == "csv":
        ordered = pool[np.lexsort((rng.random(len(pool)), trace.output_tokens[pool]))]
        record = ordered[np.minimum((ranks * len(pool)).astype(np.int64), len(pool) - 1)]
    else:
        # Every recorded request once before any comes again: less noise between runs of one length.
        rounds = -(-num_requests // len(pool))
        record = np.concatenate([rng.permutation(pool) for _ in range(rounds)])[:num_requests]
    return Schedule(
        arrival=times[None],
        record=record[None],
        length=trace.output_tokens[record].astype(np.int64)[None] - trace.tokens_from_prefill,
        limit=trace.token_limit[record].astype(np.int64)[None] - trace.tokens_from_prefill,
        count=np.asarray([num_requests]),
        concurrency=np.asarray([traffic.concurrency if traffic.mode == "closed" else 0]),
    )


def bursty_times(count: int, rate: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """``[count]`` seconds of arrivals of a Poisson stream that alternates between calm and bursts; ``rate``: mean.

    The lengths of both phases are exponential. Half of the streams begin with a burst, so that the mean is ``rate``
    only over many bursts.
    """
    burst = rate * BURST_RATE
    calm = rate * (1 - BURST_SHARE * BURST_RATE) / (1 - BURST_SHARE)
    burst_seconds = BURST_REQUESTS / burst
    phases = [(burst, burst_seconds), (calm, burst_seconds * (1 - BURST_SHARE) / BURST_SHARE)]
    times, start, number = np.zeros(0), 0.0, int(rng.integers(2))
    while len(times) < count:
        own, mean = phases[number % 2]
        seconds = rng.exponential(mean)
        times = np.concatenate([times, start + np.sort(rng.random(rng.poisson(own * seconds))) * seconds])
        start, number = start + seconds, number + 1
    return times[:count]


def _from_file(
    file: ArrivalFile, count: int, rate: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A window of the file, its whole time scaled so that ``rate`` arrive per second; times and output ranks."""
    available = len(file.seconds)
    start = int(rng.integers(0, max(available - count, 0) + 1))
    index = (start + np.arange(count)) % available
    wraps = (start + np.arange(count)) // available
    times = file.seconds[index] + wraps * file.seconds[-1] - file.seconds[start]
    scale = count / max(times[-1], 1e-9) / rate
    order = np.argsort(np.argsort(file.generated_tokens + rng.random(available)))
    ranks: NDArray[np.float64] = (order[index] + rng.random(count)) / available
    return times * scale, ranks


def stack(schedules: Sequence[Schedule]) -> Schedule:
    """Join schedules of single engines to one of many; shorter ones are padded."""
    longest = max(schedule.arrival.shape[1] for schedule in schedules)

    def padded(name: str) -> NDArray[Any]:
        rows = [getattr(schedule, name) for schedule in schedules]
        return np.concatenate([np.pad(row, ((0, 0), (0, longest - row.shape[1]))) for row in rows])

    arrival, record, length, limit = (padded(name) for name in ("arrival", "record", "length", "limit"))
    return Schedule(
        arrival,
        record,
        length,
        limit,
        count=np.concatenate([schedule.count for schedule in schedules]),
        concurrency=np.concatenate([schedule.concurrency for schedule in schedules]),
    )
