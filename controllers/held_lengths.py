"""Lengths that hold for some rounds: deciding anew in every one costs a percent or two of it and changes little."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def carried_over(lengths: Mapping[str, int], request_ids: Sequence[str]) -> list[int] | None:
    """What ``lengths`` of a decision say of the requests; None where too many of them have come since.

    Up to a quarter may be new: they get what the others have, in the mean.
    """
    found = [lengths.get(name, -1) for name in request_ids]
    new = found.count(-1)
    if 4 * new > len(found):
        return None
    if new:
        usual = int((sum(found) + new) / (len(found) - new) + 0.5)
        found = [usual if length < 0 else length for length in found]
    return found


class HeldLengths:
    """What the last decision gave each request, for the rounds that it holds."""

    def __init__(self, rounds: int) -> None:
        """A decision is due every ``rounds`` rounds, and where too many requests have come since the last one."""
        self.rounds = rounds
        self._phase = 0
        self._lengths = dict[str, int]()

    def note(self, request_ids: Sequence[str], lengths: Sequence[int]) -> None:
        """A decision was made."""
        self._lengths = dict(zip(request_ids, lengths, strict=True))

    def lengths(self, request_ids: Sequence[str]) -> list[int] | None:
        """What holds in the round that begins; None: decide. Once that is due nothing holds until it is done: it may
        fail.
        """
        phase = self._phase
        self._phase = (phase + 1) % self.rounds
        found = None if phase == 0 else carried_over(self._lengths, request_ids)
        if found is None:
            self._lengths = {}
        else:
            self._lengths.update(zip(request_ids, found, strict=True))
        return found
