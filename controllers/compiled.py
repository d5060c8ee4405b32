"""The price rule and its neighbours compiled, so that a controller and replay run the same lines at machine speed.

The first process on a machine compiles for some seconds; the code is kept for those that follow. Without Numba the same
lines run as plain Python: a controller needs nothing but NumPy, only its plans take longer.
"""

from __future__ import annotations

import functools
import hashlib
import tempfile
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar, cast

from . import acceptance_rate, acceptance_table, cost_table, observation, price_rule

F = TypeVar("F", bound=Callable[..., Any])


def _numba() -> Any:
    """The module; None where it is not installed."""
    try:
        import numba
    except ImportError:
        return None
    return numba


def _sources() -> str:
    """A digest of everything that is compiled: Numba itself only looks at the file of the outermost function."""
    own = Path(__file__).parent
    texts = [file.read_bytes() for file in sorted(own.glob("*.py"))]
    folders = own.with_name("engine"), own.with_name("envs"), own.with_name("train")
    scripts = (file.read_bytes() for folder in folders for file in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"".join([*texts, *(text for text in scripts if b"@compiled" in text)])).hexdigest()[:16]


def writable(folders: Iterable[Path]) -> Path | None:
    """The first of ``folders`` that can be made and written to; None: a server's user may have no such place."""
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
        except OSError:
            continue
    return None


@functools.cache
def _cache() -> Path | None:
    """Where the machine code is kept; None: nowhere, and every process compiles."""
    folders = Path(__file__).parent / "__pycache__", _home() / ".cache" / "specpilot"
    return writable(folder / _sources() for folder in folders)


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:  # A user without an entry.
        return Path(tempfile.gettempdir())


def compiled(function: F) -> F:
    """Compile for one thread, keep the machine code near the source, let other threads run meanwhile."""
    numba = _numba()
    if numba is None:
        return function
    config, cache = numba.config, _cache()
    before, config.CACHE_DIR = config.CACHE_DIR, str(cache or "")
    try:
        result: Any = numba.njit(cache=cache is not None, nogil=True, error_model="numpy")(function)
    finally:
        config.CACHE_DIR = before
    return cast(F, result)


def _bound(function: Callable[..., Any], **compiled_calls: Any) -> Any:
    """Compile ``function`` with the functions it calls by these names replaced by compiled ones."""
    assert isinstance(function, types.FunctionType)
    scope = {**function.__globals__, **compiled_calls}
    return compiled(types.FunctionType(function.__code__, scope, function.__name__, function.__defaults__))


step_of = compiled(acceptance_table.step_of)
next_rate = compiled(acceptance_rate.next_rate)
interpolate = compiled(cost_table.interpolate)
verify_curve = compiled(price_rule.verify_curve)
descending = compiled(price_rule.descending)
padded_tokens = compiled(price_rule.padded_tokens)
idle_requests = compiled(price_rule.idle_requests)
plan_lengths: Any = _bound(price_rule.plan_lengths, descending=descending, padded_tokens=padded_tokens)
new_history = compiled(observation.new_history)
gain_of = compiled(observation.gain_of)
update_history = compiled(observation.update_history)
plain_round_seconds: Any = _bound(observation.plain_round_seconds, interpolate=interpolate)
write_features: Any = _bound(
    observation.write_features, interpolate=interpolate, plain_round_seconds=plain_round_seconds, gain_of=gain_of
)
