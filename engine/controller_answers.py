"""Asks a controller and checks its answers: what comes back is a decision that can be carried out, or an error."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..controllers import LEVEL_FEATURES, Controller, DraftLevel, RoundState
from .drafter import NewLengths


class ControllerError(ValueError):
    """A controller returned something that is not a decision.

    No token was committed, and the round can be repeated, with another controller or the same. What the step had
    done before (prefill, drafter catch-up) is kept and counted.
    """


def ask_lengths(controller: Controller, state: RoundState) -> NDArray[np.int64]:
    """``[B]`` speculation lengths, cut to what each request may use. Raises `ControllerError`."""
    lengths = np.asarray(controller.decide(state).num_speculative_tokens)
    _check_integers(lengths, len(state.request_ids), type(controller).__name__)
    if (lengths < 0).any():
        raise ControllerError(f"{type(controller).__name__} returned a negative length: {lengths.tolist()}")
    return np.minimum(lengths, state.max_num_speculative_tokens)


def ask_verify_lengths(controller: Controller, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[B]`` how many of ``num_drafted`` tokens to verify. Raises `ControllerError`."""
    name = f"{type(controller).__name__}.verify_lengths"
    lengths = np.asarray(controller.verify_lengths(num_drafted.copy()))
    _check_integers(lengths, len(num_drafted), name)
    if (lengths < 0).any() or (lengths > num_drafted).any():
        raise ControllerError(f"{name} must return 0 … {num_drafted.tolist()}, got {lengths.tolist()}")
    return lengths


def checked_new_lengths(controller: Controller, speculating: NDArray[np.int64]) -> NewLengths:
    """``controller.new_lengths`` for a drafter that counts only the ``speculating`` of the round's requests.

    What it returns raises `ControllerError`.
    """

    everyone = bool((speculating == np.arange(len(speculating))).all())

    def new_lengths(level: DraftLevel) -> NDArray[np.int64]:
        own = level if everyone else replace(level, requests=speculating[level.requests])
        name = f"{type(controller).__name__}.new_lengths"
        lengths = np.asarray(controller.new_lengths(own))
        _check_integers(lengths, len(level.requests), name)
        if min(lengths.tolist(), default=level.depth) < level.depth:
            raise ControllerError(f"{name} must return {level.depth} or more, got {lengths.tolist()}")
        return lengths

    return new_lengths


def wanted_features(controller: Controller) -> frozenset[str]:
    """``controller.level_features``. Raises `ControllerError` if one has no such name."""
    wanted = frozenset(controller.level_features)
    if not wanted.issubset(LEVEL_FEATURES):
        raise ControllerError(
            f"{type(controller).__name__}.level_features names {sorted(wanted.difference(LEVEL_FEATURES))}; "
            f"there are {LEVEL_FEATURES}"
        )
    return wanted


def _check_integers(lengths: NDArray[np.int64], count: int, name: str) -> None:
    if lengths.shape != (count,) or lengths.dtype.kind not in "iu":
        raise ControllerError(
            f"{name} must return one integer per request ({count}), got {lengths.dtype} of shape {lengths.shape}"
        )
