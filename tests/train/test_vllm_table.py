"""The table that vLLM takes without the plugin: printed by train/distill.py, understood and followed by vLLM."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specpilot.train import distill
from specpilot.train.vllm_table import KEY, TABLE, read_rows, speculative_config, vllm_rows

ROWS = [[1, 2, 4], [3, 4, 2], [5, 4096, 0]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with what the printing reads."""
    (tmp_path / "students").mkdir()
    (tmp_path / "students" / TABLE).write_text(json.dumps({KEY: ROWS}))
    (tmp_path / "results.json").write_text(json.dumps({"config": {"drafter": "some/drafter"}}))
    return tmp_path


def test_one_line_of_json_is_printed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert distill.main(["--run", str(run), "--student", "table"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"method": "draft_model", "model": "some/drafter", "num_speculative_tokens": 4, KEY: ROWS}


def test_a_table_that_is_always_off_still_names_a_length_that_vllm_accepts() -> None:
    assert speculative_config([[1, 4096, 0]], "d")["num_speculative_tokens"] == 1


def test_an_open_last_row_is_closed() -> None:
    assert vllm_rows([(1, 3, 2), (4, None, 1)]) == [[1, 3, 2], [4, 4096, 1]]


@pytest.mark.parametrize("rows", [[], [[2, 3, 1]], [[1, 2]], "rows", [[1, 2, 3], [4, 5, 6]]])
def test_a_faulty_file_is_refused_by_name(rows: Any, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "students" / TABLE).write_text(json.dumps({KEY: rows}))
    with pytest.raises(ValueError, match=TABLE):
        read_rows(run / "students")
    assert distill.main(["--run", str(run), "--student", "table"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


_SERVED = """
import json, sys
from vllm import LLM, SamplingParams

directory, config, prompts = json.load(sys.stdin)
engine = {"max_num_seqs": 8, "max_model_len": 512, "dtype": "float32", "enforce_eager": True}
llm = LLM(f"{directory}/target", speculative_config=config, **engine)
scheduler, told = llm.llm_engine.engine_core.engine_core.scheduler, []
stock = scheduler.schedule

def schedule(*given, **named):
    output = stock(*given, **named)
    told.append((len(output.num_scheduled_tokens), output.num_spec_tokens_to_schedule))
    return output

scheduler.schedule = schedule
params = [SamplingParams(temperature=0, max_tokens=4 + 8 * n, ignore_eos=True) for n in range(len(prompts))]
llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
print(json.dumps([step for step in told if step[0]]))
"""


def test_vllm_takes_it_and_follows_it(run: Path, pair_directory: Path, evaluation_prompts: list[list[int]]) -> None:
    pytest.importorskip("vllm")
    config = distill.vllm_config(run, distill.DistillationConfig()) | {"model": str(pair_directory / "drafter")}
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "OMP_NUM_THREADS": "1"}
    # In a process of its own: vLLM's CPU engine does not start where numba is loaded, as training does.
    served = subprocess.run(
        [sys.executable, "-c", _SERVED],
        input=json.dumps([str(pair_directory), config, evaluation_prompts[:7]]),
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert served.returncode == 0, served.stderr[-2000:]
    seen = dict(json.loads(served.stdout.splitlines()[-1]))
    assert seen[7] == 0 and seen[3] == 2 and seen[2] == 4
