"""A scheduler that commands one K and shows every draft: for recording what a drafter proposes and what steps cost.

Each step then commits one token of each request, so that drafts come from every position of the text, and the steps of
any K have the same contexts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vllm.v1.core.sched.scheduler import Scheduler

from .seeded_sampling import ID_SUFFIX

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.outputs import DraftTokenIds


class RecordingScheduler(Scheduler):
    """vLLM's synchronous scheduler under orders. The hooks are those of `scheduler.Steered`."""

    length: int = 0
    """Tokens that every step drafts."""
    verify: bool = False
    """True: drafts are verified, but with other tokens in their places, so that none is accepted. False: they are
    dropped."""
    on_draft: Callable[[str, int, list[int]], None] | None = None
    """Told of every draft: the request's id, tokens it has generated, the draft."""

    def _update_after_schedule(self, scheduler_output: SchedulerOutput) -> None:
        scheduler_output.num_spec_tokens_to_schedule = self.length
        super()._update_after_schedule(scheduler_output)

    def update_draft_token_ids(self, draft_token_ids: DraftTokenIds) -> None:
        """Show each draft, then spoil or drop it."""
        vocabulary: int = self.vllm_config.model_config.get_vocab_size()
        for request_id, tokens in zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True):
            request = self.requests.get(request_id)
            if self.on_draft is not None and request is not None and not request.is_finished():
                self.on_draft(request_id[:-ID_SUFFIX], request.num_output_tokens, list(tokens))
            tokens[:] = [(token + 1) % vocabulary for token in tokens] if self.verify else []
        super().update_draft_token_ids(draft_token_ids)
