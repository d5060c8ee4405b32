"""What a policy is: from the features of a round to one of its actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .observation import FEATURE_NAMES

MAX_LENGTH = 255
MAX_PRICE = 100.0
MAX_TIERS = 4096


class Action(NamedTuple):
    """What a policy chooses for a round: one of its tiers."""

    max_length: int
    """Largest speculation length of any request; 0 turns speculation off."""
    price: float
    """Factor on the seconds that speculation costs: 1 is the rule's own estimate, more is thriftier. 0: time costs
    nothing, every request gets ``max_length``."""
    looks: int = 0
    """With a price, each request's length is planned from its history; after each of so many first draft levels it is
    planned anew from what the drafter tells of its tokens. A look costs time."""

    @property
    def asked_levels(self) -> int:
        """Levels after which the controller looks: none at price 0, whatever ``looks`` says."""
        return min(self.looks, self.max_length) if self.price > 0 else 0

    def __str__(self) -> str:
        """In a reader's words."""
        if not self.max_length:
            return "off"
        if not self.price:
            return f"length {self.max_length}"
        looks = ("", ", a look", f", {self.looks} looks")[min(self.looks, 2)]
        return f"planned up to {self.max_length}, price {self.price:g}{looks}"


class Features(Protocol):
    """The features of a round by their place in `observation.FEATURES`; computed before, or when they are read."""

    def __getitem__(self, index: int, /) -> Any:
        """One feature, a float."""


class Policy(Protocol):
    """Maps the features of a round (`observation.FEATURES`) to an action."""

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Those of `observation.FEATURE_NAMES` that `act` reads."""

    @property
    def tiers(self) -> tuple[Action, ...]:
        """All actions that there are."""

    def act(self, features: Features) -> Action:
        """Choose for ``features``, an array ``[NUM_FEATURES]`` or anything that is indexed alike."""


class MissingFeatureError(ValueError):
    """A feature that the controller reads is not a finite number; the message names it."""


class FixedPolicy:
    """The same action always; ``FixedPolicy(Action(K, 1.0))`` is the bare price rule."""

    feature_names: tuple[str, ...] = ()

    def __init__(self, action: Action) -> None:
        self.action = action
        self.tiers = checked_tiers([action])

    def act(self, features: Features) -> Action:
        """See `Policy.act`."""
        return self.action

    def document(self) -> dict[str, Any]:
        """Nothing but the tier."""
        return {}

    def __str__(self) -> str:
        return str(self.action)


def factored_tiers(lengths: Sequence[int], prices: Sequence[float], looks: Sequence[int] = (0,)) -> list[Action]:
    """The tiers of a head each over ``lengths``, ``prices`` and ``looks``."""
    return [Action(length, price, own) for length in lengths for price in prices for own in looks]


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """``names`` if the observation has them all, each once. Raises `ValueError` naming the one that it lacks."""
    for name in names:
        if name not in FEATURE_NAMES:
            raise ValueError(f"feature {name!r:.80} does not exist here; train the controller again for this version")
    if len(set(names)) != len(names):
        raise ValueError("a feature is named twice; name each once")
    return tuple(names)


def checked_tiers(tiers: Sequence[Action]) -> tuple[Action, ...]:
    """``tiers`` if they are actions. Raises `ValueError` naming the one that is none."""
    if not 1 <= len(tiers) <= MAX_TIERS:
        raise ValueError(f"'tiers' must be 1 … {MAX_TIERS} actions, got {len(tiers)}")
    for number, (length, price, looks) in enumerate(tiers):
        if not (isinstance(length, int | np.integer) and 0 <= length <= MAX_LENGTH):
            raise ValueError(f"'max_length' of tier {number} must be 0 … {MAX_LENGTH}, got {length!r:.40}")
        if not 0 <= price <= MAX_PRICE:
            raise ValueError(f"'price' of tier {number} must be 0 … {MAX_PRICE:g}, got {price!r:.40}")
        if not (isinstance(looks, int | np.integer) and not isinstance(looks, bool) and 0 <= looks <= MAX_LENGTH):
            raise ValueError(f"'looks' of tier {number} must be 0 … {MAX_LENGTH}, got {looks!r:.40}")
    return tuple(Action(int(length), float(price), int(looks)) for length, price, looks in tiers)
