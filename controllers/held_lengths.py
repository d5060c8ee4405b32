"""Lengths that hold for some rounds: deciding anew in every one costs a percent or two of it and changes little."""

from __future__ import annotations

from collections.abc import Sequence


class HeldLengths:
    """What the last decision gave each request, for the rounds that it holds."""

    def __init__(self, rounds: int) -> None:
        """A decision is due every ``rounds`` rounds, and where too many requests have come since the last one."""
        self.rounds = rounds
        self._phase = 0
        self._lengths = dict[str, int]()

    def note(self, request_ids: Sequence[str], lengths: Sequence[int], holds: bool) -> None:
        """A decision was made; ``holds``: False where the next round has to be decided anew."""
        self._lengths = dict(zip(request_ids, lengths, strict=True))
        if not holds:
            self._phase = 0

    def lengths(self, request_ids: Sequence[str]) -> list[int] | None:
        """What holds in the round that begins; None: decide.

        Up to a quarter of the requests may be new: they get what the others have, in the mean. Once a decision is due
        nothing holds until there is one: it may fail.
        """
        phase = self._phase
        self._phase = (phase + 1) % self.rounds
        found = [self._lengths.get(name, -1) for name in request_ids]
        new = found.count(-1)
        if phase == 0 or 4 * new > len(found):
            self._lengths = {}
            return None
        if new:
            usual = int((sum(found) + new) / (len(found) - new) + 0.5)
            for at, length in enumerate(found):
                if length < 0:
                    found[at] = self._lengths[request_ids[at]] = usual
        return found
