"""Serve recorded requests under any controller: the engine's loop with tokens from a recording, seconds from costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..controllers import Controller, CostSurface, DraftLevel, RoundOutcome, RoundState
from ..controllers.cost_table import CostTable
from .replay_queue import begin
from .replay_requests import allowed_lengths, contexts, gather, positions, temperatures
from .replay_round import finish_round
from .replay_state import Fleet, IntArray, Recording, Schedule
from .trace import Trace


@dataclass(frozen=True)
class ReplayConfig:
    """The engine that is replayed; names as in ``EngineConfig``."""

    max_num_seqs: int = 32
    max_model_len: int = 1024
    prefill_chunk: int = 1024

    def __post_init__(self) -> None:
        for name in ("max_num_seqs", "max_model_len", "prefill_chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def bake(self, surface: CostSurface, max_num_speculative_tokens: int) -> CostTable:
        """The costs of this engine as a table."""
        return CostTable.bake(surface, self.max_num_seqs, max_num_speculative_tokens, self.max_model_len)


@dataclass(frozen=True)
class Served:
    """What serving a schedule came to."""

    tokens: int
    busy_seconds: float
    """Time in steps; idle time is not in it."""
    makespan_seconds: float
    """From the first arrival to the last end."""
    latency_seconds: float
    """Sum over requests of the time from arrival to end."""
    first_token_seconds: tuple[float, ...]
    """Per request, from arrival to its first token. Closed loop: not known, empty."""
    rounds: int
    drafted: int
    verified: int
    accepted: int
    request_rounds: int
    """Requests that decoded, summed over rounds: decisions made."""

    @property
    def tokens_per_second(self) -> float:
        """Throughput over the makespan."""
        return self.tokens / self.makespan_seconds

    @property
    def request_tokens_per_second(self) -> float:
        """What a user sees: tokens over the time that requests were in the system, waiting included."""
        return self.tokens / self.latency_seconds


class ReplayEngine:
    """One replayed engine. It is also the `Foresight` of oracles: request ids are numbers of the schedule."""

    def __init__(
        self,
        trace: Trace,
        costs: CostTable,
        schedule: Schedule,
        config: ReplayConfig,
        recording: Recording | None = None,
    ) -> None:
        """``schedule``: of one engine (`make_schedule`). ``recording``: of ``trace``, where one is at hand."""
        self.trace = trace
        self.costs = costs
        self.schedule = schedule
        self.config = config
        self.recording = Recording.of(trace) if recording is None else recording
        self.fleet = Fleet.new(schedule, config.max_num_seqs)
        self._confidence = trace.confidence
        self._longest = trace.max_num_speculative_tokens

    def accepted_length(self, request_ids: Sequence[str], num_generated: IntArray) -> IntArray:
        """See `Foresight.accepted_length`."""
        record = self.schedule.record[0, [int(name) for name in request_ids]]
        accepted: IntArray = self.recording.accepted[self.recording.first[record] + num_generated]
        return accepted

    def advance(self) -> bool:
        """Go on until a decision is due; False when everything is served."""
        return begin(self.recording, self.schedule, self.fleet, self.costs, self.config.prefill_chunk, 0)

    def state(self) -> tuple[RoundState, IntArray]:
        """The round that is due, and the slots that take part in it."""
        fleet, slots = self.fleet, gather(self.fleet, 0)
        requests = fleet.request[0, slots]
        context = contexts(self.recording, self.schedule, fleet, 0, slots)
        generated = fleet.generated[0, slots]
        used = int((fleet.prefilled[0] + fleet.generated[0])[: fleet.running[0]].sum())
        elapsed = max(float(fleet.clock[0] - fleet.meter[0, 2]), 0.0)
        rates = fleet.meter[0, :2] * np.exp(-elapsed / np.asarray([1.0, 10.0]))
        state = RoundState(
            request_ids=tuple(map(str, requests.tolist())),
            context_length=context,
            num_generated=generated,
            lag=fleet.lag[0, slots],
            max_num_speculative_tokens=allowed_lengths(self.schedule, fleet, 0, slots, self._longest),
            last_num_speculative_tokens=fleet.last_drafted[0, slots],
            last_accepted_length=fleet.last_accepted[0, slots],
            acceptance_rate=fleet.rate[0, slots],
            temperature=temperatures(self.recording, self.schedule, fleet, 0, slots),
            tokens_left=self.schedule.limit[0, requests] - generated,
            running=int(fleet.running[0]),
            waiting=int(fleet.arrived[0] - fleet.admitted[0]),
            kv_free=1 - used / (self.config.max_num_seqs * self.config.max_model_len),
            arrival_rates=(float(rates[0]), float(rates[1])),
        )
        return state, slots

    def play_round(self, controller: Controller) -> RoundOutcome:
        """Ask ``controller`` and carry out what it says, as the engine does."""
        state, slots = self.state()
        wanted = np.asarray(controller.decide(state).num_speculative_tokens)
        lengths = np.minimum(wanted, state.max_num_speculative_tokens).astype(np.int64)
        drafted, levels, asked = lengths.copy(), 0, 0
        if controller.asked_levels and lengths.any():
            drafted, levels, asked = self._draft(controller, slots, lengths, state)
        verified = drafted
        if controller.trims and drafted.any():
            verified = np.asarray(controller.verify_lengths(drafted.copy())).astype(np.int64)
            if (verified < 0).any() or (verified > drafted).any():
                raise ValueError(f"verify_lengths must return 0 … {drafted.tolist()}, got {verified.tolist()}")
        accepted, committed, parts = finish_round(
            self.recording,
            self.schedule,
            self.fleet,
            self.costs,
            0,
            slots,
            lengths,
            drafted,
            verified,
            levels,
            asked,
            bool(controller.plans),
            True,
            1.0,
        )
        outcome = RoundOutcome(drafted, verified, accepted, committed, parts[1], parts[2], parts[0], parts[3])
        controller.observe(outcome)
        return outcome

    def _draft(
        self, controller: Controller, slots: IntArray, lengths: IntArray, state: RoundState
    ) -> tuple[IntArray, int, int]:
        """Draft level by level. Returns tokens drafted ``[B]``, levels and answers that were asked for."""
        at = positions(self.recording, self.schedule, self.fleet, 0, slots)
        drafted, now = np.zeros(len(slots), dtype=np.int64), lengths.copy()
        active, levels, asked, depth = np.flatnonzero(lengths), 0, 0, 0
        while active.size:
            depth += 1
            drafted[active] = depth
            told = active if controller.trims else active[lengths[active] > depth]
            if told.size and depth <= controller.asked_levels:
                if self._confidence is None:
                    told_of = np.full((len(told), 4), np.nan)
                else:
                    told_of = self._confidence[at[told], depth - 1].astype(np.float64)
                levels, asked = levels + 1, asked + len(told)
                answer = np.asarray(controller.new_lengths(DraftLevel(depth, told, *told_of.T)))
                if answer.dtype.kind not in "iu" or (answer < depth).any():
                    raise ValueError(f"new_lengths must return integers, {depth} or more, got {answer.tolist()}")
                now[told] = np.minimum(answer, lengths[told])
            active = active[now[active] > depth]
        return drafted, levels, asked

    def serve(self, controller: Controller, max_rounds: int | None = None) -> Served:
        """Serve the schedule to its end (or ``max_rounds``) and sum up."""
        rounds = drafted = verified = accepted = decisions = 0
        while (max_rounds is None or rounds < max_rounds) and self.advance():
            outcome = self.play_round(controller)
            rounds += 1
            decisions += len(outcome.num_drafted)
            drafted += int(outcome.num_drafted.sum())
            verified += int(outcome.num_verified.sum())
            accepted += int(outcome.accepted_length.sum())
        fleet, schedule = self.fleet, self.schedule
        open_loop = schedule.concurrency[0] == 0
        ended = ~np.isnan(fleet.finish[0])
        waits = (fleet.start[0] - schedule.arrival[0])[ended] if open_loop else np.empty(0)
        return Served(
            tokens=int(fleet.tokens[0]),
            busy_seconds=float(fleet.seconds[0]),
            makespan_seconds=float(fleet.clock[0] - schedule.arrival[0, 0]),
            latency_seconds=float(fleet.weight[0]),
            first_token_seconds=tuple(waits.tolist()),
            rounds=rounds,
            drafted=drafted,
            verified=verified,
            accepted=accepted,
            request_rounds=decisions,
        )
