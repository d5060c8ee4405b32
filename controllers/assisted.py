"""The two rules of Hugging Face transformers' assisted generation: a length that adapts, a confidence that stops."""

from __future__ import annotations

import numpy as np

from .controller import EVERY_LEVEL, Controller, Decision, DraftLevel, IntArray, RoundState


class HeuristicScheduleController(Controller):
    """Each request's length rises by 2 after a draft that was accepted whole and falls by 1 after any other.

    transformers' ``num_assistant_tokens_schedule="heuristic"`` (``AssistedCandidateGenerator``), which serves one
    request; here each request has its own. A round in which a request drafted nothing changes nothing.
    """

    def __init__(
        self, max_num_speculative_tokens: int, initial: int = 5, increase: int = 2, decrease: int = 1, minimum: int = 1
    ) -> None:
        if not 1 <= minimum <= max_num_speculative_tokens:
            raise ValueError(
                f"minimum must be 1 … max_num_speculative_tokens ({max_num_speculative_tokens}), got {minimum}"
            )
        if increase < 0 or decrease < 0:
            raise ValueError(f"increase and decrease must be 0 or more, got {increase} and {decrease}")
        self.maximum = max_num_speculative_tokens
        self.minimum = minimum
        self.initial = min(max(initial, minimum), max_num_speculative_tokens)
        self.increase = increase
        self.decrease = decrease
        self._length: dict[str, int] = {}

    def decide(self, state: RoundState) -> Decision:
        """Update every request's length by its last round and return it."""
        drafted, accepted = state.last_num_speculative_tokens.tolist(), state.last_accepted_length.tolist()
        lengths = {}  # A new one, so that requests that have left are forgotten.
        for request, proposed, kept in zip(state.request_ids, drafted, accepted, strict=True):
            length = self._length.get(request, self.initial)
            if request in self._length and proposed > 0:
                step = self.increase if kept == proposed else -self.decrease
                length = min(max(length + step, self.minimum), self.maximum)
            lengths[request] = length
        self._length = lengths
        return Decision(np.asarray(list(lengths.values()), dtype=np.int64))


class ConfidenceThresholdController(Controller):
    """Every request drafts on until the drafter's probability of its best token falls below a threshold.

    transformers' ``assistant_confidence_threshold`` (default 0.4 since 4.45; after DISCO, arXiv 2405.04304). The token
    that fell short is kept, as there. transformers looks at the probability of the drafted token, which is the best one
    when drafts are greedy, and moves the threshold while it serves where scikit-learn is installed; this one stays.
    """

    asked_levels = EVERY_LEVEL
    level_features = ("top1_probability",)

    def __init__(self, num_speculative_tokens: int, threshold: float = 0.4) -> None:
        if num_speculative_tokens < 1:
            raise ValueError(f"num_speculative_tokens must be 1 or more, got {num_speculative_tokens}")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold must be a probability, 0 … 1, got {threshold}")
        self.num_speculative_tokens = num_speculative_tokens
        self.threshold = threshold

    def decide(self, state: RoundState) -> Decision:
        """The longest draft for every request."""
        return Decision(np.full(len(state.request_ids), self.num_speculative_tokens, dtype=np.int64))

    def new_lengths(self, level: DraftLevel) -> IntArray:
        """Go on where the drafter was confident enough of its last token."""
        return level.going_on(level.top1_probability >= self.threshold)
