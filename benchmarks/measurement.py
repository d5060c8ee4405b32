"""How things are measured: interleaved arms, paired ratios, and the state of the machine they ran on."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Prompt:
    """One evaluation prompt."""

    index: int
    """Number in the file; also seeds the request, so that every arm samples with the same noise."""
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One arm on one group of prompts."""

    seconds: float
    """Wall time, prefill included."""
    outputs: list[list[int]]
    """Generated tokens per prompt."""


Arm = Callable[[Sequence[Prompt]], Run]


class Prompts:
    """The evaluation prompts in a seeded order, handed out so that every repeat sees others (round and round)."""

    def __init__(self, path: Path, seed: int) -> None:
        """Read ``path``; raises ``ValueError`` that says what is wrong with it."""
        try:
            entries = json.loads(path.read_text())["prompts"]
            prompts = [Prompt(index, tuple(entry["token_ids"])) for index, entry in enumerate(entries)]
        except FileNotFoundError:
            raise ValueError(f"{path}: no such prompt file; name another with `prompts:` in the config") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f'{path}: expected {{"prompts": [{{"token_ids": [...]}}]}} ({error!r})') from None
        if not prompts:
            raise ValueError(f"{path}: holds no prompts")
        # Neighbours in the file come from one source file; shuffled, a repeat covers several.
        self._prompts = [prompts[index] for index in np.random.default_rng(seed).permutation(len(prompts))]

    def take(self, repeat: int, count: int) -> list[Prompt]:
        """Prompts of one repeat."""
        return [self._prompts[(repeat * count + index) % len(self._prompts)] for index in range(count)]

    def groups(self, repeat: int, requests: int, batch: int) -> list[list[Prompt]]:
        """Prompts of one repeat in full batches: at least one, and at least ``requests`` prompts."""
        count = -(-max(requests, batch) // batch) * batch
        taken = self.take(repeat, count)
        return [taken[start : start + batch] for start in range(0, count, batch)]


def interleave(arms: Mapping[str, Arm], groups: Sequence[Sequence[Prompt]], shift: int = 0) -> dict[str, Run]:
    """Run every arm on every group, group by group, and add up each arm's seconds.

    A disturbance of the machine then hits all arms alike. The first arm rotates, so that none is always the one that
    finds another arm's data in the caches.
    """
    names = list(arms)
    seconds = dict.fromkeys(names, 0.0)
    outputs: dict[str, list[list[int]]] = {name: [] for name in names}
    for number, group in enumerate(groups):
        first = (number + shift) % len(names)
        for name in names[first:] + names[:first]:
            run = arms[name](group)
            seconds[name] += run.seconds
            outputs[name].extend(run.outputs)
    return {name: Run(seconds[name], outputs[name]) for name in names}


def spread(samples: Sequence[float]) -> dict[str, Any]:
    """Median, min and max of ``samples``, and the samples themselves."""
    values = [float(value) for value in samples]
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "samples": values}


def speed_ratio(arm_seconds: Sequence[float], base_seconds: Sequence[float]) -> dict[str, Any]:
    """How many times faster ``arm`` is than ``base`` on the same tokens, pair by pair (dimensionless)."""
    return spread([base / arm for arm, base in zip(arm_seconds, base_seconds, strict=True)])


def differing(outputs: Sequence[Sequence[int]], reference: Sequence[Sequence[int]]) -> list[int]:
    """Indices of the requests whose tokens differ."""
    return [index for index, (a, b) in enumerate(zip(outputs, reference, strict=True)) if list(a) != list(b)]


def machine_state() -> dict[str, Any]:
    """What a timing depends on beyond the record of the run."""
    return {
        "torch_threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "system": platform.platform(),
        "load_average_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }


def peak_memory_megabytes() -> float:
    """Peak resident memory of this process in MB (10^6 bytes).

    Linux keeps ``ru_maxrss`` across exec, so that a child reports at least what its parent had when it was started;
    ``VmHWM`` is the process's own.
    """
    try:
        status = Path("/proc/self/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError):
        import resource

        unit = 1 if platform.system() == "Darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
