"""The shared state schema, read from vLLM's scheduler.

vLLM's ``v1/core/sched/scheduler.py`` fixes K at the end of ``schedule()``: the step that was scheduled verifies the
drafts of the step before and then drafts K tokens. So what is decided now is verified one step later (under
asynchronous scheduling two), and the requests that are shown are those that will have drafts then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np

from ...controllers import RoundState
from ...controllers.acceptance_rate import next_rate

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

_SPARE = 16
"""Histories of ended requests that are not worth looking for."""
_TOKENS_AHEAD = 2
"""See `room`."""


@dataclass(slots=True)
class RequestHistory:
    """What the plugin remembers of a request."""

    last_length: int = -1
    last_accepted: int = -1
    acceptance_rate: float = math.nan

    def enter(self, drafted: int, verified: int, accepted: int) -> None:
        """A round of the request."""
        self.last_length, self.last_accepted = drafted, accepted
        if verified:
            self.acceptance_rate = next_rate(self.acceptance_rate, accepted, verified)


class Histories:
    """`RequestHistory` of every request that vLLM still holds, by id."""

    def __init__(self) -> None:
        self._own: dict[str, RequestHistory] = {}

    def __getitem__(self, request_id: str) -> RequestHistory:
        history = self._own.get(request_id)
        if history is None:
            history = self._own[request_id] = RequestHistory()
        return history

    def __len__(self) -> int:
        return len(self._own)

    def keep(self, alive: Container[str], count: int) -> None:
        """Forget who is not among the ``count`` requests ``alive``, once there are twice as many."""
        if len(self._own) > 2 * count + _SPARE:
            self._own = {name: history for name, history in self._own.items() if name in alive}


@dataclass(slots=True)
class DecodingBatch:
    """The requests that decode in a step, in one order."""

    requests: Sequence[Request] = ()
    names: tuple[str, ...] = ()
    histories: Sequence[RequestHistory] = ()
    contexts: list[int] = field(default_factory=list)
    """Tokens of each."""
    outputs: list[int] = field(default_factory=list)
    """Of these, tokens generated."""
    left: list[int] = field(default_factory=list)
    """Tokens that each may still generate."""
    prefilled: list[int] = field(default_factory=list)
    """Tokens of each that are computed in this step though they were known before it: of its prompt, 0 once that is
    done."""
    has_part: bool = False
    """The step also computes a part of a prompt, for more does not fit into it."""

    @property
    def has_prompts(self) -> bool:
        """Whether the step computes prompts too, so that its time says little about decoding."""
        return self.has_part or any(self.prefilled)

    @classmethod
    def of(cls, scheduler: Scheduler, scheduled: SchedulerOutput, before: DecodingBatch, own: Histories) -> Self:
        """Those that will have all but their newest token computed after this step: they get drafts.

        To be called before ``Scheduler._update_after_schedule`` moves ``num_computed_tokens`` on. ``before``: of the
        step before, mostly the same.
        """
        known, contexts, outputs, left = scheduler.requests, list[int](), list[int](), list[int]()
        requests, prefilled = list["Request"](), list[int]()
        for name, count in scheduled.num_scheduled_tokens.items():
            request = known[name]
            context = request.num_tokens
            if request.num_computed_tokens + count >= context + request.num_output_placeholders:
                output = request.num_output_tokens
                requests.append(request)
                contexts.append(context)
                outputs.append(output)
                left.append(request.max_tokens - output)
                fresh = context - 1 - request.num_computed_tokens
                prefilled.append(fresh if fresh > 0 else 0)
        names = tuple([request.request_id for request in requests])
        histories = before.histories if names == before.names else [own[name] for name in names]
        has_part = len(names) < len(scheduled.num_scheduled_tokens)
        return cls(requests, names, histories, contexts, outputs, left, prefilled, has_part)

    def goes_on(self, scheduled: SchedulerOutput) -> bool:
        """Whether ``scheduled``, a step after the one that was looked at, decodes for the same requests and computes
        nothing else. Not for asynchronous scheduling, where the steps between have not been committed."""
        tokens, drafts = scheduled.num_scheduled_tokens, scheduled.scheduled_spec_decode_tokens
        count = len(tokens) + sum(map(len, drafts.values())) if drafts else len(tokens)
        return scheduled.total_num_scheduled_tokens == count > 0 and tuple(tokens) == self.names

    def load(self, scheduler: Scheduler) -> tuple[int, int]:
        """Requests that run, and that wait, in this step.

        Those who wait for nothing but their prompt's turn count as running, as in the embedded engine: who waits though
        all prompts are done lacks a slot or cache.
        """
        running, waiting = scheduler.get_request_counts()
        if self.has_part and waiting:
            admitted = min(waiting, scheduler.max_num_running_reqs - running)
            return running + admitted, waiting - admitted
        return running, waiting

    def least_room(self, max_model_len: int) -> int:
        """`room` of the request that has the least, which may be negative."""
        return min(min(self.left), max_model_len - max(self.contexts)) - _TOKENS_AHEAD

    def most_room(self, max_model_len: int) -> int:
        """What the request that has the most has at least."""
        return min(max(self.left), max_model_len - max(self.contexts)) - _TOKENS_AHEAD

    def rooms(self, longest: int, max_model_len: int) -> list[int]:
        """`room` of each request."""
        if self.least_room(max_model_len) >= longest:
            return [longest] * len(self.left)
        ahead = [min(own, max_model_len - context) for own, context in zip(self.left, self.contexts, strict=True)]
        return [max(0, min(own - _TOKENS_AHEAD, longest)) for own in ahead]


NOBODY = DecodingBatch()


def room(request: Request, longest: int, max_model_len: int, tokens_ahead: int = _TOKENS_AHEAD) -> int:
    """Tokens that may be drafted for ``request``, at most ``longest``.

    ``tokens_ahead``: what it gains for certain before a draft counts: one token of the step that is scheduled, unless
    that is committed already, and one of the verification, which gains one more than it accepts.
    """
    left: int = min(request.max_tokens - request.num_output_tokens, max_model_len - request.num_tokens) - tokens_ahead
    return max(0, min(left, longest))


def round_state(
    scheduler: Scheduler,
    batch: DecodingBatch,
    load: tuple[int, int],
    longest: int,
    arrival_rates: tuple[float, float],
    lag: Callable[[Request], int] | None,
) -> RoundState:
    """State of ``batch``; ``load``: as `DecodingBatch.load` says; ``longest``: vLLM's ``num_speculative_tokens``;
    ``lag``: None where it is always 0.

    Prompts of this step are lag of a lazy drafter: it takes them in only if the step drafts.
    """
    requests, own, count = batch.requests, batch.histories, len(batch.names)
    behind = [0] * count
    if lag is not None:
        behind = [lag(request) + fresh for request, fresh in zip(requests, batch.prefilled, strict=True)]
    # Two arrays for nine: between two steps of a model each call of NumPy is a cold one. From one flat list, since
    # NumPy takes its time to see how lists are nested.
    flat = batch.contexts + batch.outputs + behind + batch.rooms(longest, scheduler.max_model_len) + batch.left
    flat += [history.last_length for history in own] + [history.last_accepted for history in own]
    context, generated, lags, rooms, left, lengths, accepted = np.array(flat, dtype=np.int64).reshape(7, count)
    shares = [history.acceptance_rate for history in own] + [_temperature(request) for request in requests]
    rates, temperatures = np.array(shares, dtype=np.float64).reshape(2, count)
    return RoundState(
        request_ids=batch.names,
        context_length=context,
        num_generated=generated,
        lag=lags,
        max_num_speculative_tokens=rooms,
        last_num_speculative_tokens=lengths,
        last_accepted_length=accepted,
        acceptance_rate=rates,
        temperature=temperatures,
        tokens_left=left,
        running=load[0],
        waiting=load[1],
        kv_free=1.0 - scheduler.kv_cache_manager.usage,
        arrival_rates=arrival_rates,
    )


def _temperature(request: Request) -> float:
    params = request.sampling_params
    return 0.0 if params is None else params.temperature
