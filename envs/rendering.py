"""The last rounds of an environment as text and as a picture: lengths, accepted tokens and load over time."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RENDER_MODES = ("ansi", "rgb_array")
HEIGHT_OF_BAND, WIDTH_OF_ROUND, NUM_ROUNDS = 64, 4, 80
_COLOURS = ((66, 106, 168), (84, 150, 92), (190, 120, 60))
_BACKGROUND, _LINE = 250, 200
_WIDTHS = (8, 9, 9, 10, 9, 9)


class RoundView(NamedTuple):
    """What is shown of a round."""

    decoding: int
    """Requests."""
    longest: int
    """Tokens: the longest speculation length that was allowed."""
    drafted: int
    """Tokens of all requests."""
    accepted: int
    """Tokens of all requests."""
    running: int
    """Requests that hold a slot."""
    waiting: int
    """Requests in the queue."""


class RoundLog:
    """The last `NUM_ROUNDS` rounds."""

    def __init__(self) -> None:
        self.rounds: deque[RoundView] = deque(maxlen=NUM_ROUNDS)

    def clear(self) -> None:
        """Begin again."""
        self.rounds.clear()

    def add(self, view: RoundView) -> None:
        """Note a round."""
        self.rounds.append(view)

    def render(self, mode: str | None) -> str | NDArray[np.uint8] | None:
        """In one of `RENDER_MODES`; None without a mode."""
        if mode is None:
            return None
        return self.text() if mode == "ansi" else self.picture()

    def text(self, count: int = 8) -> str:
        """A table of the last ``count`` rounds."""
        lines = ["requests  longest  drafted  accepted  running  waiting"]
        for own in list(self.rounds)[-count:]:
            lines.append("".join(f"{count:{width}d}" for count, width in zip(own, _WIDTHS, strict=True)))
        return "\n".join(lines)

    def picture(self) -> NDArray[np.uint8]:
        """``[3 * HEIGHT_OF_BAND, NUM_ROUNDS * WIDTH_OF_ROUND, 3]``.

        Bands from above: drafted tokens per request, accepted tokens per request, requests running and (darker)
        waiting. Each band is scaled to its largest value.
        """
        rounds = list(self.rounds)
        per_request = [max(own.decoding, 1) for own in rounds]
        bands = (
            [own.drafted / count for own, count in zip(rounds, per_request, strict=True)],
            [own.accepted / count for own, count in zip(rounds, per_request, strict=True)],
            [float(own.running + own.waiting) for own in rounds],
        )
        image = np.concatenate([_band(band, colour) for band, colour in zip(bands, _COLOURS, strict=True)])
        highest = max(bands[2], default=0.0)
        for number, own in enumerate(rounds):
            rows = _pixels(own.waiting, highest)
            image[len(image) - rows :, number * WIDTH_OF_ROUND : (number + 1) * WIDTH_OF_ROUND - 1] //= 2
        return image


def _band(values: Sequence[float], colour: tuple[int, int, int]) -> NDArray[np.uint8]:
    image = np.full((HEIGHT_OF_BAND, NUM_ROUNDS * WIDTH_OF_ROUND, 3), _BACKGROUND, dtype=np.uint8)
    image[0] = _LINE
    highest = max(values, default=0.0)
    for number, value in enumerate(values):
        rows = _pixels(value, highest)
        image[HEIGHT_OF_BAND - rows :, number * WIDTH_OF_ROUND : (number + 1) * WIDTH_OF_ROUND - 1] = colour
    return image


def _pixels(value: float, highest: float) -> int:
    return 0 if highest <= 0 else round((HEIGHT_OF_BAND - 4) * value / highest)
