"""What a user may ask of one request."""

from __future__ import annotations

import math
from dataclasses import dataclass


class RequestError(ValueError):
    """A request cannot be served as asked; the message names the value and the fix. Other requests are unaffected."""


@dataclass(frozen=True)
class SamplingParams:
    """Sampling of one request. Checked when the request is added, so that one bad request fails alone."""

    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches this, in (0, 1]."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    seed: int | None = None
    """Same seed, same text (``coupled`` verification), whatever is drafted. None: the engine gives one."""
    max_tokens: int = 128
    """Tokens to generate at most."""
    stop: str | tuple[str, ...] | list[str] = ()
    """Strings that end the text; the text is cut before the first that appears."""
    ignore_eos: bool = False
    """Go on past the end-of-text token (benchmarks)."""
    num_speculative_tokens: int | None = None
    """Most tokens to draft for this request in a round; 0 turns speculation off; None leaves it to the controller."""

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """``stop`` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self, max_num_speculative_tokens: int) -> None:
        """Raise `RequestError` where a value is out of its range."""
        _number("temperature", self.temperature, 0.0, math.inf)
        _number("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _integer("top_k", self.top_k, 0, None)
        _integer("max_tokens", self.max_tokens, 1, None)
        if self.seed is not None:
            _integer("seed", self.seed, 0, 2**63 - 1)
        if self.num_speculative_tokens is not None:
            _integer("num_speculative_tokens", self.num_speculative_tokens, 0, max_num_speculative_tokens)
        if not isinstance(self.stop, str | tuple | list) or not all(isinstance(s, str) for s in self.stop):
            raise RequestError(f"stop must be a string or a list of strings, got {self.stop!r}")
        if self.stop != () and any(not string for string in self.stop_strings):
            raise RequestError(f"stop must not hold an empty string, got {self.stop!r}")


def _number(name: str, value: object, low: float, high: float, open_low: bool = False) -> None:
    try:
        valid = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer that no float can hold
        valid = False
    if not valid or not low <= float(value) <= high or (open_low and value == low):  # type: ignore[arg-type]
        bounds = f"{'(' if open_low else '['}{low:g}, {high:g}{')' if math.isinf(high) else ']'}"
        raise RequestError(f"{name} must be a finite number in {bounds}, got {value!r}")


def _integer(name: str, value: object, low: int, high: int | None) -> None:
    valid = isinstance(value, int) and not isinstance(value, bool)
    if not valid or value < low or (high is not None and value > high):  # type: ignore[operator]
        bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise RequestError(f"{name} must be an integer {bounds}, got {value!r}")
