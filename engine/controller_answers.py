"""Asks a controller and checks its answers: what comes back is a decision that can be carried out, or an error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from ..controllers import LEVEL_FEATURES, Controller, Decision, DraftLevel, RoundState
from ..controllers.controller import FloatArray, IntArray, Looks
from ..controllers.guard import GuardedLooks
from .drafter import AfterLevel, NewLengths


class ControllerError(ValueError):
    """A controller returned something that is not a decision.

    No token was committed, and the round can be repeated, with another controller or the same. What the step had
    done before (prefill, drafter catch-up) is kept and counted.
    """


def ask_decision(controller: Controller, state: RoundState) -> Decision:
    """The controller's decision, its lengths cut to what each request may use. Raises `ControllerError`."""
    decision = controller.decide(state)
    lengths = np.asarray(decision.num_speculative_tokens)
    _check_integers(lengths, len(state.request_ids), type(controller).__name__)
    if (lengths < 0).any():
        raise ControllerError(f"{type(controller).__name__} returned a negative length: {lengths.tolist()}")
    return Decision(np.minimum(lengths, state.max_num_speculative_tokens), decision.looks)


def ask_verify_lengths(asked: Controller | Looks, num_drafted: NDArray[np.int64]) -> NDArray[np.int64]:
    """``[B]`` how many of ``num_drafted`` tokens to verify. Raises `ControllerError`."""
    ask = asked.verify_lengths if isinstance(asked, Controller) else asked.verified
    name = f"{type(asked).__name__}.{ask.__name__}"
    lengths = np.asarray(ask(num_drafted.copy()))
    _check_integers(lengths, len(num_drafted), name)
    if (lengths < 0).any() or (lengths > num_drafted).any():
        raise ControllerError(f"{name} must return 0 … {num_drafted.tolist()}, got {lengths.tolist()}")
    return lengths


def checked_new_lengths(controller: Controller, speculating: NDArray[np.int64]) -> NewLengths:
    """``controller.new_lengths`` for a drafter that counts only the ``speculating`` of the round's requests.

    What it returns raises `ControllerError`.
    """

    everyone = _is_everyone(speculating)

    def new_lengths(level: DraftLevel) -> NDArray[np.int64]:
        own = level if everyone else replace(level, requests=speculating[level.requests])
        lengths = np.asarray(controller.new_lengths(own))
        _check_new_lengths(lengths, len(level.requests), level.depth, controller.new_lengths)
        return lengths

    return new_lengths


def checked_looks(looks: Looks, speculating: NDArray[np.int64]) -> AfterLevel:
    """`checked_new_lengths` for ``looks.after``."""
    everyone, after = _is_everyone(speculating), looks.after
    if everyone and isinstance(looks, GuardedLooks):
        return after  # Which has checked them.

    def after_level(depth: int, requests: IntArray, margin: FloatArray, agreement: FloatArray) -> IntArray:
        lengths = after(depth, requests if everyone else speculating[requests], margin, agreement)
        _check_new_lengths(lengths, len(requests), depth, after)
        return lengths

    return after_level


def _is_everyone(speculating: NDArray[np.int64]) -> bool:
    return speculating.item(-1) == len(speculating) - 1


def _check_new_lengths(lengths: NDArray[np.int64], count: int, depth: int, asked: Callable[..., object]) -> None:
    _check_integers(lengths, count, asked.__qualname__)
    if min(lengths.tolist(), default=depth) < depth:
        raise ControllerError(f"{asked.__qualname__} must return {depth} or more, got {lengths.tolist()}")


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
