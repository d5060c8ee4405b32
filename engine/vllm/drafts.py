"""How long each request's draft may be, between the step that decides it and the drafts that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...controllers.held_lengths import carried_over
from .state import DecodingBatch, RequestHistory, room

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import DraftTokenIds


class DraftLengths:
    """The lengths of one step's drafts."""

    def __init__(self, longest: int, can_trim: bool) -> None:
        """``longest``: vLLM's ``num_speculative_tokens``; ``can_trim``: False where drafts stay with the worker."""
        self._longest, self._can_trim = longest, can_trim
        self._given: dict[str, tuple[RequestHistory, int]] = {}
        self._names: tuple[str, ...] = ()
        self._asked = frozenset[str]()
        """Whom the controller gave lengths."""
        self._length = longest
        self._is_roomy = False

    def clear(self) -> None:
        """Nobody has decided: drafts are left as they are."""
        self._given, self._names = {}, ()

    def give(self, batch: DecodingBatch, lengths: Sequence[int], least_room: int) -> None:
        """``lengths``: of each request's draft; ``least_room``: see `DecodingBatch.least_room`."""
        self._length, self._asked = max(lengths), frozenset(batch.names)
        self._hand_out(batch, lengths)
        self._measure(least_room)

    def give_again(self, batch: DecodingBatch, least_room: int) -> bool:
        """The same lengths once more, newcomers what is usual; False where more than a tenth came or went since `give`.

        A burst comes in a request a step: lengths that suit the few who were there would slow all of it down.
        """
        if batch.names != self._names:
            kept = sum(name in self._asked for name in batch.names)
            if 10 * (max(len(batch.names), len(self._asked)) - kept) > len(self._asked):
                return False
            lengths = carried_over({name: length for name, (_, length) in self._given.items()}, batch.names)
            if lengths is None:
                return False
            self._hand_out(batch, lengths)
        self._measure(least_room)
        return True

    def _hand_out(self, batch: DecodingBatch, lengths: Sequence[int]) -> None:
        self._names = batch.names
        self._given = dict(zip(batch.names, zip(batch.histories, lengths, strict=True), strict=True))

    def _measure(self, least_room: int) -> None:
        # In this step a request gains one token, which is counted, and at most the longest draft.
        self._is_roomy = least_room - self._longest >= self._length

    def note(self, drafts: DraftTokenIds, scheduler: Scheduler) -> None:
        """Enter what was drafted into the requests' histories, and cut it in place to what was given and fits."""
        given, most = self._given, self._length
        for name, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
            found = given.get(name)
            if found is None:
                continue
            history, length = found
            count = len(tokens)
            history.drafted = count if count < most else most
            if self._can_trim and not (self._is_roomy and count <= length):
                self._cut(name, tokens, length, scheduler)

    @staticmethod
    def _cut(name: str, tokens: list[int], length: int, scheduler: Scheduler) -> None:
        request = scheduler.requests.get(name)
        if request is not None:
            del tokens[room(request, length, scheduler.max_model_len, tokens_ahead=1) :]
