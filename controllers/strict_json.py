"""JSON from an untrusted file: bounded in size, no duplicated keys, no NaN, and every field checked by its name."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 64 * 2**20


class FieldError(ValueError):
    """A value is not what it must be; the message names the field, without the file."""


def read_bounded(path: Path) -> bytes:
    """The file's bytes. Raises `FieldError` where it is no regular file, too large or cannot be read."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise FieldError("is not a regular file")
        if status.st_size > MAX_BYTES:
            raise FieldError(f"has {status.st_size} bytes, at most {MAX_BYTES} are read")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, FieldError):
            raise
        raise FieldError(f"cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if len(data) > MAX_BYTES:
        raise FieldError(f"has more than {MAX_BYTES} bytes")
    return data


def parse_object(data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `FieldError`."""
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except FieldError:
        raise
    except RecursionError:
        raise FieldError("is nested too deeply") from None
    except ValueError:  # undecodable bytes, bad JSON, integers of thousands of digits
        raise FieldError("is not JSON") from None
    if not isinstance(document, dict):
        raise FieldError("is not a JSON object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise FieldError(f"{twice!r:.60} is given twice")
    return found


def _refuse_constant(name: str) -> float:
    raise FieldError(f"holds {name}, which is not a number")


def only(document: dict[str, Any], names: tuple[str, ...], where: str = "") -> None:
    """Raise `FieldError` where ``document`` lacks one of ``names`` or has others."""
    for name in names:
        if name not in document:
            raise FieldError(f"lacks {where + name!r}")
    for name in document:
        if name not in names:
            raise FieldError(f"has an unknown field {where + name!r:.80}")


def integer(value: Any, name: str, low: int, high: int) -> int:
    """``value`` if it is an integer from ``low`` to ``high``."""
    if type(value) is not int or not low <= value <= high:
        raise FieldError(f"{name!r} must be an integer from {low} to {high}, got {value!r:.40}")
    return value


def number(value: Any, name: str, low: float = -1e30, high: float = 1e30) -> float:
    """``value`` as a float, if it is a number from ``low`` to ``high``."""
    if type(value) not in (int, float) or not low <= value <= high or math.isnan(value):
        raise FieldError(f"{name!r} must be a number from {low:g} to {high:g}, got {value!r:.40}")
    return float(value)


def text(value: Any, name: str, longest: int = 1000) -> str:
    """``value`` if it is a string of at most ``longest`` characters."""
    if not isinstance(value, str) or len(value) > longest:
        raise FieldError(f"{name!r} must be a string of at most {longest} characters, got {value!r:.40}")
    return value


def array(value: Any, name: str, longest: int) -> list[Any]:
    """``value`` if it is a list of at most ``longest`` entries."""
    if not isinstance(value, list) or len(value) > longest:
        raise FieldError(f"{name!r} must be a list of at most {longest} entries, got {value!r:.40}")
    return value


def mapping(value: Any, name: str) -> dict[str, Any]:
    """``value`` if it is an object."""
    if not isinstance(value, dict):
        raise FieldError(f"{name!r} must be an object, got {value!r:.40}")
    return value


def integers(value: Any, name: str, low: int, high: int, longest: int) -> list[int]:
    """``value`` if it is a list of integers from ``low`` to ``high``."""
    own = array(value, name, longest)
    return [integer(entry, f"{name}[{place}]", low, high) for place, entry in enumerate(own)]


def numbers(value: Any, name: str, longest: int) -> list[float]:
    """``value`` as floats, if it is a list of finite numbers."""
    return [number(entry, f"{name}[{place}]") for place, entry in enumerate(array(value, name, longest))]
