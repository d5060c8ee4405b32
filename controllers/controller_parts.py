"""The parts of a controller file, read field by field: cost surface, features, tiers, policy, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .action import MAX_LENGTH, MAX_PRICE, MAX_TIERS, Action, FixedPolicy, Policy
from .cost_surface import CostSurface
from .observation import FEATURE_NAMES, FEATURES
from .policies import MAX_NODES, MAX_WIDTH, MlpPolicy, TreePolicy
from .strict_json import FieldError, array, integer, integers, mapping, number, numbers, only, read_bounded, text

WEIGHTS = "weights.safetensors"
_TREE = ("feature", "threshold", "left", "right", "tier")


def read_surface(document: Any) -> CostSurface:
    """The cost surface that the controller was made for, with seconds that arithmetic can bear."""
    try:
        surface = CostSurface._parse(mapping(document, "cost_surface"))
    except FieldError:
        raise
    except ValueError as error:
        raise FieldError(f"'cost_surface': {error}") from None
    for kind, costs in surface.costs.items():
        if not (costs.fitted.min() >= 1e-9 and costs.fitted.max() <= 1e6):
            raise FieldError(f"'cost_surface': seconds of {kind!r} passes must be from 1e-9 to 1e6")
    overhead = surface.overhead.document()
    for name, value in overhead.items():
        low = 1e-6 if name.endswith("_factor") else 0.0
        number(value, f"cost_surface.overhead.{name}", low, 1e6)
    return surface


def read_feature_names(document: Any) -> list[str]:
    """Names of the features that the policy reads; each must exist here, in the same unit."""
    units, names = {feature.name: feature.unit for feature in FEATURES}, []
    for place, entry in enumerate(array(document, "features", len(FEATURES))):
        where = f"features[{place}]"
        only(mapping(entry, where), ("name", "unit", "low", "high"), f"{where}.")
        name = text(entry["name"], f"{where}.name")
        if name not in FEATURE_NAMES:
            raise FieldError(f"the controller reads the feature {name!r:.80}, which this version does not provide")
        if entry["unit"] != units[name]:
            raise FieldError(f"the feature {name!r} is in {entry['unit']!r:.40}, here it is in {units[name]!r}")
        if number(entry["low"], f"{where}.low") > number(entry["high"], f"{where}.high"):
            raise FieldError(f"'{where}.low' must not be above '{where}.high'")
        names.append(name)
    return names


def read_tiers(document: Any) -> list[Action]:
    """The actions to choose from."""
    tiers = []
    for place, entry in enumerate(array(document, "tiers", MAX_TIERS)):
        where = f"tiers[{place}]"
        only(mapping(entry, where), Action._fields, f"{where}.")
        length = integer(entry["max_length"], f"{where}.max_length", 0, MAX_LENGTH)
        price = number(entry["price"], f"{where}.price", 0.0, MAX_PRICE)
        tiers.append(Action(length, price, integer(entry["looks"], f"{where}.looks", 0, MAX_LENGTH)))
    return tiers


def read_policy(kind: str, names: list[str], tiers: list[Action], own: dict[str, Any], file: Path) -> Policy:
    """The policy of ``kind``; the weights of an MLP lie beside ``file``."""
    if kind == "fixed":
        only(own, (), "policy.")
        if len(tiers) != 1 or names:
            raise FieldError(f"a fixed controller has one tier and no features, got {len(tiers)} and {len(names)}")
        return FixedPolicy(tiers[0])
    if kind == "tree":
        only(own, _TREE, "policy.")
        whole = {
            name: integers(own[name], f"policy.{name}", -MAX_NODES, MAX_NODES, MAX_NODES)
            for name in _TREE
            if name != "threshold"
        }
        return TreePolicy(names, tiers, threshold=numbers(own["threshold"], "policy.threshold", MAX_NODES), **whole)
    only(own, ("heads", "mean", "scale", "clip", "layers"), "policy.")
    heads = integers(own["heads"], "policy.heads", 1, MAX_TIERS, 8)
    sizes = integers(own["layers"], "policy.layers", 1, MAX_WIDTH, 16)
    mean, scale = (numbers(own[name], f"policy.{name}", len(FEATURES)) for name in ("mean", "scale"))
    clip = number(own["clip"], "policy.clip", 1e-6, 1e6)
    return MlpPolicy(names, tiers, heads, mean, scale, clip, _weights(file.with_name(WEIGHTS), sizes))


def _weights(file: Path, sizes: list[int]) -> list[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Weight and bias of each layer; their shapes are `MlpPolicy`'s to check."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        arrays = load(read_bounded(file))
    except FieldError as error:
        raise FieldError(f"{WEIGHTS!r} {error}") from None
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, MemoryError):
        raise FieldError(f"{WEIGHTS!r} is not a whole safetensors file") from None
    wanted = [(f"layer_{number}.weight", f"layer_{number}.bias") for number in range(len(sizes))]
    if set(arrays) != {name for names in wanted for name in names}:
        raise FieldError(f"{WEIGHTS!r} must hold weight and bias of {len(sizes)} layers, got {sorted(arrays)!r:.80}")
    for name, values in arrays.items():
        if values.dtype != np.float32:
            raise FieldError(f"{name!r} in {WEIGHTS!r} must be float32, got {values.dtype}")
    for size, (_, bias) in zip(sizes, wanted, strict=True):
        if arrays[bias].shape != (size,):
            raise FieldError(f"{bias!r} in {WEIGHTS!r} must have shape [{size}], got {list(arrays[bias].shape)}")
    return [(arrays[weight], arrays[bias]) for weight, bias in wanted]
