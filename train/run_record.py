"""What made a result: configuration, seed, versions, hardware and git revision, written beside the outputs."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from specpilot.engine.profiler import cpu_name

PACKAGES = ("specpilot", "torch", "transformers", "tokenizers", "numpy", "safetensors")


def run_record(config: Any, **extra: Any) -> dict[str, Any]:
    """Describe a run; ``config`` is a dataclass, ``extra`` is added as it is."""
    return {
        "config": dataclasses.asdict(config),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_revision": git_revision(),
        "hardware": hardware(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
        **extra,
    }


def hardware() -> str:
    """Processor, cores and accelerator in words."""
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu_name()}, {os.cpu_count()} cores{accelerator}"


def git_revision() -> str:
    """Current commit, marked ``-dirty`` where the tree differs from it; ``unknown`` outside a checkout."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return described.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name, then rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(temporary, path)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"
