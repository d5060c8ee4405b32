"""How long each request's draft may be, between the step that decides it and the drafts that come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ...controllers.held_lengths import carried_over
from .state import DecodingBatch, room

if TYPE_CHECKING:
    from vllm.v1.core.sched.scheduler import Scheduler
    from vllm.v1.outputs import DraftTokenIds


class DraftLengths:
    """The lengths of one step's drafts."""

    def __init__(self, longest: int, can_trim: bool) -> None:
        """``longest``: vLLM's ``num_speculative_tokens``; ``can_trim``: False where drafts stay with the worker."""
        self._longest, self._can_trim = longest, can_trim
        self._given: dict[str, int] = {}
        self._names: tuple[str, ...] = ()
        self._asked = frozenset[str]()
        """Whom the controller gave lengths."""
        self._length = longest
        self._is_even = self._is_roomy = False
        self._least_room = self._most_room = 0
        self._drafted = dict[str, int]()

    def clear(self) -> None:
        """Nobody has decided: drafts are left as they are."""
        self._given, self._names = {}, ()

    def give(self, batch: DecodingBatch, lengths: Sequence[int], max_model_len: int) -> None:
        """``lengths``: of each request's draft."""
        self._length, self._asked = max(lengths), frozenset(batch.names)
        self._hand_out(batch, lengths)
        self._measure(batch, max_model_len)

    def give_again(self, batch: DecodingBatch, max_model_len: int, stretch: float = 1.0) -> bool:
        """The same lengths once more, newcomers what is usual; False where more than a tenth came or went since `give`.

        A burst comes in a request a step: lengths that suit the few who were there would slow all of it down.
        ``stretch``: it may be as many times as much, but no more than a quarter.
        """
        if batch.names != self._names:
            kept = sum(name in self._asked for name in batch.names)
            changed = max(len(batch.names), len(self._asked)) - kept
            if changed > min(0.1 * stretch, 0.25) * len(self._asked):
                return False
            lengths = carried_over(self._given, batch.names)
            if lengths is None:
                return False
            self._hand_out(batch, lengths)
        self._measure(batch, max_model_len)
        return True

    def a_step_on(self) -> bool:
        """The same lengths for the same requests in the step after one that was told of, without another look; False
        where it may be that nobody has room for the longest."""
        gain = self._length + 1
        self._least_room -= gain
        self._most_room -= gain
        self._is_roomy = self._least_room >= self._length
        return self._most_room >= self._length or not self._length

    def _hand_out(self, batch: DecodingBatch, lengths: Sequence[int]) -> None:
        self._names = batch.names
        self._given = dict(zip(batch.names, lengths, strict=True))
        self._is_even = min(lengths) == max(lengths) == self._length

    def _measure(self, batch: DecodingBatch, max_model_len: int) -> None:
        # In this step a request gains one token, which is counted, and at most the longest draft.
        self._least_room = batch.least_room(max_model_len) - self._longest
        self._most_room = batch.most_room(max_model_len) - self._longest + self._length
        self._is_roomy = self._least_room >= self._length

    def note(self, drafts: DraftTokenIds, scheduler: Scheduler) -> None:
        """Keep how much was drafted (`noted`), and cut it in place to what was given and fits."""
        self._drafted = counts = dict(zip(drafts.req_ids, map(len, drafts.draft_token_ids), strict=True))
        if counts.keys() != self._given.keys():  # Drafts for unfinished prompts are thrown away.
            self._drafted = {name: counts[name] for name in self._given if name in counts}
        if (
            self._can_trim
            and counts
            and not (self._is_even and self._is_roomy and max(counts.values()) <= self._length)
        ):
            self._cut_to_given(drafts, scheduler)

    def noted(self) -> dict[str, int]:
        """Tokens drafted for each request since the last call, before any was cut."""
        noted, self._drafted = self._drafted, {}
        return noted

    def _cut_to_given(self, drafts: DraftTokenIds, scheduler: Scheduler) -> None:
        given, most, is_roomy = self._given, self._length, self._is_roomy
        for name, tokens in zip(drafts.req_ids, drafts.draft_token_ids, strict=True):
            length, count = given.get(name), len(tokens)
            if length is not None and not (is_roomy and count <= length):
                self._drafted[name] = min(count, most)  # More is what the drafter was not asked for.
                self._cut(name, tokens, length, scheduler)

    @staticmethod
    def _cut(name: str, tokens: list[int], length: int, scheduler: Scheduler) -> None:
        request = scheduler.requests.get(name)
        if request is not None:
            del tokens[room(request, length, scheduler.max_model_len, tokens_ahead=1) :]
