"""What a lazy drafter has missed: a note per KV slot, and the pieces in which it is prefilled. No vLLM in here."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_SCANNED_SLOTS = 1 << 20
"""Slots looked at in one go when searching for missed tokens: bounds the memory of it."""
_NOTED_SLOTS = 1 << 12
"""Slots noted at most before they are entered."""

Span = tuple[int, int, int]
"""Row of the batch, first missed position, first position not to fill."""


class DrafterRecord:
    """Per KV slot: the token that the target wrote there, and whether the drafter lacks it.

    Writing to tensors takes a step of few tokens longer than all else that it does here. So while the drafter is not
    run, what the target writes is only noted, and entered before anybody looks at it (`settle`).
    """

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self.tokens = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self.missing = torch.zeros(num_slots, dtype=torch.bool, device=device)
        self._noted: dict[int, int] = {}
        """Newest token by slot."""

    def note(self, slots: list[int], tokens: list[int]) -> None:
        """As `target_wrote`, to be entered by `settle`."""
        self._noted.update(zip(slots, tokens, strict=True))
        if len(self._noted) > _NOTED_SLOTS:
            self.settle()

    @torch.inference_mode()
    def settle(self) -> None:
        """Enter what was noted."""
        if self._noted:
            device = self.tokens.device
            slots = torch.tensor(list(self._noted), device=device)
            self.tokens[slots] = torch.tensor(list(self._noted.values()), dtype=torch.int32, device=device)
            self.missing[slots] = True
            self._noted = {}

    def target_wrote(self, slots: Tensor, tokens: Tensor) -> None:
        """``slots`` [N] now hold ``tokens`` [N], and the drafter has not seen them."""
        self.settle()
        self.tokens[slots] = tokens
        self.missing[slots] = True

    def drafter_wrote(self, slots: Tensor) -> None:
        """The drafter has caught up with ``slots`` [N]."""
        self.missing[slots] = False


def missed_spans(missing: Tensor, block_table: Tensor, block_size: int, rows: list[int], ends: list[int]) -> list[Span]:
    """What the drafter lacks of ``rows`` before their ``ends``: from the first slot that is ``missing`` on.

    ``missing`` [slots] bool, ``block_table`` [B, blocks]. Rows that lack nothing are left out.
    """
    spans: list[Span] = []
    longest = max(ends, default=0)
    if longest == 0:
        return spans
    positions = torch.arange(longest, device=missing.device)
    size = max(1, _SCANNED_SLOTS // longest)
    for start in range(0, len(rows), size):
        group, limit = rows[start : start + size], torch.tensor(ends[start : start + size], device=missing.device)
        slots = block_table[group][:, positions // block_size].long() * block_size + positions % block_size
        lacks = missing[slots] & (positions < limit[:, None])
        first = torch.where(lacks.any(dim=1), lacks.int().argmax(dim=1), limit).tolist()
        spans += [
            (row, begin, end)
            for row, begin, end in zip(group, first, ends[start : start + size], strict=True)
            if begin < end
        ]
    return spans


def chunks(spans: list[Span], budget: int) -> Iterator[list[Span]]:
    """``spans`` in order, cut so that each list has at most ``budget`` tokens, one more per row counted.

    The one more is the token after the row's last, which vLLM's first draft pass feeds along.
    """
    if budget < 2:
        raise ValueError(f"a catch-up chunk needs room for 2 tokens, got {budget}: raise max_num_batched_tokens")
    chunk: list[Span] = []
    room = budget
    for row, first, end in spans:
        while first < end:
            if room < 2:
                yield chunk
                chunk, room = [], budget
            stop = min(end, first + room - 1)
            chunk.append((row, first, stop))
            room -= stop - first + 1
            first = stop
    if chunk:
        yield chunk
