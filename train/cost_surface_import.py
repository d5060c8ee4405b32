"""Cost surfaces of other engines: our own file or a simple table of seconds, as ``docs/trace-format.md`` has it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from specpilot.controllers import KINDS, CostSurface, CostSurfaceError
from specpilot.controllers.pass_costs import Axes, PassCosts, check_axis


def read_cost_surface(path: str | Path) -> CostSurface:
    """Read what `CostSurface.save` wrote, or the simple form: rows of batch, tokens, context and seconds per kind.

    Raises `CostSurfaceError` naming the file, and kind and row where one is wrong.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        document = json.loads(text)
        if isinstance(document, dict) and "format" in document:
            return CostSurface.load(path)
        return _simple_surface(document, hashlib.sha256(text.encode()).hexdigest()[:16])
    except OSError as error:
        problem = f"cannot be read ({error.strerror})"
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        problem = "is not JSON"
    except CostSurfaceError:
        raise
    except ValueError as error:
        problem = str(error)
    raise CostSurfaceError(f"{path}: {problem}")


def _simple_surface(document: Any, digest: str) -> CostSurface:
    if not isinstance(document, Mapping) or not isinstance(document.get("hardware"), str):
        raise ValueError("must be an object with 'hardware' (a name) and rows for 'verify' and 'prefill'")
    if unknown := sorted(set(document) - {"hardware", "dtype", "versions", *KINDS}):
        raise ValueError(f"unknown field {unknown[0]!r}; known are hardware, dtype, versions, {', '.join(KINDS)}")
    kinds = [kind for kind in KINDS if kind in document]
    if set(kinds) not in ({"verify", "prefill"}, set(KINDS)):
        raise ValueError(f"needs rows for verify and prefill, or for {', '.join(KINDS)}; has {', '.join(kinds)}")
    fields = {name: document.get(name, "not given") for name in ("hardware", "dtype", "versions")}
    if wrong := [name for name, value in fields.items() if not isinstance(value, str)]:
        raise ValueError(f"{wrong[0]!r} must be a string, got {fields[wrong[0]]!r:.40}")
    costs = {kind: _table(kind, document[kind]) for kind in kinds}
    return CostSurface(costs, {**fields, "imported": digest}, datetime.now(UTC).isoformat(timespec="seconds"))


def _table(kind: str, rows: Any) -> PassCosts:
    """Costs on the full grid that the rows' batches, tokens and contexts span; each cell exactly once."""
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{kind!r} must be a list of [batch, tokens, context, seconds]")
    cells: dict[tuple[int, ...], float] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 4 or not _is_seconds(row[3]):
            raise ValueError(f"'{kind}[{number}]' must be [batch, tokens, context, positive seconds], got {row!r:.60}")
        try:
            for point in row[:3]:
                check_axis([point])
        except ValueError as error:
            raise ValueError(f"'{kind}[{number}]': batch, tokens and context {error}") from None
        if tuple(row[:3]) in cells:
            raise ValueError(f"'{kind}[{number}]' repeats batch, tokens and context {row[:3]}; give each once")
        cells[tuple(row[:3])] = float(row[3])
    batches, tokens, contexts = (tuple(sorted(set(points))) for points in zip(*cells, strict=True))
    axes: Axes = (batches, tokens, contexts)
    samples = np.empty((len(batches), len(tokens), len(contexts), 1))
    for index in np.ndindex(samples.shape[:3]):
        cell = tuple(axis[at] for axis, at in zip(axes, index, strict=True))
        if cell not in cells:
            raise ValueError(f"{kind!r} lacks batch, tokens and context {list(cell)}; the grid must be full")
        samples[(*index, 0)] = cells[cell]
    return PassCosts(axes, samples)


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= sys.float_info.max
