"""The same speculation length for every request in every round."""

from __future__ import annotations

import numpy as np

from .controller import Controller, Decision, RoundState


class ConstantController(Controller):
    """What engines do today: one length for all. 0 is plain decoding."""

    def __init__(self, num_speculative_tokens: int) -> None:
        if num_speculative_tokens < 0:
            raise ValueError(f"num_speculative_tokens must be 0 or more, got {num_speculative_tokens}")
        self.num_speculative_tokens = num_speculative_tokens

    def decide(self, state: RoundState) -> Decision:
        """Return the constant for every request."""
        return Decision(np.full(len(state.request_ids), self.num_speculative_tokens, dtype=np.int64))
