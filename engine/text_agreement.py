"""Whether drafted tokens are those that the request's own text suggests: the feature ``agreement`` of `DraftLevel`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..controllers.controller import FloatArray, IntArray
from .request import Request


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
            from .draft_kernel import append  # Here, because it loads the compiler.

            append(self._text, self._known, where, np.asarray(counts), np.asarray(new, dtype=np.int32))
        return where

    def of(self, slots: IntArray, drafted: IntArray, rows: IntArray, depth: int) -> FloatArray:
        """``[A]`` for the token at ``depth`` of ``rows`` ``[A]`` of the ``drafted`` tokens ``[B, K]``.

        ``slots`` ``[B]`` as of `update`. 1 if the token is what the text suggests, -1 if another, 0 if it suggests
        none. The suffix that is looked up spans committed and drafted tokens; its earlier occurrence and the token
        after that are committed.
        """
        from .draft_kernel import agreements  # Here, because it loads the compiler.

        found: FloatArray = agreements(self._text, self._known, slots, drafted, rows, depth)
        return found
