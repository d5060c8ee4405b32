"""The cost surface: measured seconds of every kind of model pass as a function of batch, tokens and context."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast, overload

import numpy as np
from numpy.typing import ArrayLike

from .controller import FloatArray
from .pass_costs import (
    KINDS,
    REQUIRED_FIELDS,
    Axes,
    CostGrid,
    CostSurfaceError,
    PassCosts,
    PassTimer,
    ProfiledEngine,
    check_axis,
)
from .round_overhead import NO_OVERHEAD, RoundOverhead, RoundWork, idleness, padding

SCHEMA_VERSION = 1


class RoundCost(NamedTuple):
    """Predicted seconds of a round's model passes."""

    draft: float
    verify: float
    catch_up: float


@dataclass(frozen=True, eq=False)
class CostSurface:
    """What passes cost on one machine with one pair: measured, made monotone, interpolated."""

    costs: Mapping[str, PassCosts]
    """By kind; without ``draft`` and ``catch_up`` where the drafter is no model."""
    fields: Mapping[str, str]
    """What the seconds depend on: hardware, dtype, versions, model shapes, …"""
    date: str
    """When it was measured, ISO 8601 in UTC."""
    overhead: RoundOverhead = NO_OVERHEAD
    """What live rounds cost beyond their passes; nothing until it is fitted. Not part of the fingerprint."""
    drafts_whole_batch: bool = False
    """Whether every draft level is a pass of the whole batch, however few go on, as in vLLM. Not part of the
    fingerprint."""

    def __post_init__(self) -> None:
        if missing := [name for name in REQUIRED_FIELDS if name not in self.fields]:
            raise CostSurfaceError(f"'fields' lacks {missing[0]!r}; add it to what fingerprint_fields returns")

    @property
    def fingerprint(self) -> str:
        """16 hex digits that differ where ``fields`` differ (SHA-256)."""
        return hashlib.sha256(json.dumps(dict(self.fields), sort_keys=True).encode()).hexdigest()[:16]

    @classmethod
    def measure(
        cls, engine: PassTimer | ProfiledEngine, grid: CostGrid | None = None, progress: bool = False
    ) -> CostSurface:
        """Measure an idle engine (or anything that times passes) on ``grid``, cut to what the engine can do.

        Each cell is run once to warm up and then once in every repeat, all cells in a new shuffled order each time, so
        that a slow spell of the machine is spread over the grid. ``progress``: a line on stderr after every repeat.
        """
        grid = grid or CostGrid()
        timer = engine.profiler() if isinstance(engine, ProfiledEngine) else engine
        axes = {kind: grid.axes(kind, timer.limits) for kind in KINDS if kind in timer.kinds}
        samples = {kind: np.empty((*map(len, own), grid.repeats)) for kind, own in axes.items()}
        cells = [(kind, index) for kind in axes for index in np.ndindex(samples[kind].shape[:3])]
        rng = np.random.default_rng(0)
        for repeat in range(-1, grid.repeats):  # -1 warms up.
            for number in rng.permutation(len(cells)):
                kind, index = cells[number]
                batch, tokens, context = (axis[i] for axis, i in zip(axes[kind], index, strict=True))
                seconds = timer.time_pass(kind, batch, tokens, context)
                if repeat >= 0:
                    samples[kind][(*index, repeat)] = seconds
            if progress:
                print(f"cost surface: {repeat + 2}/{grid.repeats + 1} x {len(cells)} passes", file=sys.stderr)
        costs = {kind: PassCosts(own, samples[kind]) for kind, own in axes.items()}
        return cls(costs, timer.fingerprint_fields(), datetime.now(UTC).isoformat(timespec="seconds"))

    @overload
    def seconds(self, kind: str, batch: float, tokens: float, context: float) -> float: ...
    @overload
    def seconds(self, kind: str, batch: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> FloatArray: ...
    def seconds(self, kind: str, batch: ArrayLike, tokens: ArrayLike, context: ArrayLike) -> FloatArray | float:
        """Seconds of a pass of ``batch`` requests with ``tokens`` new tokens each on ``context`` cached ones.

        Arrays broadcast; scalars give a float. Never decreasing in any argument:

        - within the grid: multilinear between the fitted values;
        - below the first point of an axis: as at that point; 0 where batch or tokens is 0 or less;
        - above the last point: on with the slope of the last segment, never negative, fitted to be monotone in the
          other arguments; beyond several last points at once also with the slope of the slope, if it is positive.
          Along an axis of one point the cost is constant.

        Raises `CostSurfaceError` if the kind was not measured.
        """
        if kind not in self.costs:
            raise CostSurfaceError(
                f"the cost surface has no {kind!r} passes, only {sorted(self.costs)}; measure an engine that does them"
            )
        found = self.costs[kind].seconds(batch, tokens, context)
        return found if found.ndim else float(found)

    def round_seconds(
        self,
        lengths: ArrayLike,
        contexts: ArrayLike,
        lags: ArrayLike,
        *,
        verified: ArrayLike | None = None,
        temperatures: ArrayLike = 0.0,
        asked_levels: int = 0,
    ) -> float:
        """Predicted seconds of a round: the sum of `round_cost`, which see, plus `overhead`.

        ``temperatures`` (``[B]`` or one for all) says who needs noise. ``asked_levels``: after how many of
        the first levels the controller is asked, about every request that drafted there.
        """
        length = np.asarray(lengths, dtype=np.int64)
        if not length.size:
            return 0.0
        levels, sampled = int(length.max()), np.broadcast_to(np.asarray(temperatures) > 0, length.shape)
        work = RoundWork(
            requests=length.size,
            levels=levels,
            drafted=int(length.sum()),
            verified=int(length.sum() if verified is None else np.sum(verified)),
            asked_levels=min(levels, asked_levels),
            asked=int(np.minimum(length, asked_levels).sum()),
            noise_rows=int((length + 1)[sampled].sum()),
            padded=int(padding(length if verified is None else verified)),
            idle=int(idleness(length)),
        )
        return sum(self.round_cost(lengths, contexts, lags, verified)) + float(self.overhead.seconds(work))

    def round_cost(
        self, lengths: ArrayLike, contexts: ArrayLike, lags: ArrayLike, verified: ArrayLike | None = None
    ) -> RoundCost:
        """Seconds of the passes of a round in which request i drafts ``lengths[i]`` tokens, times `overhead`'s factors.

        ``contexts`` and ``lags`` are `RoundState.context_length` and `RoundState.lag`; all are ``[B]``; ``verified``
        where fewer tokens than were drafted are verified. Approximations: cells were measured with requests that are
        all alike, so a ragged pass is priced as one with the mean tokens per request and the longest context (what
        padding attention and sitting out cost beyond that is overhead: `RoundWork`); drafters that lag by more than one
        token catch up in one pass, which the engine may split; noise, confidences and the host's work are left out
        (see `overhead`).
        Without ``draft`` costs (a drafter that is no model) drafts are free.
        """
        cost = self._pass_seconds(lengths, contexts, lags, lengths if verified is None else verified)
        return RoundCost(*(self.overhead.factor(kind) * seconds for kind, seconds in cost._asdict().items()))

    def _pass_seconds(self, lengths: ArrayLike, contexts: ArrayLike, lags: ArrayLike, verified: ArrayLike) -> RoundCost:
        length, context, lag = (np.asarray(value, dtype=np.float64) for value in (lengths, contexts, lags))
        if not length.size:
            return RoundCost(0.0, 0.0, 0.0)
        cached = context - 1  # The last committed token is fed in this round.
        verify = self.seconds(
            "verify", float(length.size), float(np.mean(np.asarray(verified))) + 1, float(cached.max())
        )
        chosen = length > 0
        if "draft" not in self.costs or not chosen.any():
            return RoundCost(0.0, verify, 0.0)
        depth = np.arange(1, int(length.max()) + 1)
        drafting = length[:, None] >= depth  # [B, levels]
        longest = np.where(drafting, cached[:, None] + depth - 1, 0).max(axis=0)
        tokens = np.ones(len(depth))
        tokens[0] += np.mean(lag[chosen] == 1)
        requests = length.size if self.drafts_whole_batch else drafting.sum(axis=0)
        draft = float(np.sum(self.seconds("draft", requests, tokens, longest)))
        behind = chosen & (lag > 1)
        if not behind.any():
            return RoundCost(draft, verify, 0.0)
        seen = float((cached - lag)[behind].max())
        catch_up = self.seconds("catch_up", float(behind.sum()), float(lag[behind].mean()), seen)
        return RoundCost(draft, verify, catch_up)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CostSurface) and self._document() == other._document()

    __hash__ = None  # type: ignore[assignment]

    def _document(self) -> dict[str, Any]:
        names = ("batches", "tokens", "contexts")
        more: dict[str, Any] = {} if self.overhead == NO_OVERHEAD else {"overhead": self.overhead.document()}
        if self.drafts_whole_batch:
            more["drafts_whole_batch"] = True
        return {
            "format": "specpilot cost surface",
            "schema_version": SCHEMA_VERSION,
            "date": self.date,
            "fingerprint": self.fingerprint,
            "fields": dict(self.fields),
            **more,
            "kinds": {
                kind: {
                    **{name: list(axis) for name, axis in zip(names, costs.axes, strict=True)},
                    "samples": costs.samples.tolist(),
                }
                for kind, costs in self.costs.items()
            },
        }

    def save(self, path: str | Path) -> None:
        """Write JSON in one go: a reader sees the old file or the new one. Medians and fit are recomputed on load."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps(self._document(), allow_nan=False) + "\n", encoding="utf-8")
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | Path) -> CostSurface:
        """Read exactly what `save` wrote. Raises `CostSurfaceError` naming file, field and fix if anything is off."""
        try:
            return cls._parse(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            problem = f"cannot be read ({error.strerror})"
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
            problem = "is not JSON"
        except ValueError as error:
            problem = str(error)
        raise CostSurfaceError(f"{path}: {problem}; measure this machine again with CostSurface.measure(engine)")

    @classmethod
    def _parse(cls, document: Any) -> CostSurface:
        if not isinstance(document, dict) or document.get("format") != "specpilot cost surface":
            raise ValueError("'format' is not 'specpilot cost surface'")
        if document.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(f"'schema_version' is {document.get('schema_version')!r}, this is {SCHEMA_VERSION}")
        date, fields, kinds = document.get("date"), document.get("fields"), document.get("kinds")
        try:
            datetime.fromisoformat(cast(str, date))
        except (TypeError, ValueError):
            raise ValueError(f"'date' must be an ISO 8601 date, got {date!r}") from None
        if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
            raise ValueError("'fields' must map names to strings")
        if missing := [name for name in REQUIRED_FIELDS if name not in fields]:
            raise ValueError(f"'fields' lacks {missing[0]!r}")
        if not isinstance(kinds, dict) or set(kinds) not in ({"verify", "prefill"}, set(KINDS)):
            raise ValueError(f"'kinds' must be {sorted(KINDS)} or ['prefill', 'verify']")
        overhead = RoundOverhead.parse(document["overhead"]) if "overhead" in document else NO_OVERHEAD
        together = document.get("drafts_whole_batch", False)
        if type(together) is not bool:
            raise ValueError(f"'drafts_whole_batch' must be true or false, got {together!r:.40}")
        costs = {kind: _parse_costs(f"kinds.{kind}", own) for kind, own in kinds.items()}
        surface = cls(costs, fields, cast(str, date), overhead, together)
        if document.get("fingerprint") != surface.fingerprint:
            raise ValueError(f"'fingerprint' must be {surface.fingerprint!r}, got {document.get('fingerprint')!r}")
        return surface


def _parse_costs(name: str, document: Any) -> PassCosts:
    if not isinstance(document, dict):
        raise ValueError(f"{name!r} must be an object with batches, tokens, contexts and samples")
    axes = []
    for axis in ("batches", "tokens", "contexts"):
        try:
            axes.append(tuple(check_axis(document.get(axis))))
        except ValueError as error:
            raise ValueError(f"'{name}.{axis}' {error}") from None
    samples: Any = document.get("samples")
    shape = tuple(map(len, axes))
    flat = [samples]
    for size in (*shape, None):
        if not all(isinstance(part, list) and part and len(part) == (size or len(flat[0])) for part in flat):
            raise ValueError(f"'{name}.samples' must have shape {list(shape)} x repeats, as the axes say")
        flat = [item for part in flat for item in part]
    if not all(type(number) in (int, float) and 0 < number <= sys.float_info.max for number in flat):
        raise ValueError(f"'{name}.samples' must be finite positive seconds")
    return PassCosts(cast(Axes, tuple(axes)), np.asarray(samples, dtype=np.float64))
