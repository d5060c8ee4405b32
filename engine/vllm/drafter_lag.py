"""How many tokens a lazy drafter lags behind, counted where K is decided: the scheduler may not see the worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class DrafterLag:
    """Tokens of each request that `lazy_drafter` has to prefill if the next step drafts, from the history of K.

    Equal to what the worker prefills, but for blocks of prefix caching, which count as seen: whether the drafter was on
    when they were filled is known to the worker alone. Requests are vLLM's ``Request`` (``request_id``,
    ``num_computed_tokens``, ``num_cached_tokens``).
    """

    def __init__(self) -> None:
        self._covered: dict[str, int] = {}

    def __call__(self, request: Any) -> int:
        """Tokens that ``request`` lags, asked before the step in which K is decided changes its counts."""
        covered = self._covered.get(request.request_id)
        if covered is None:
            covered = max(getattr(request, "num_cached_tokens", 0), 0)
        # The last token covered is fed again with the first draft pass, as is a prompt's first.
        return max(0, int(request.num_computed_tokens) + 1 - max(covered, 1))

    def step_done(self, length: int, requests: Sequence[Any]) -> None:
        """A step with ``length`` = K ran ``requests``; their counts are those after it."""
        if length > 0:
            for request in requests:
                self._covered[request.request_id] = request.num_computed_tokens + 1
            return
        for request in requests:
            reached = int(request.num_computed_tokens) + 1
            if request.request_id in self._covered:  # a preempted request starts again below what it had
                self._covered[request.request_id] = min(self._covered[request.request_id], reached)
            else:
                self._covered[request.request_id] = max(getattr(request, "num_cached_tokens", 0), 0)

    def entered(self, scheduled: SchedulerOutput, alive: Mapping[str, Request]) -> None:
        """``scheduled`` has run; ``alive``: the scheduler's requests after it."""
        if scheduled.finished_req_ids:
            self.forget(scheduled.finished_req_ids)
        length = scheduled.num_spec_tokens_to_schedule
        if length > 0:
            ran: Iterable[str] = scheduled.num_scheduled_tokens
        else:  # Of those that go on only their own counts change.
            ran = [request.req_id for request in scheduled.scheduled_new_reqs]
            ran += scheduled.scheduled_cached_reqs.resumed_req_ids
        if ran:
            self.step_done(length, [alive[name] for name in ran if name in alive])

    def went_on(self, requests: Iterable[Any]) -> None:
        """Steps with K > 0 after one that was `entered` ran these ``requests``, which decode. That they have been
        preempted since does not matter here."""
        for request in requests:
            self._covered[request.request_id] = request.num_tokens

    def forget(self, request_ids: Iterable[str]) -> None:
        """These requests have ended."""
        for request_id in request_ids:
            self._covered.pop(request_id, None)
