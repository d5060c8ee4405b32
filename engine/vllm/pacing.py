"""Dwell time and hysteresis: a controller that wavers at a threshold does not make K flap (vLLM issue 49548)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...controllers import Controller, Decision, RoundOutcome, RoundState

_MEMORY = 0.95
"""Of the time that the plugin took, from question to question."""
_TURN = 1.1
"""Of `Thrift.stretch`, with every question."""
_LONGEST = 5.0
"""That `Thrift.stretch` may be."""


class Pacer:
    """Lets K follow what is wished for, when it has been wished for long enough.

    K rises where each of the last ``confirm_steps`` wishes was above it, to the least of them, and falls alike. Between
    two changes are at least ``dwell_steps`` steps. Free of both are the fall to 0 while requests wait, for then every
    token drafted in vain keeps somebody waiting, and the first wish for other requests: that is no wavering.
    """

    def __init__(self, confirm_steps: int, dwell_steps: int) -> None:
        self._confirm_steps, self._dwell_steps = confirm_steps, dwell_steps
        self.length: int | None = None
        """K of the last step; None before the first wish, which is granted."""
        self._held = 0  # steps since the last change
        self._run = list[int]()  # wishes in a row on the same side of K
        self._rested = 0  # steps in a row without a wish though K might have changed

    def follow(self, wish: int, loaded: bool = False, fresh: bool = False) -> int:
        """K of the coming step. ``wish``: what the controller asks for; ``loaded``: requests wait; ``fresh``: these are
        other requests than those that K was granted to."""
        length = self.length
        if length is None or (fresh and wish != length):
            length = self._change(wish)
        self._held += 1
        self._rested = 0
        if self._run and (wish > length) != (self._run[-1] > length):
            self._run.clear()
        if wish == length:
            self._run.clear()
            return length
        self._run.append(wish)
        urgent = loaded and wish == 0
        if not urgent and (len(self._run) < self._confirm_steps or self._held < self._dwell_steps):
            return length
        asked = self._run[-self._confirm_steps :]
        return self._change(0 if urgent else min(asked) if wish > length else max(asked))

    def _change(self, length: int) -> int:
        self.length = length
        self._held, self._rested = 0, self._dwell_steps  # After the dwell time the first wish is asked for at once.
        self._run.clear()
        return length

    @property
    def rests(self) -> int:
        """How many of the coming steps need no wish, if mostly the same requests run, and nobody waits or K is 0.

        Those are the steps before which K could not change without ``confirm_steps`` wishes more; and as long as wishes
        agree with K they are asked for once in ``dwell_steps`` steps.
        """
        if self.length is None or self._confirm_steps == 1:
            return 0
        dwelling = self._dwelling
        if self._run and not dwelling:
            return 0
        return dwelling + max(0, self._dwell_steps - 1 - self._rested)

    def rest(self, steps: int) -> None:
        """So many steps in which K stays and nothing is wished for."""
        if steps > 0:
            self._rested += max(0, steps - self._dwelling)
            self._held += steps
            self._run.clear()

    @property
    def _dwelling(self) -> int:
        """Coming steps of which no wish would count."""
        return max(0, self._dwell_steps - self._confirm_steps - self._held)


class Thrift:
    """How much longer an answer stands, so that the plugin keeps to its share of the time.

    Between two steps of a model the plugin's code is never in the caches: a question takes a fifth of a millisecond or
    more, which of a short step is too much.
    """

    def __init__(self, most: float) -> None:
        """``most``: share of the steps' time that the plugin may take; 0: any."""
        self._most = most
        self._told = (0.0, 0.0)
        self._own = self._whole = 0.0
        self.stretch = 1.0
        """Times that rests are to last."""

    def enter(self, own: float, whole: float) -> None:
        """Before a question: seconds so far that the plugin took, and those of all steps, its own included."""
        if self._most == 0:
            return
        self._own = _MEMORY * self._own + own - self._told[0]
        self._whole = _MEMORY * self._whole + whole - self._told[1]
        self._told = own, whole
        if self._whole > 0:
            change = _TURN if self._own > self._most * self._whole else 1 / _TURN
            self.stretch = min(max(self.stretch * change, 1.0), _LONGEST)


class PacedController(Controller):
    """``inner`` at the pace of a `Pacer`: the longest length of a decision is what the pacer is asked to grant.

    Where it grants less, longer lengths are cut; where it holds on to more, those who were to draft most draft that
    many: all of them, where all have one length.
    """

    def __init__(self, inner: Controller, pacer: Pacer) -> None:
        self.inner, self.pacer = inner, pacer
        self._granted_to: frozenset[str] = frozenset()

    def decide(self, state: RoundState) -> Decision:
        """See `Controller.decide`."""
        decision = self.inner.decide(state)
        wished: Any = np.asarray(decision.num_speculative_tokens)
        if wished.shape != (len(state.request_ids),) or wished.dtype.kind not in "iu" or not wished.size:
            return decision  # The guard says what is wrong with it.
        lengths, allowed = wished.tolist(), state.max_num_speculative_tokens.tolist()
        # Who is about to end can only wish for little, which says nothing about the load.
        least = max(self.pacer.length or 0, 1)
        told = [min(length, most) for length, most in zip(lengths, allowed, strict=True) if most >= least]
        if min(lengths) < 0 or not told:
            return decision
        wish = max(told)
        requests, before = state.request_ids, self.pacer.length
        fresh = 2 * sum(name in self._granted_to for name in requests) < len(requests)
        length = self.pacer.follow(wish, state.waiting > 0, fresh)
        if fresh or length != before:
            self._granted_to = frozenset(requests)
        if length > wish:
            return Decision(np.where(wished >= wish, length, wished))
        return decision if max(lengths) <= length else Decision(np.minimum(wished, length))

    def observe(self, outcome: RoundOutcome) -> None:
        """See `Controller.observe`."""
        self.inner.observe(outcome)
