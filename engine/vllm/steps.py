"""A step of vLLM from its schedule to what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ...controllers import RoundOutcome
from .state import DecodingBatch

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput


@dataclass(slots=True)
class Step:
    """A step that was scheduled."""

    scheduled: SchedulerOutput
    batch: DecodingBatch
    """Who decodes in it. Several steps of the same requests share the look at the first of them."""
    started: float
    drafted: Mapping[str, int]
    """Tokens that were drafted to be verified in it, before trimming."""
    looked: bool = True
    """`batch` was looked at for this step."""
    decided: bool = False
    """The controller's decision was carried out; else it is not told."""
    places: Mapping[str, int] | None = None
    """Where requests stand in `gained`; None: nothing was verified, and each gained one token."""
    gained: Sequence[int] = ()
    """Tokens that each of the model's rows has sampled."""
    generated: list[int] | None = None
    """Tokens that each request of the batch had before; None: those of the look and of the steps since."""
    seconds: float = 0.0


@dataclass(slots=True)
class StepResult:
    """A step that came back. Lists are per request of its batch."""

    step: Step
    drafted: list[int]
    verified: list[int]
    accepted: list[int]
    committed: list[int]

    @classmethod
    def of_run(cls, steps: Sequence[Step]) -> list[StepResult]:
        """Of steps in a row with one batch, all of which vLLM has committed.

        That a request ended shows only in its own count, which the last step is told by: before that nobody has.
        """
        found = list[StepResult]()
        if steps:
            batch, last = steps[0].batch, steps[-1]
            before = batch.outputs if steps[0].generated is None else steps[0].generated
            for step in steps:
                drafted, verified, accepted = _drafts(step)
                if step is last:
                    rows = zip(batch.requests, before, strict=True)
                    committed = [max(0, request.num_output_tokens - count) for request, count in rows]
                else:
                    committed = [count + 1 for count in accepted]
                    before = [count + new for count, new in zip(before, committed, strict=True)]
                found.append(cls(step, drafted, verified, accepted, committed))
        return found

    def outcome(self) -> RoundOutcome:
        """What the controller is told. Enters the round into the requests' histories, so it is to be called once.

        vLLM does not time the parts of a step: all of its seconds count as verification, even where prompts are in it.
        """
        batch = self.step.batch
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
            verify_seconds=self.step.seconds,
            catch_up_seconds=0.0,
            host_seconds=0.0,
            is_timed=not (self.step.looked and batch.has_prompts),
        )


def _drafts(step: Step) -> tuple[list[int], list[int], list[int]]:
    """Tokens of each request's draft: drafted, verified and accepted."""
    names, drafts = step.batch.names, step.scheduled.scheduled_spec_decode_tokens
    noted, places = step.drafted, step.places or {}
    if not drafts:
        none = [0] * len(names)
        return [noted.get(name, 0) for name in names] if noted else none, none, none
    drafted, verified, accepted = list[int](), list[int](), list[int]()
    for name in names:
        count = len(drafts[name]) if name in drafts else 0
        # Of the tokens gained all but one were drafted.
        kept = step.gained[places[name]] - 1 if count and name in places else 0
        drafted.append(max(noted.get(name, 0), count))
        verified.append(count)
        accepted.append(min(max(kept, 0), count))
    return drafted, verified, accepted
