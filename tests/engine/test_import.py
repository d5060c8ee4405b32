"""Importing the engine loads no compiler: vLLM, whose plugin imports it, cannot start in a process that has."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["specpilot.engine", "specpilot.engine.vllm.settings"])
def test_importing_the_engine_loads_no_compiler(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('numba', 'llvmlite') if name in sys.modules])"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
