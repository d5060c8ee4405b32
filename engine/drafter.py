"""Drafters behind one interface: what a drafter proposes, when it must catch up, and what it remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..controllers import LEVEL_FEATURES, DraftLevel
from ..controllers.controller import FloatArray, IntArray
from .request import Request
from .sampler import RowSampling
from .token_tree import TokenTree

NewLengths = Callable[[DraftLevel], NDArray[np.int64]]
AfterLevel = Callable[[int, IntArray, FloatArray, FloatArray], IntArray]


@dataclass
class AskingTime:
    """What asking the controller between the levels of a round has taken so far."""

    seconds: float = 0.0


@dataclass(frozen=True)
class DraftContext:
    """What a drafter needs to know about a round beside the requests."""

    sampling: RowSampling
    """One row per request of the round."""
    draw: int
    """Number of the round: in ``rejection`` mode every round draws fresh drafts."""
    shared_noise: Callable[[NDArray[np.int64], int], torch.Tensor | None] | None
    """``coupled`` mode: (rows, depth) -> the target's own Gumbel noise for the token ``depth`` ahead of those rows'
    context; None in ``rejection`` mode."""
    new_lengths: NewLengths
    """See `Controller.new_lengths`."""
    asked_levels: int = 0
    """After how many of the first levels ``new_lengths`` is called; 0: every request drafts its full length."""
    level_features: Collection[str] = LEVEL_FEATURES
    """What ``new_lengths`` reads of a `DraftLevel`."""
    asks_last_level: bool = False
    """Ask also about the requests that have reached their length, whose answer then does not matter."""
    after_level: AfterLevel | None = None
    """Asked in place of ``new_lengths`` where it is not None: `controllers.controller.Looks.after`."""
    asking: AskingTime = field(default_factory=AskingTime)
    """Grows with every question, what it takes to put it included."""

    @property
    def draws(self) -> bool:
        """True if drafts are drawn from the drafter's own distribution, which verification then has to know."""
        return self.shared_noise is None and not self.sampling.all_greedy


@dataclass(frozen=True)
class Draft:
    """One request's proposal."""

    tree: TokenTree
    """Root (last committed token) and drafted nodes, level by level."""
    main_chain: tuple[int, ...] = ()
    """Nodes whose prefix the drafter's own cache follows."""
    probabilities: Mapping[int, NDArray[np.float64]] = field(default_factory=dict)
    """``rejection`` mode: node -> distribution its children were drawn from, without replacement."""
    depth: int = 0
    """Levels drafted; the speculation length that was used."""

    def trimmed(self, depth: int) -> Draft:
        """The draft without its levels beyond ``depth``, for ``coupled`` verification; nodes keep their numbers."""
        if depth >= self.depth:
            return self
        return replace(self, tree=self.tree.cut(depth), main_chain=self.main_chain[:depth], depth=depth)


class Drafter(ABC):
    """Proposes tokens for requests. Slots and tokens are the engine's; a drafter's cache follows them."""

    name: str
    num_bytes: int = 0
    """Memory of the drafter's own cache."""

    @abstractmethod
    def lag(self, request: Request) -> int:
        """Committed tokens that the drafter has not seen, the last one (which nothing has seen yet) not counted."""

    @abstractmethod
    def catch_up(self, requests: Sequence[Request]) -> int:
        """Bring every request's lag to 1 or less. Returns the number of tokens that took."""

    @abstractmethod
    def propose(self, requests: Sequence[Request], lengths: NDArray[np.int64], context: DraftContext) -> list[Draft]:
        """Draft ``lengths[i] >= 1`` levels for each request, or fewer where ``context.new_lengths`` says so."""

    @abstractmethod
    def commit(self, request: Request, draft: Draft, path: tuple[int, ...]) -> None:
        """Learn which nodes of ``draft``, as it was proposed, were accepted (before the engine appends the tokens)."""

    @abstractmethod
    def start(self, request: Request) -> None:
        """A request was given a slot."""

    @abstractmethod
    def forget(self, request: Request) -> None:
        """A request left."""

    @abstractmethod
    def move_slot(self, source: int, destination: int) -> None:
        """The request in slot ``source`` now lives in slot ``destination``."""
