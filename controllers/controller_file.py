"""Controllers as data: a JSON file, or a directory of ``controller.json`` and ``weights.safetensors``. Never pickle.

`save_controller` writes a `PricedController` (a tree, an MLP or a fixed price), a table or a constant, with all that
deciding takes: features with their units, tiers, normaliser, acceptance predictor and cost surface. `load_controller`
reads nothing but data, checks every field and wraps what it finds in the guard.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .acceptance import AcceptancePredictor
from .action import MAX_LENGTH, MAX_TIERS, FixedPolicy
from .constant import ConstantController
from .controller import Controller
from .controller_parts import WEIGHTS, read_feature_names, read_policy, read_surface, read_tiers
from .cost_surface import CostSurface
from .cost_table import CHUNK_STEP, CONTEXT_STEP
from .guard import GuardedController, GuardSettings
from .length_table import LengthTableController
from .observation import FEATURES
from .pass_costs import PassCosts
from .policies import MlpPolicy, TreePolicy
from .priced import PricedController
from .strict_json import FieldError, array, integer, mapping, only, parse_object, read_bounded

FORMAT = "specpilot controller"
SCHEMA_VERSION = 3
CONTROLLER = "controller.json"
KINDS = ("tree", "mlp", "fixed", "table", "constant")
MAX_CELLS = 2**24
"""Of the largest cost table that a file may ask for."""
_HEAD = ("format", "schema_version", "kind", "facts")
_PRICED = ("features", "tiers", "policy", "limits", "predictor", "cost_surface")
_log = logging.getLogger(__name__)
_warned = set[tuple[str, str]]()


class ControllerFileError(ValueError):
    """A controller cannot be loaded or saved; the message is one line with file, field and fix."""


# ---------------------------------------------------------------------- writing


def save_controller(controller: Controller, path: str | Path, facts: Mapping[str, Any] | None = None) -> Path:
    """Write ``controller`` so that `load_controller` gives one that decides the same; returns the JSON's path.

    An MLP makes ``path`` a directory, all others a single JSON file. ``facts``: how it came about, fit for JSON; only
    kept. Files are written under temporary names and renamed, the weights before the JSON that needs them. Raises
    `ControllerFileError` for a controller of another kind.
    """
    if isinstance(controller, GuardedController):
        controller = controller.inner
    path, document = Path(path), _document(controller, dict(facts or {}))
    policy = getattr(controller, "policy", None)
    if isinstance(policy, MlpPolicy):
        from safetensors.numpy import save

        path.mkdir(parents=True, exist_ok=True)
        _replace(path / WEIGHTS, save(policy.arrays()))
        path = path / CONTROLLER
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _replace(path, (json.dumps(document, allow_nan=False) + "\n").encode())
    except (TypeError, ValueError) as error:
        raise ControllerFileError(f"{path}: 'facts' must be fit for JSON ({error}); drop what is not") from None
    return path


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _document(controller: Controller, facts: dict[str, Any]) -> dict[str, Any]:
    head: dict[str, Any] = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    if isinstance(controller, ConstantController):
        own: dict[str, Any] = {"num_speculative_tokens": controller.num_speculative_tokens}
        return head | {"kind": "constant"} | own | {"facts": facts}
    if isinstance(controller, LengthTableController):
        return head | {"kind": "table", "table": [list(row) for row in controller.table], "facts": facts}
    policy = getattr(controller, "policy", None)
    if not isinstance(controller, PricedController) or not isinstance(policy, TreePolicy | MlpPolicy | FixedPolicy):
        raise ControllerFileError(f"a {type(controller).__name__} cannot be saved; only these kinds can: {KINDS}")
    kind = {TreePolicy: "tree", MlpPolicy: "mlp", FixedPolicy: "fixed"}[type(policy)]
    named = {feature.name: feature for feature in FEATURES}
    return {
        **head,
        "kind": kind,
        "features": [
            {"name": name, "unit": named[name].unit, "low": named[name].low, "high": named[name].high}
            for name in policy.feature_names
        ],
        "tiers": [action._asdict() for action in policy.tiers],
        "policy": policy.document(),
        "limits": {
            "max_num_speculative_tokens": controller.maximum,
            "max_batch": controller.max_batch,
            "max_context": controller.max_context,
            "hold": controller.hold,
        },
        "predictor": controller.predictor.document(),
        "cost_surface": compact(controller.surface)._document(),
        "facts": facts,
    }


def compact(surface: CostSurface) -> CostSurface:
    """The same seconds with one sample a point, the fitted median, instead of all repeats."""
    costs = {kind: PassCosts(own.axes, own.fitted[..., None]) for kind, own in surface.costs.items()}
    return replace(surface, costs=costs)


# ---------------------------------------------------------------------- reading


def load_controller(
    path: str | Path,
    cost_surface: CostSurface | str | Path | None = None,
    guard: bool = True,
    fallback: Controller | None = None,
    settings: GuardSettings | None = None,
) -> Controller:
    """Read what `save_controller` wrote, a JSON file or a directory.

    ``cost_surface``: that of this machine (or its file), in place of the one that the controller was made for; logs a
    warning, once, where the two have different fingerprints. ``guard``: wrap it in a `GuardedController` with
    ``fallback`` (default: no speculation) and ``settings``. Raises `ControllerFileError` with one line, and
    `CostSurfaceError` where ``cost_surface`` cannot be read; an engine that runs keeps the controller it has.
    """
    own = CostSurface.load(cost_surface) if isinstance(cost_surface, str | Path) else cost_surface
    path = Path(path)
    try:
        file = path / CONTROLLER if path.is_dir() else path
        # Numbers at the edge of what is allowed may overflow on the way to a check that refuses them.
        with np.errstate(all="ignore"):
            controller = _controller(parse_object(read_bounded(file)), file, own)
    except ValueError as error:
        problem = " ".join(str(error).split())
        raise ControllerFileError(f"{path}: {problem:.300}; save it again with save_controller") from None
    return GuardedController(controller, fallback, settings) if guard else controller


def _controller(document: dict[str, Any], file: Path, surface: CostSurface | None) -> Controller:
    if document.get("format") != FORMAT:
        raise FieldError(f"'format' is not {FORMAT!r}")
    version = document.get("schema_version")
    if type(version) is not int or version != SCHEMA_VERSION:
        raise FieldError(f"'schema_version' is {version!r:.40}, this version reads {SCHEMA_VERSION}")
    kind = document.get("kind")
    if kind not in KINDS:
        raise FieldError(f"'kind' must be one of {', '.join(KINDS)}, got {kind!r:.40}")
    mapping(document.get("facts"), "facts")
    if kind == "constant":
        only(document, (*_HEAD, "num_speculative_tokens"))
        return ConstantController(integer(document["num_speculative_tokens"], "num_speculative_tokens", 0, MAX_LENGTH))
    if kind == "table":
        only(document, (*_HEAD, "table"))
        rows = [tuple(array(row, "table", 3)) for row in array(document["table"], "table", MAX_TIERS)]
        table = LengthTableController(rows)
        for row, (low, high, length) in enumerate(table.table):
            integer(max(low, high or low), f"table[{row}]", 1, 2**31)
            integer(length, f"table[{row}]", 0, MAX_LENGTH)
        return table
    only(document, (*_HEAD, *_PRICED))
    return _priced(document, file, surface)


def _priced(document: dict[str, Any], file: Path, surface: CostSurface | None) -> PricedController:
    made_for = read_surface(document["cost_surface"])
    if surface is not None:
        _warn_of_another_machine(file, made_for.fingerprint, surface.fingerprint)
    names, tiers = read_feature_names(document["features"]), read_tiers(document["tiers"])
    policy = read_policy(document["kind"], names, tiers, mapping(document["policy"], "policy"), file)
    try:
        predictor = AcceptancePredictor.parse(document["predictor"])
    except ValueError as error:
        raise FieldError(f"'predictor': {error}") from None
    limits = mapping(document["limits"], "limits")
    only(limits, ("max_num_speculative_tokens", "max_batch", "max_context", "hold"), "limits.")
    length = integer(limits["max_num_speculative_tokens"], "limits.max_num_speculative_tokens", 0, MAX_LENGTH)
    batch = integer(limits["max_batch"], "limits.max_batch", 1, 4096)
    context = integer(limits["max_context"], "limits.max_context", 1, 2**20)
    hold = integer(limits["hold"], "limits.hold", 1, 1000)
    cells = (batch + 1) * max(length + 3, context // CHUNK_STEP + 2) * (context // CONTEXT_STEP + 2)
    if cells > MAX_CELLS:
        raise FieldError(f"'limits' ask for a cost table of {cells} cells, at most {MAX_CELLS} are made")
    controller = PricedController(policy, predictor, surface or made_for, length, batch, context, hold)
    if not all(np.isfinite(table).all() for table in controller.costs):
        raise FieldError("'cost_surface' gives no finite seconds within 'limits'")
    return controller


def _warn_of_another_machine(file: Path, made_for: str, here: str) -> None:
    if made_for != here and (made_for, here) not in _warned:
        _warned.add((made_for, here))
        _log.warning(
            "%s: made for the cost surface %s, this machine's is %s; decisions use this machine's costs",
            file,
            made_for,
            here,
        )
