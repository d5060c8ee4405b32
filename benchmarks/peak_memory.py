"""Peak memory of an engine: a fresh process loads the pair, serves one batch and says what it took at most."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .measurement import Prompt, Prompts, peak_memory_megabytes


def measure(
    directories: dict[str, str],
    prompts: Sequence[Prompt],
    length: int,
    new_tokens: int,
) -> dict[str, Any]:
    """Serve ``prompts`` at K = ``length`` and return peak resident memory in MB, libraries included."""
    from ..controllers import ConstantController
    from ..engine import Engine, EngineConfig, SamplingParams, load_pair

    imported = peak_memory_megabytes()
    pair = load_pair(**directories)
    config = EngineConfig(max_num_seqs=len(prompts), max_num_speculative_tokens=length)
    engine = Engine(pair, config, ConstantController(length))
    params = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    engine.generate([list(prompt.token_ids) for prompt in prompts], params)
    return {
        "peak_megabytes": peak_memory_megabytes(),
        "imports_megabytes": imported,
        "kv_cache_megabytes": engine.stats.kv_cache_bytes / 1e6,
        "generated_tokens": engine.stats.num_committed,
    }


def measure_in_subprocess(
    directories: dict[str, str], prompts: Path, seed: int, batch: int, length: int, new_tokens: int
) -> dict[str, Any]:
    """Run `measure` in a process of its own. Raises ``RuntimeError`` with its error output if it fails."""
    command = [sys.executable, "-m", "specpilot.benchmarks.peak_memory", "--prompts", str(prompts)]
    numbers = {"seed": seed, "batch": batch, "length": length, "new-tokens": new_tokens}
    for name, value in {**directories, **numbers}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the memory measurement failed:\n{done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Entry of the subprocess: prints one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target")
    parser.add_argument("--drafter")
    parser.add_argument("--prompts", type=Path, required=True)
    for name in ("seed", "batch", "length", "new-tokens"):
        parser.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    directories = {name: value for name in ("target", "drafter") if (value := getattr(arguments, name)) is not None}
    prompts = Prompts(arguments.prompts, arguments.seed).take(0, arguments.batch)
    print(json.dumps(measure(directories, prompts, arguments.length, arguments.new_tokens)))


if __name__ == "__main__":
    main()
