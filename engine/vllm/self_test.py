"""After start: command a few K and see that vLLM drafts as many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.request import Request

PATIENCE = 200
"""Steps after which a test that could not be finished is given up, without a verdict."""
EXACT_DRAFTERS = ("draft_model", "eagle", "eagle3", "mtp")
"""Drafters that always find as many tokens as they are asked for; ``ngram`` may find none."""


class SelfTest:
    """Commands K = 1, 0 and 2 (or the most there is), each until a step has shown what came of it."""

    def __init__(self, longest: int, exact: bool) -> None:
        """``exact``: drafting less than was commanded is a fault too."""
        self._exact = exact
        self._commands = list(dict.fromkeys((1, 0, min(2, longest))))
        self._steps = 0
        self.problem: str | None = None
        """What went wrong, in one line; None as long as nothing did."""

    @property
    def under_way(self) -> bool:
        """Whether it still wants to command."""
        return bool(self._commands) and self.problem is None and self._steps < PATIENCE

    @property
    def command(self) -> int:
        """K of the coming step."""
        return self._commands[0]

    def check(self, commanded: int, drafted: Sequence[int]) -> None:
        """``drafted``: tokens that were drafted for each request that had room for them."""
        self._steps += 1
        if not drafted or not self._commands or commanded != self._commands[0]:
            return
        fewest, most = min(drafted), max(drafted)
        if most > commanded or (self._exact and fewest < commanded):
            self.problem = f"{commanded} tokens were to be drafted, {fewest} … {most} were"
            return
        self._commands.pop(0)


class SchedulerSelfTest(SelfTest):
    """The self-test of one scheduler: whose drafts count, and where they are seen.

    Synchronous scheduling shows the drafts themselves. Under asynchronous scheduling they stay with the worker, and
    what the next step plans to verify is all there is to see.
    """

    def __init__(self, scheduler: Scheduler, longest: int) -> None:
        speculation = scheduler.vllm_config.speculative_config
        super().__init__(longest, speculation.method in EXACT_DRAFTERS)
        self._scheduler, self._longest = scheduler, longest
        self._asynchronous = bool(scheduler.scheduler_config.async_scheduling)
        draft_model = getattr(speculation, "draft_model_config", None)
        limits = [scheduler.max_model_len, *([draft_model.max_model_len] if draft_model is not None else [])]
        self._limit = min(limits)
        self._tested: list[Request] | None = None
        self._commanded = 0
        self._drafts: Mapping[str, Sequence[int]] = {}

    def begin(self, requests: Sequence[Request]) -> int:
        """K of the step that drafts for ``requests``."""
        self._commanded, self._drafts = self.command, {}
        # Near the longest context vLLM drafts zeros instead of asking its model (`input_fits_in_drafter` in
        # v1/worker/gpu_model_runner.py).
        longest_context = max(request.num_tokens for request in self._scheduler.running)
        fits = longest_context + 3 * self._longest + 2 < self._limit
        self._tested = [request for request in requests if fits and request.max_tokens > 1]
        return self._commanded

    def saw(self, drafts: Mapping[str, Sequence[int]]) -> None:
        """The drafts of a step, by request."""
        self._drafts = drafts

    def judge(self, following: SchedulerOutput) -> None:
        """Enter what the last step drafted; ``following``: the step after it."""
        tested, self._tested = self._tested, None
        if tested is None:
            return
        alive = [request.request_id for request in tested if not request.is_finished()]
        if self._asynchronous:
            alive = [name for name in alive if name in following.num_scheduled_tokens]
        drafts = following.scheduled_spec_decode_tokens if self._asynchronous else self._drafts
        self.check(self._commanded, [len(drafts.get(name, ())) for name in alive])
