"""What is worked out of a draft level for all its requests in one compiled pass each.

Imported when it is first needed: vLLM cannot start in a process that has loaded the compiler.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..controllers.compiled import compiled
from ..controllers.controller import FloatArray, IntArray

LONGEST, SHORTEST = 4, 2
"""Tokens before a drafted one that are looked for in the text: as many as occurred, 4 to 2."""


@compiled
def best_two(scores: NDArray[np.float32], tokens: NDArray[np.int64], margins: NDArray[np.float64]) -> None:
    """The first best of each row of ``scores`` ``[A, vocab_size]`` and its distance to the second best."""
    for row in range(len(scores)):
        best = second = np.float32(-np.inf)
        token = 0
        for place in range(scores.shape[1]):
            score = scores[row, place]
            if score > second:
                if score > best:
                    best, second, token = score, best, place
                else:
                    second = score
        tokens[row], margins[row] = token, np.float64(best) - np.float64(second)


@compiled
def append(
    text: NDArray[np.int32], known: IntArray, slots: IntArray, counts: IntArray, tokens: NDArray[np.int32]
) -> None:
    """Append to the text of each of the ``slots`` ``[A]`` its ``counts`` of the ``tokens``, which lie end to end."""
    at = 0
    for row in range(len(slots)):
        slot = slots[row]
        for _ in range(counts[row]):
            text[slot, known[slot]] = tokens[at]
            known[slot] += 1
            at += 1


@compiled
def agreements(
    text: NDArray[np.int32], known: IntArray, slots: IntArray, drafted: IntArray, rows: IntArray, depth: int
) -> FloatArray:
    """See `TextAgreement.of`; ``text`` ``[S, L]`` and its length ``known`` ``[S]`` by slot."""
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
