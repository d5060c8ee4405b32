"""The way into vLLM without a plugin: a distilled table as vLLM's own ``--speculative-config``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specpilot.controllers.length_table import Row, check_table

TABLE = "vllm_table.json"
"""In a run's folder of students."""
KEY = "num_speculative_tokens_per_batch_size"
MAX_BATCH = 4096
"""Upper end of the last row; vLLM's rows must be closed, and it carries the last one on."""


def vllm_rows(table: Sequence[Row]) -> list[list[int]]:
    """Rows as vLLM wants them: closed, lists of three integers."""
    return [[low, high if high is not None else MAX_BATCH, length] for low, high, length in table]


def read_rows(students: Path) -> list[list[int]]:
    """Rows that ``train/distill.py`` wrote into ``students``. Raises `ValueError` for a file that has none."""
    path = students / TABLE
    document = json.loads(path.read_text())
    rows = document.get(KEY) if isinstance(document, dict) else None
    try:
        table = [(low, high, length) for low, high, length in rows or ()]
        check_table(table)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}; distil again") from None
    return vllm_rows(table)


def speculative_config(rows: Sequence[Sequence[int]], drafter: str) -> dict[str, Any]:
    """What vLLM's ``--speculative-config`` takes. ``drafter``: the draft model's directory or name."""
    return {
        "method": "draft_model",
        "model": drafter,
        "num_speculative_tokens": max(1, *(length for _, _, length in rows)),
        KEY: [list(row) for row in rows],
    }
