"""The acceptance predictor: from the drafter's confidence, how likely the target is to keep a token."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .acceptance_history import HISTORY_DEPTHS, HISTORY_INPUTS, HistoryLogistics
from .acceptance_table import AcceptanceTable
from .controller import LEVEL_FEATURES

FORMAT = "specpilot acceptance predictor"
SCHEMA_VERSION = 3
LEVEL_INPUTS = (
    *LEVEL_FEATURES,
    "temperature",
    "depth",
    "log_top1_probability",
    "log_rest_probability",
    "log_margin",
    "log_agreement",
    "log_temperature",
    "log_depth",
)
"""What the network sees of a drafted token; see `level_inputs`."""
MAX_HIDDEN = 1024
MAX_WEIGHT = 1e6
Float32Array = NDArray[np.float32]

_RAW = 6
_ONE = _RAW  # The row of ones, between the raw inputs and their logarithms; it carries the biases.
_LOWEST_TOP1, _MAX_MARGIN = 1e-5, 40.0
_LOW = np.asarray([[_LOWEST_TOP1], [0], [0], [-1], [0], [1], [1]], dtype=np.float32)
_HIGH = np.asarray([[1 - _LOWEST_TOP1], [np.inf], [_MAX_MARGIN], [1], [np.inf], [np.inf], [1]], dtype=np.float32)
_LOG = np.asarray(
    [
        [1, 0, 0, 0, 0, 0, 0],
        [-1, 0, 0, 0, 0, 0, 1],
        [0, 0, 1, 0, 0, 0, 1],
        [0, 0, 0, 1, 0, 0, 2],
        [0, 0, 0, 0, 1, 0, 0.01],
        [0, 0, 0, 0, 0, 1, 0],
    ],
    dtype=np.float32,
)
FEATURE_OF_INPUT = (0, 1, 2, 3, None, None, 0, 0, 2, 3, None, None)
"""Which of `LEVEL_FEATURES` each of `LEVEL_INPUTS` is made of."""


def level_inputs(confidence: ArrayLike, temperature: ArrayLike, depth: ArrayLike) -> Float32Array:
    """``[N, 12]`` inputs (`LEVEL_INPUTS`) from ``confidence`` ``[N, 4]`` (`LEVEL_FEATURES`) and what broadcasts to N.

    Six numbers: the best token's probability p, clipped to 1e-5 from 0 and 1, the entropy in nats, the margin, clipped
    to 40, agreement, the temperature T and the depth. Then six logarithms: of p, 1 - p, 1 + margin, 2 + agreement (with
    agreement itself as good as one indicator for each of its values), T + 0.01 and depth.
    """
    rows = _input_rows(np.asarray(confidence), temperature, depth)
    return np.delete(rows, _ONE, axis=0).T


def _input_rows(told: NDArray[Any], temperature: ArrayLike, depth: ArrayLike) -> Float32Array:
    """``[13, N]``: the inputs with the row of ones. Rows, because NumPy is quickest along the last axis."""
    rows = np.empty((2 * _RAW + 1, len(told)), dtype=np.float32)
    rows[:4] = told.T
    rows[4] = temperature
    rows[5] = depth
    rows[_ONE] = 1.0
    raw = rows[: _ONE + 1]
    np.maximum(raw, _LOW, out=raw)
    np.minimum(raw, _HIGH, out=raw)
    np.log(_LOG.dot(raw), out=rows[_ONE + 1 :])
    return rows


def _input_rows_of_one(told: list[float], temperature: float, depth: float) -> Float32Array:
    """`_input_rows` ``[13]`` of one token, where calls of NumPy would take longer than the numbers."""
    top1, entropy, margin, agreement = told
    if not _LOWEST_TOP1 <= top1 <= 1 - _LOWEST_TOP1:
        top1 = _LOWEST_TOP1 if top1 < 0.5 else 1 - _LOWEST_TOP1
    if not 0 <= margin <= _MAX_MARGIN:
        margin = 0.0 if margin < 0 else _MAX_MARGIN
    log = math.log
    raw = (top1, entropy, margin, agreement, temperature, depth, 1.0)
    logs = (log(top1), log(1 - top1), log(1 + margin), log(2 + agreement), log(temperature + 0.01), log(depth))
    return np.asarray(raw + logs, dtype=np.float32)


def _sigmoid_of_double(half: Float32Array) -> Float32Array:
    """sigmoid(2 · half), in a form that cannot overflow. Overwrites ``half``."""
    np.tanh(half, out=half)
    half *= np.float32(0.5)
    half += np.float32(0.5)
    return half


_SHAPES = {
    "hidden_weight": (len(LEVEL_INPUTS), None),
    "hidden_bias": (None,),
    "output_weight": (None, 2),
    "output_bias": (2,),
    "history_weight": (HISTORY_DEPTHS, len(HISTORY_INPUTS)),
    "history_bias": (HISTORY_DEPTHS,),
    "carry": (1,),
}
"""Arrays of a predictor; None is the hidden size H, the same everywhere."""


class AcceptancePredictor:
    """One hidden layer of H tanh and two outputs for drafted tokens; `HistoryLogistics` for those not yet drafted.

    All methods take arrays of any common leading shape, so that a whole recording is evaluated in one call.
    """

    def __init__(self, weights: Mapping[str, ArrayLike]) -> None:
        """``weights``: hidden_weight ``[12, H]``, hidden_bias ``[H]``, output_weight ``[H, 2]``, output_bias ``[2]``,
        history_weight ``[8, 5]``, history_bias ``[8]``, carry ``[1]``. Raises `ValueError` where a shape or a number
        is impossible."""
        arrays = _checked(weights)
        self._arrays = arrays
        hidden = arrays["hidden_bias"].size
        # Biases ride on the row of ones, and past the hidden layer on a unit that is tanh(20) = 1.
        into_hidden = np.zeros((hidden + 1, len(LEVEL_INPUTS) + 1), dtype=np.float32)
        into_hidden[:hidden] = np.insert(arrays["hidden_weight"], _ONE, arrays["hidden_bias"], axis=0).T
        into_hidden[hidden, _ONE] = 20.0
        self._into_hidden = into_hidden
        output = np.concatenate([arrays["output_weight"], arrays["output_bias"][None]])
        self._into_output = np.ascontiguousarray(output.T / 2)
        self.history = HistoryLogistics(arrays["history_weight"], arrays["history_bias"])
        """The chances of drafts before they are drafted."""
        self.carry = float(arrays["carry"][0])
        """What a level says of the next one beyond the request's history counts for those behind it too, in log odds,
        each time by this factor less: 0 (nothing) … 1."""
        read = [bool(row.any()) for row in arrays["hidden_weight"]]
        reads = [any(read[index] for index, of in enumerate(FEATURE_OF_INPUT) if of == own) for own in range(4)]
        self._features = tuple(name for name, reading in zip(LEVEL_FEATURES, reads, strict=True) if reading)
        self._unread = [number for number, reading in enumerate(reads) if not reading]
        self.reads_margin, self.reads_agreement = "margin" in self._features, "agreement" in self._features
        quick = self._features and set(self._features) <= {"margin", "agreement"}
        self.table = AcceptanceTable(self._level_of_many) if quick else None
        """What `level` looks up; None where the network is asked."""

    @classmethod
    def uninformed(cls, rate: float) -> AcceptancePredictor:
        """The same chance for every token, for recordings without confidence.

        Raises `ValueError` unless 0 < rate < 1.
        """
        if not 0 < rate < 1:
            raise ValueError(f"rate must lie between 0 and 1, got {rate}")
        odds = float(np.clip(np.log(rate / (1 - rate)), -30, 30))
        return cls(
            {
                "hidden_weight": np.zeros((len(LEVEL_INPUTS), 1)),
                "hidden_bias": [0.0],
                "output_weight": [[0.0, 0.0]],
                "output_bias": [odds, odds],
                "history_weight": np.zeros((HISTORY_DEPTHS, len(HISTORY_INPUTS))),
                "history_bias": np.full(HISTORY_DEPTHS, odds),
                "carry": [0.0],
            }
        )

    @property
    def weights(self) -> dict[str, Float32Array]:
        """Copies of what it was made of."""
        return {name: array.copy() for name, array in self._arrays.items()}

    @property
    def level_features(self) -> tuple[str, ...]:
        """Those of `LEVEL_FEATURES` that `level` reads; the others may be NaN."""
        return self._features

    def level(
        self, confidence: ArrayLike, temperature: ArrayLike, depth: ArrayLike
    ) -> tuple[Float32Array, Float32Array]:
        """Chances ``[...]`` of a drafted token and of its successor, given that all before it are accepted.

        ``confidence`` ``[..., 4]`` in the order of `LEVEL_FEATURES`; ``temperature`` and ``depth`` (1 for the first
        token) broadcast to ``[...]``. Returns the chance that the token is accepted, and the chance that the next one,
        which is not drafted yet, will be if this one is. A predictor that reads nothing but margin and agreement looks
        them up in its `AcceptanceTable`, in steps.
        """
        told = np.asarray(confidence)
        if self._unread:
            told = told.copy()
            told[..., self._unread] = 0.0
        if self.table is not None:
            return self._looked_up(self.table, told, np.asarray(temperature, dtype=np.float64), depth)
        if told.shape == (1, 4):
            return self._level_of_one(told[0].tolist(), np.asarray(temperature).item(), np.asarray(depth).item())
        shape = told.shape[:-1]
        if len(shape) != 1:
            told = told.reshape(-1, 4)
            temperature, depth = (np.broadcast_to(value, shape).reshape(-1) for value in (temperature, depth))
        chances = self._level_of_many(told, temperature, depth)
        if len(shape) != 1:
            return chances[0].reshape(shape), chances[1].reshape(shape)
        return chances

    @staticmethod
    def _looked_up(
        table: AcceptanceTable, told: NDArray[Any], temperature: NDArray[np.float64], depth: ArrayLike
    ) -> tuple[Float32Array, Float32Array]:
        distinct, inverse = np.unique(temperature, return_inverse=True)
        rows = table.rows(distinct)[inverse].reshape(temperature.shape)
        chances = table.level(rows, told[..., 2], told[..., 3], depth)
        shape = told.shape[:-1]
        return np.broadcast_to(chances[0], shape), np.broadcast_to(chances[1], shape)

    def _level_of_many(
        self, told: NDArray[Any], temperature: ArrayLike, depth: ArrayLike
    ) -> tuple[Float32Array, Float32Array]:
        """The network, for ``told`` ``[N, 4]``."""
        hidden = self._into_hidden.dot(_input_rows(told, temperature, depth))
        np.tanh(hidden, out=hidden)
        chances = _sigmoid_of_double(self._into_output.dot(hidden))
        return chances[0], chances[1]

    def _level_of_one(self, told: list[float], temperature: float, depth: float) -> tuple[Float32Array, Float32Array]:
        hidden = self._into_hidden.dot(_input_rows_of_one(told, temperature, depth))
        np.tanh(hidden, out=hidden)
        scores: list[float] = self._into_output.dot(hidden).tolist()
        chances = np.asarray([[0.5 + 0.5 * math.tanh(score)] for score in scores], dtype=np.float32)
        return chances[0], chances[1]

    def document(self) -> dict[str, Any]:
        """What `parse` reads, fit for JSON."""
        return {
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "level_features": list(LEVEL_FEATURES),
            "level_inputs": list(LEVEL_INPUTS),
            "history_inputs": list(HISTORY_INPUTS),
            **{name: array.astype(np.float64).tolist() for name, array in self._arrays.items()},
        }

    @classmethod
    def parse(cls, document: Any) -> AcceptancePredictor:
        """Read what `document` gave. Raises `ValueError` with one line that names what is wrong."""
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"'format' is not {FORMAT!r}; fit a predictor with train/predictor.py")
        if type(document.get("schema_version")) is not int or document["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"'schema_version' is {document.get('schema_version')!r:.40}, this is {SCHEMA_VERSION}")
        names = {"level_features": LEVEL_FEATURES, "level_inputs": LEVEL_INPUTS, "history_inputs": HISTORY_INPUTS}
        for name, expected in names.items():
            if document.get(name) != list(expected):
                raise ValueError(f"{name!r} must be {list(expected)}, got {document.get(name)!r:.80}")
        weights = {}
        for name in _SHAPES:
            if name not in document:
                raise ValueError(f"lacks {name!r}; fit a predictor with train/predictor.py")
            weights[name] = _numbers(name, document[name])
        return cls(weights)


def _numbers(name: str, value: Any) -> list[Any]:
    """``value`` if it is a list of numbers or of such lists; NumPy would take strings and truth values too."""
    if not isinstance(value, list):
        raise ValueError(f"{name!r} must be a list of numbers, got {value!r:.40}")
    for row in value:
        for number in row if isinstance(row, list) else [row]:
            if type(number) not in (int, float) or abs(number) > MAX_WEIGHT or number != number:
                raise ValueError(f"{name!r} must hold numbers within ±{MAX_WEIGHT:g}, got {number!r:.40}")
    return value


def _checked(weights: Mapping[str, ArrayLike]) -> dict[str, Float32Array]:
    arrays = {}
    for name in _SHAPES:
        try:
            arrays[name] = np.ascontiguousarray(weights[name], dtype=np.float32)
        except KeyError:
            raise ValueError(f"lacks {name!r}; fit a predictor with train/predictor.py") from None
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"{name!r} must be an array of numbers with rows of one length") from None
    hidden = arrays["hidden_bias"].size
    if not 1 <= hidden <= MAX_HIDDEN:
        raise ValueError(f"'hidden_bias' must have 1 … {MAX_HIDDEN} numbers, got {hidden}")
    for name, sizes in _SHAPES.items():
        shape = tuple(hidden if size is None else size for size in sizes)
        if arrays[name].shape != shape:
            raise ValueError(f"{name!r} must have shape {list(shape)}, got {list(arrays[name].shape)}")
        if not (np.abs(arrays[name]) <= MAX_WEIGHT).all():
            raise ValueError(f"{name!r} must hold finite numbers within ±{MAX_WEIGHT:g}")
    if not 0 <= arrays["carry"][0] <= 1:
        raise ValueError(f"'carry' must be 0 … 1, got {arrays['carry'][0]}")
    return arrays
