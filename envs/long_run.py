"""What a second earns in the long run: the price in the reward ``tokens - price * seconds`` (Dinkelbach 1967)."""

from __future__ import annotations

from ..controllers.cost_table import CostTable
from ..controllers.observation import plain_round_seconds
from .fleet import PRICE_DECAY

_CONTEXT = 256.0


class LongRunPrice:
    """Running tokens per second of each scenario, decayed by `PRICE_DECAY` a round."""

    def __init__(self, num_scenarios: int) -> None:
        self._sums = [[0.0, 0.0] for _ in range(num_scenarios)]

    def clear(self) -> None:
        """Forget everything."""
        self._sums = [[0.0, 0.0] for _ in self._sums]

    def enter(self, scenario: int, tokens: float, seconds: float) -> None:
        """Note a round."""
        own = self._sums[scenario]
        own[0] = own[0] * PRICE_DECAY + tokens
        own[1] = own[1] * PRICE_DECAY + seconds

    def of(self, scenario: int, default: float = 0.0) -> float:
        """Tokens per second; ``default`` before the first round."""
        tokens, seconds = self._sums[scenario]
        return tokens / seconds if seconds > 0 else default


def plain_rate(costs: CostTable, requests: int) -> float:
    """Tokens per second of plain decoding: a price before anything is known."""
    batch = min(requests, costs.max_batch)
    return batch / plain_round_seconds(costs, batch, _CONTEXT)
