"""A step of vLLM from its schedule to what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...controllers import RoundOutcome
from .state import DecodingBatch

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import ModelRunnerOutput


@dataclass(slots=True)
class Step:
    """A step that was scheduled."""

    scheduled: SchedulerOutput
    batch: DecodingBatch
    """Who decodes in it, as the controller was shown them."""
    started: float
    decided: bool
    """The controller's decision was carried out; else it is not told."""
    places: Mapping[str, int] = field(default_factory=dict)
    """Where requests stand in `gained`."""
    gained: list[int] = field(default_factory=list)
    """Tokens that each of the model's rows has sampled."""
    generated: list[int] = field(default_factory=list)
    """Tokens that each request of the batch had before."""

    @property
    def is_calm(self) -> bool:
        """The same requests as before gained a token each, and nothing is drafted: that leaves nothing to count."""
        return self.batch.quiet > 0 and self.scheduled.num_spec_tokens_to_schedule == 0

    def verified(self, output: ModelRunnerOutput, is_asynchronous: bool) -> None:
        """The model has run, and vLLM has not yet committed, nor cut, what it sampled."""
        if self.scheduled.scheduled_spec_decode_tokens:  # Without drafts all gain one.
            self.places, self.gained = output.req_id_to_index, list(map(len, output.sampled_token_ids))
        if is_asynchronous:  # Another step was committed since this one was scheduled.
            self.generated = [request.num_output_tokens for request in self.batch.requests]
        else:
            self.generated = self.batch.outputs


@dataclass(slots=True)
class StepResult:
    """A step that came back. Lists are per request of its batch."""

    step: Step
    seconds: float
    drafted: list[int]
    verified: list[int]
    accepted: list[int]
    committed: list[int]

    @classmethod
    def of(cls, step: Step, seconds: float) -> StepResult:
        """After vLLM has committed the tokens: it has just looked at all this too."""
        batch, drafts, places = step.batch, step.scheduled.scheduled_spec_decode_tokens, step.places
        drafted, verified, accepted, committed = list[int](), list[int](), list[int](), list[int]()
        if not drafts:
            return cls._without_drafts(step, seconds)
        rows = zip(batch.names, batch.requests, batch.histories, step.generated, strict=True)
        for name, request, history, before in rows:
            count = len(drafts[name]) if name in drafts else 0
            # Of the tokens gained all but one were drafted.
            kept = step.gained[places[name]] - 1 if count and step.gained and name in places else 0
            now, most = request.num_output_tokens - before, history.drafted
            drafted.append(most if most > count else count)
            verified.append(count)
            accepted.append(0 if kept < 0 else kept if kept < count else count)
            committed.append(now if now > 0 else 0)
            history.drafted = 0
        return cls(step, seconds, drafted, verified, accepted, committed)

    @classmethod
    def _without_drafts(cls, step: Step, seconds: float) -> StepResult:
        """`of` a step that had none to verify."""
        batch, none = step.batch, [0] * len(step.batch.names)
        if batch.quiet:
            return cls(step, seconds, none, none, none, [1] * len(none))
        drafted = [history.drafted for history in batch.histories]
        if any(drafted):  # All was cut.
            for history in batch.histories:
                history.drafted = 0
        rows = zip(batch.requests, step.generated, strict=True)
        committed = [max(0, request.num_output_tokens - before) for request, before in rows]
        return cls(step, seconds, drafted, none, none, committed)

    def outcome(self) -> RoundOutcome:
        """What the controller is told. Enters the round into the requests' histories, so it is to be called once.

        vLLM does not time the parts of a step: all of ``seconds`` counts as verification, even where prompts are in it.
        """
        batch = self.step.batch
        if batch.quiet < 2:  # From the second quiet step on histories stay as they are.
            rounds = zip(batch.histories, self.drafted, self.verified, self.accepted, strict=True)
            for history, drafted, verified, accepted in rounds:
                history.enter(drafted, verified, accepted)
        # From one flat list: NumPy takes its time to see how lists are nested.
        flat = np.array(self.drafted + self.verified + self.accepted + self.committed, dtype=np.int64)
        num_drafted, num_verified, accepted_length, num_committed = flat.reshape(4, -1)
        return RoundOutcome(
            num_drafted=num_drafted,
            num_verified=num_verified,
            accepted_length=accepted_length,
            num_committed=num_committed,
            draft_seconds=0.0,
            verify_seconds=self.seconds,
            catch_up_seconds=0.0,
            host_seconds=0.0,
            is_timed=not batch.has_prompts,
        )
