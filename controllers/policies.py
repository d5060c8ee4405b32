"""What a learned controller decides with, as plain data: a decision tree and a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .action import (
    Action,
    Features,
    FixedPolicy,
    MissingFeatureError,
    Policy,
    checked_names,
    checked_tiers,
    factored_tiers,
)
from .observation import FEATURE_NAMES

__all__ = ["Action", "FixedPolicy", "MissingFeatureError", "MlpPolicy", "Policy", "TreePolicy", "factored_tiers"]

Float32Array = NDArray[np.float32]
MAX_NODES = 65536
MAX_WIDTH = 4096
MAX_WEIGHT = 1e6


class TreePolicy:
    """A decision tree: at node n, left where ``features[feature[n]] <= threshold[n]``, until a leaf names a tier."""

    def __init__(
        self,
        feature_names: Sequence[str],
        tiers: Sequence[Action],
        feature: Sequence[int],
        threshold: Sequence[float],
        left: Sequence[int],
        right: Sequence[int],
        tier: Sequence[int],
    ) -> None:
        """Nodes ``[N]``, the root first, children behind their parents: the layout of scikit-learn's trees.

        ``feature`` counts in ``feature_names``, -1 at leaves; ``threshold`` is in the feature's own unit; ``tier`` is
        read at leaves alone. Raises `ValueError` naming the node where this is no tree.
        """
        self.feature_names = checked_names(feature_names)
        self.tiers = checked_tiers(tiers)
        self.feature, self.left, self.right, self.tier = (
            [int(number) for number in column] for column in (feature, left, right, tier)
        )
        self.threshold = [float(number) for number in threshold]
        self._check()
        place = [FEATURE_NAMES.index(name) for name in self.feature_names]
        columns = zip(self.feature, self.threshold, self.left, self.right, strict=True)
        self._nodes = [(place[own] if own >= 0 else -1, at, low, high) for own, at, low, high in columns]
        self._action = [self.tiers[number] for number in self.tier]

    def _check(self) -> None:
        columns = (self.feature, self.threshold, self.left, self.right, self.tier)
        count = len(self.feature)
        sizes = [len(column) for column in (self.threshold, *columns[:1], *columns[2:])]
        if not 1 <= count <= MAX_NODES or any(size != count for size in sizes):
            raise ValueError(f"'feature' … 'tier' must have one length, 1 … {MAX_NODES}, got {sizes}")
        parents = [0] * count
        for node, (own, at, low, high, tier) in enumerate(zip(*columns, strict=True)):
            if not -1 <= own < len(self.feature_names):
                raise ValueError(f"'feature' of node {node} must be -1 … {len(self.feature_names) - 1}, got {own}")
            if not 0 <= tier < len(self.tiers):
                raise ValueError(f"'tier' of node {node} must be 0 … {len(self.tiers) - 1}, got {tier}")
            if not abs(at) < float("inf"):
                raise ValueError(f"'threshold' of node {node} must be a finite number, got {at!r:.40}")
            if own < 0:
                continue
            for name, child in (("left", low), ("right", high)):
                # Children behind their parents: no path can come back to where it was.
                if not node < child < count:
                    raise ValueError(f"'{name}' of node {node} must be {node + 1} … {count - 1}, got {child}")
                parents[child] += 1
        if any(number != 1 for number in parents[1:]):
            node = next(node for node in range(1, count) if parents[node] != 1)
            raise ValueError(f"node {node} must be the child of one node, it is that of {parents[node]}")

    def act(self, features: Features) -> Action:
        """See `Policy.act`. Raises `MissingFeatureError` where a feature on the way is NaN."""
        nodes, node = self._nodes, 0
        place, threshold, left, right = nodes[0]
        while place >= 0:
            value = features[place]
            if value <= threshold:
                node = left
            elif value > threshold:
                node = right
            else:
                raise MissingFeatureError(f"feature {FEATURE_NAMES[place]!r} is {value}; the backend must provide it")
            place, threshold, left, right = nodes[node]
        return self._action[node]

    def document(self) -> dict[str, Any]:
        """The arrays, fit for JSON."""
        columns = ("feature", "threshold", "left", "right", "tier")
        return {name: list(getattr(self, name)) for name in columns}

    def text(self) -> str:
        """The tree as indented lines that a person can read."""
        lines, stack = list[str](), [(0, 0, "")]
        while stack:
            node, depth, label = stack.pop()
            own = self.feature[node]
            if own < 0:
                lines.append(f"{'  ' * depth}{label}{self.tiers[self.tier[node]]}")
                continue
            lines.append(f"{'  ' * depth}{label}{self.feature_names[own]} <= {self.threshold[node]:.6g}?")
            stack += [(self.right[node], depth + 1, "no: "), (self.left[node], depth + 1, "yes: ")]
        return "\n".join(lines) + "\n"


class MlpPolicy:
    """Layers of tanh over normalised features; each head's highest output names one part of the tier."""

    def __init__(
        self,
        feature_names: Sequence[str],
        tiers: Sequence[Action],
        heads: Sequence[int],
        mean: ArrayLike,
        scale: ArrayLike,
        clip: float,
        layers: Sequence[tuple[ArrayLike, ArrayLike]],
    ) -> None:
        """The input is ``clip((features - mean) / scale, -clip, clip)``, ``[F]`` each.

        ``layers``: weight ``[out, in]`` and bias ``[out]``; the last has one output for each choice of each head.
        ``heads``: choices of each head; ``tiers`` lists their products, the last head's choices next to each other:
        a policy over MultiDiscrete([lengths, prices]) is ``heads = (lengths, prices)`` with a tier for every pair
        (`factored_tiers`). Raises `ValueError` for shapes that do not fit and numbers that are not finite.
        """
        self.feature_names = checked_names(feature_names)
        self.tiers = checked_tiers(tiers)
        self.heads = tuple(int(size) for size in heads)
        if not self.heads or min(self.heads) < 1 or int(np.prod(self.heads, dtype=object)) != len(self.tiers):
            raise ValueError(f"'heads' {list(self.heads)[:8]} must multiply to the number of tiers, {len(self.tiers)}")
        count = len(self.feature_names)
        self.mean, self.scale = _array("mean", mean, (count,)), _array("scale", scale, (count,))
        if not (self.scale > 0).all():
            raise ValueError("'scale' must be positive")
        if not 0 < clip <= MAX_WEIGHT:
            raise ValueError(f"'clip' must be positive and at most {MAX_WEIGHT:g}, got {clip!r:.40}")
        self.clip = float(clip)
        self.layers = _checked_layers(layers, count, sum(self.heads))
        self._places = np.asarray([FEATURE_NAMES.index(name) for name in self.feature_names], dtype=np.int64)
        self._listed: list[int] = self._places.tolist()

    def outputs(self, features: Features) -> Float32Array:
        """``[sum(heads)]`` outputs of the last layer. Raises `MissingFeatureError` where a feature is not finite."""
        if isinstance(features, np.ndarray):
            values = features[self._places].astype(np.float32)
        else:
            values = np.asarray([features[place] for place in self._listed], dtype=np.float32)
        values -= self.mean
        values /= self.scale
        np.maximum(values, -self.clip, out=values)
        np.minimum(values, self.clip, out=values)
        hidden = values
        for weight, bias in self.layers[:-1]:
            hidden = np.tanh(weight.dot(hidden) + bias)
        weight, bias = self.layers[-1]
        found: Float32Array = weight.dot(hidden) + bias
        total = found.sum()
        if total != total:
            self._complain(features)
        return found

    def _complain(self, features: Features) -> None:
        for name, place in zip(self.feature_names, self._listed, strict=True):
            if features[place] != features[place]:
                raise MissingFeatureError(f"feature {name!r} is NaN; the backend must provide it")

    def act(self, features: Features) -> Action:
        """See `Policy.act`."""
        scores, start, tier = self.outputs(features), 0, 0
        for size in self.heads:
            tier = tier * size + int(scores[start : start + size].argmax())
            start += size
        return self.tiers[tier]

    def document(self) -> dict[str, Any]:
        """All but the layers' weights, fit for JSON."""
        return {
            "heads": list(self.heads),
            "mean": self.mean.tolist(),
            "scale": self.scale.tolist(),
            "clip": self.clip,
            "layers": [len(bias) for _, bias in self.layers],
        }

    def arrays(self) -> dict[str, Float32Array]:
        """The layers' weights by name: ``layer_0.weight`` ``[out, in]``, ``layer_0.bias`` ``[out]``, …"""
        named = dict[str, Float32Array]()
        for number, (weight, bias) in enumerate(self.layers):
            named |= {f"layer_{number}.weight": weight, f"layer_{number}.bias": bias}
        return named


def _checked_layers(
    layers: Sequence[tuple[ArrayLike, ArrayLike]], inputs: int, outputs: int
) -> list[tuple[Float32Array, Float32Array]]:
    if not 1 <= len(layers) <= 16:
        raise ValueError(f"'layers' must be 1 … 16, got {len(layers)}")
    checked, size = [], inputs
    for number, (weight, bias) in enumerate(layers):
        width = np.size(bias) if number < len(layers) - 1 else outputs
        if not 1 <= width <= MAX_WIDTH:
            raise ValueError(f"layer {number} must have 1 … {MAX_WIDTH} outputs, got {width}")
        own = _array(f"layer_{number}.weight", weight, (width, size)), _array(f"layer_{number}.bias", bias, (width,))
        checked.append(own)
        size = width
    return checked


def _array(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Float32Array:
    array = np.array(values, dtype=np.float32, order="C")
    if array.shape != shape:
        raise ValueError(f"{name!r} must have shape {list(shape)}, got {list(array.shape)}")
    if not (np.abs(array) <= MAX_WEIGHT).all():
        raise ValueError(f"{name!r} must hold finite numbers within ±{MAX_WEIGHT:g}")
    return array
