"""A step of vLLM from its schedule to what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...controllers import RoundOutcome
from .state import Histories

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request


@dataclass(slots=True)
class Step:
    """A step that was scheduled and has not come back."""

    scheduled: SchedulerOutput
    requests: list[Request]
    """Those that decode in it, as the controller was shown them."""
    started: float
    decided: bool
    """The controller's decision was carried out; else it is not told."""


@dataclass(slots=True)
class StepResult:
    """A step that came back. Lists are per request of ``step``."""

    step: Step
    generated: list[int]
    """Tokens that each request had before."""
    verified: list[int]
    accepted: list[int]
    drafted: list[int] = field(default_factory=list)
    """Known after `outcome`."""

    @classmethod
    def of(cls, step: Step, output: ModelRunnerOutput) -> StepResult:
        """Before vLLM commits the tokens: afterwards the requests that ended are gone from the scheduler."""
        generated, verified, accepted = list[int](), list[int](), list[int]()
        places, sampled = output.req_id_to_index, output.sampled_token_ids
        drafts = step.scheduled.scheduled_spec_decode_tokens
        for request in step.requests:
            name = request.request_id
            place = places.get(name)
            gained = len(sampled[place]) if place is not None and sampled else 0
            count = len(drafts.get(name, ()))
            generated.append(request.num_output_tokens)
            verified.append(count)
            accepted.append(min(max(gained - 1, 0), count))
        return cls(step, generated, verified, accepted)

    def outcome(self, histories: Histories, seconds: float) -> RoundOutcome:
        """After vLLM has committed the tokens. Enters the round into ``histories``.

        vLLM does not time the parts of a step: all of ``seconds`` counts as verification.
        """
        committed = list[int]()
        rows = zip(self.step.requests, self.generated, self.verified, self.accepted, strict=True)
        for request, before, verified, accepted in rows:
            history = histories[request.request_id]
            drafts = max(history.drafted, verified)
            self.drafted.append(drafts)
            committed.append(max(0, request.num_output_tokens - before))
            history.enter(drafts, verified, accepted)
            history.drafted = 0
        rounds = np.array([self.drafted, self.verified, self.accepted, committed], dtype=np.int64)
        return RoundOutcome(
            num_drafted=rounds[0],
            num_verified=rounds[1],
            accepted_length=rounds[2],
            num_committed=rounds[3],
            draft_seconds=0.0,
            verify_seconds=seconds,
            catch_up_seconds=0.0,
            host_seconds=0.0,
        )
