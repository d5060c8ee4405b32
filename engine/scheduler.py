"""Who runs: first come first served into free slots, prefill in bounded chunks, dense slots."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .request import Phase, Request

MoveSlot = Callable[[int, int, int], None]


class Scheduler:
    """Keeps the waiting queue and the slots. Slots in use are always ``0 … len(running)-1``, in ``running``'s order."""

    def __init__(self, num_slots: int, prefill_chunk: int) -> None:
        self.num_slots = num_slots
        self.prefill_chunk = prefill_chunk
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []

    def admit(self) -> list[Request]:
        """Give free slots to waiting requests in order of arrival; returns those admitted."""
        admitted = []
        while self.waiting and len(self.running) < self.num_slots:
            request = self.waiting.popleft()
            request.slot = len(self.running)
            # The last prompt token is the root of the first round, so a one-token prompt has nothing to prefill.
            request.phase = Phase.PREFILL if request.num_prompt_tokens > 1 else Phase.DECODE
            self.running.append(request)
            admitted.append(request)
        return admitted

    def prefill_plan(self) -> list[tuple[Request, int]]:
        """Choose (request, tokens) to prefill in this step, at most ``prefill_chunk`` tokens in all."""
        budget, plan = self.prefill_chunk, []
        for request in self.running:
            if request.phase is Phase.PREFILL and budget > 0:
                count = min(budget, request.num_prompt_tokens - 1 - request.num_cached)
                plan.append((request, count))
                budget -= count
        return plan

    def decoding(self) -> list[Request]:
        """Requests that take part in the round."""
        return [request for request in self.running if request.phase is Phase.DECODE]

    def release(self, request: Request, move_slot: MoveSlot) -> None:
        """Free a request's slot and move the last slot into the hole: ``move_slot(source, destination, tokens)``."""
        last = self.running.pop()
        if last is not request:
            move_slot(last.slot, request.slot, last.num_cached)
            last.slot = request.slot
            self.running[last.slot] = last
        request.slot = -1
