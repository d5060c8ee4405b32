"""What the user of the plugin may set, in the environment or in vLLM's ``additional_config``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

KEY = "specpilot"
"""Of ``additional_config``, a mapping of `VllmSettings`' names."""
_PREFIX = "SPECPILOT_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True)
class VllmSettings:
    """Each is read from ``SPECPILOT_<NAME>`` too; ``additional_config={"specpilot": {...}}`` comes first."""

    controller: Path | None = None
    """File or directory that `controllers.save_controller` wrote. None: vLLM is left alone."""
    cost_surface: Path | None = None
    """This machine's, in place of the one that the controller was made for."""
    lazy_catch_up: bool = True
    """At K = 0 do not run a draft model, and let it catch up later; see `lazy_drafter` for the versions tried."""
    fix_cpu_sampling: bool = True
    """Repair sampling with speculation on CPU where it is found broken; see `cpu_sampling`."""
    trim: bool = True
    """Cut each request's draft to its own length (synchronous scheduling only); else all get the step's K."""
    confirm_steps: int = 3
    """Steps in a row that must ask for more, or for less, before K changes; 1: at once."""
    dwell_steps: int = 6
    """Least steps between two changes of K; 0: none."""
    time_share: float = 0.008
    """Of the steps' time that the plugin may take: where it takes more it asks the controller less often, down to a
    fifth; 0: as often as it would."""
    self_test: bool = True
    """Command some K in the first steps and check that vLLM drafts as many."""

    def __post_init__(self) -> None:
        if self.confirm_steps < 1:
            raise ValueError(f"confirm_steps must be at least 1, got {self.confirm_steps}")
        if self.dwell_steps < 0:
            raise ValueError(f"dwell_steps must be 0 or more, got {self.dwell_steps}")
        if not 0 <= self.time_share <= 1:
            raise ValueError(f"time_share must be 0 … 1, got {self.time_share}")

    @classmethod
    def read(cls, own: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None) -> VllmSettings:
        """From ``own`` (the mapping under `KEY`) and ``environment`` (default: this process's).

        Raises `ValueError` naming an unknown key of ``own`` or a value that is not of its kind.
        """
        told = os.environ if environment is None else environment
        kinds = {field.name: str(field.type) for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, kind in kinds.items():
            text = told.get(_PREFIX + name.upper(), "")
            if text:
                values[name] = _parsed(text, kind, _PREFIX + name.upper())
        for name, value in (own or {}).items():
            if name not in kinds:
                raise ValueError(f"additional_config[{KEY!r}] has no {name!r}; it knows {', '.join(kinds)}")
            values[name] = _parsed(value, kinds[name], f"additional_config[{KEY!r}][{name!r}]")
        return cls(**values)

    @classmethod
    def of(cls, vllm_config: Any) -> VllmSettings:
        """Of an engine, by its ``VllmConfig``. Raises as `read` does."""
        more = getattr(vllm_config, "additional_config", None)
        own = more.get(KEY) if isinstance(more, Mapping) else None
        if own is not None and not isinstance(own, Mapping):
            raise ValueError(f"additional_config[{KEY!r}] must be a mapping, got {own!r:.80}")
        return cls.read(own)


def _parsed(value: Any, kind: str, where: str) -> Any:
    """``value`` as the ``kind`` of a field; text is what the environment has."""
    if kind.startswith("Path"):
        if value is None or (isinstance(value, str | Path) and str(value)):
            return None if value is None else Path(value)
        raise ValueError(f"{where} must be a path, got {value!r:.80}")
    if kind == "bool":
        text = str(value).lower()
        if not isinstance(value, bool | str | int) or text not in _TRUE + _FALSE:
            raise ValueError(f"{where} must be true or false, got {value!r:.80}")
        return text in _TRUE
    whole = kind == "int"
    try:
        if isinstance(value, bool) or (whole and isinstance(value, float)):
            raise ValueError
        return int(value) if whole else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{where} must be {'an integer' if whole else 'a number'}, got {value!r:.80}") from None
