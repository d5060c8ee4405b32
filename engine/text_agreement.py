"""Whether drafted tokens are those that the request's own text suggests: the feature ``agreement`` of `DraftLevel`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..controllers.compiled import compiled
from ..controllers.controller import FloatArray, IntArray
from .request import Request

LONGEST, SHORTEST = 4, 2
"""Tokens before the drafted one that are looked for in the text: as many as occurred, 4 to 2."""


class TextAgreement:
    """The committed text of every slot, as far as it was asked for; all requests of a level are answered in one pass.

    The text is searched anew for every token: a microsecond for a thousand tokens.
    """

    def __init__(self, num_slots: int, slot_length: int) -> None:
        self._text = np.zeros((num_slots, slot_length), dtype=np.int32)
        self._known = np.zeros(num_slots, dtype=np.int64)  # Tokens of each slot's text in the table.

    def forget(self, slot: int) -> None:
        """Another request's text will lie there."""
        self._known[slot] = 0

    def move_slot(self, source: int, destination: int) -> None:
        """The text of ``source`` is now that of ``destination``."""
        known = self._known.item(source)
        self._text[destination, :known] = self._text[source, :known]
        self._known[destination], self._known[source] = known, 0

    @property
    def num_known(self) -> int:
        """Tokens held for all slots."""
        return int(self._known.sum())

    def update(self, requests: Sequence[Request]) -> IntArray:
        """``[A]`` slots of ``requests``, whose text is then known."""
        slots = [request.slot for request in requests]
        known, new, counts = self._known[slots].tolist(), list[int](), list[int]()
        for request, start in zip(requests, known, strict=True):
            new += request.token_ids[start:] if start else request.token_ids
            counts.append(len(request.token_ids) - start)
        where = np.asarray(slots)
        if new:
            _append(self._text, self._known, where, np.asarray(counts), np.asarray(new, dtype=np.int32))
        return where

    def of(self, slots: IntArray, drafted: IntArray, rows: IntArray, depth: int) -> FloatArray:
        """``[A]`` for the token at ``depth`` of ``rows`` ``[A]`` of the ``drafted`` tokens ``[B, K]``.

        ``slots`` ``[B]`` as of `update`. 1 if the token is what the text suggests, -1 if another, 0 if it suggests
        none. The suffix that is looked up spans committed and drafted tokens; its earlier occurrence and the token
        after that are committed.
        """
        found: FloatArray = _agreements(self._text, self._known, slots, drafted, rows, depth)
        return found


@compiled
def _append(
    text: NDArray[np.int32], known: IntArray, slots: IntArray, counts: IntArray, tokens: NDArray[np.int32]
) -> None:
    at = 0
    for row in range(len(slots)):
        slot = slots[row]
        for _ in range(counts[row]):
            text[slot, known[slot]] = tokens[at]
            known[slot] += 1
            at += 1


@compiled
def _agreements(
    text: NDArray[np.int32], known: IntArray, slots: IntArray, drafted: IntArray, rows: IntArray, depth: int
) -> FloatArray:
    found = np.zeros(len(rows))
    suffix = np.empty(LONGEST, dtype=np.int64)  # Backwards.
    for at in range(len(rows)):
        row = rows[at]
        slot = slots[row]
        own, size = text[slot], 0
        while size < LONGEST and size < depth - 1 + known[slot]:
            before = depth - 2 - size
            suffix[size] = drafted[row, before] if before >= 0 else own[known[slot] + before]
            size += 1
        longest, follower = SHORTEST - 1, -1
        for end in range(known[slot] - 1, SHORTEST - 1, -1):
            same = 0
            while same < size and same < end and own[end - 1 - same] == suffix[same]:
                same += 1
            if same > longest:  # Of occurrences as long the last one counts.
                longest, follower = same, end
                if same == LONGEST:
                    break
        if follower >= 0:
            found[at] = 1.0 if own[follower] == drafted[row, depth - 1] else -1.0
    return found
