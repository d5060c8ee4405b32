"""vLLM's two schedulers with `Steering` between their steps: ``--scheduler-cls`` of an engine with a controller.

The hooks are vLLM's own methods of the same names (``v1/core/sched/scheduler.py``); `compatibility` checks them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .steering import Steering

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds, ModelRunnerOutput
    from vllm.v1.request import Request


class Steered:
    """Mixin over a scheduler: what `Steering` has to see and to say, and nothing else."""

    steering: Steering
    """Its ``controller`` may be set at any time."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.steering = Steering.of_scheduler(self)

    def add_request(self, request: Request) -> None:
        """Count the arrival."""
        super().add_request(request)  # type: ignore[misc]
        self.steering.note_arrival()

    def schedule(self, *arguments: Any, **named: Any) -> SchedulerOutput:
        """Take the time."""
        self.steering.begin()
        return super().schedule(*arguments, **named)  # type: ignore[misc]

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        """Decide: ``scheduler_output`` is complete and not yet sent."""
        self.steering.command(scheduler_output)
        super()._update_after_schedule(scheduler_output)  # type: ignore[misc]

    def update_from_output(self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput) -> Any:
        """See what the step gained."""
        outcome = self.steering.verified(scheduler_output, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]
        self.steering.observe(outcome)
        return outputs

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Cut each draft to its request's length."""
        self.steering.trim(draft_token_ids)
        super().update_draft_token_ids(draft_token_ids)  # type: ignore[misc]

    def make_stats(self, *arguments: Any, **named: Any) -> Any:
        """Send the plugin's own numbers along."""
        stats = super().make_stats(*arguments, **named)  # type: ignore[misc]
        self.steering.report(stats)
        return stats


class SteeredScheduler(Steered, Scheduler):
    """Synchronous: K is decided while its step is sent, and verified in the next."""


class SteeredAsyncScheduler(Steered, AsyncScheduler):
    """Asynchronous: the same, one step later; per-request trimming is not possible."""
