"""Measure the embedded engine against transformers and against itself.

    python benchmarks/engine.py --config configs/benchmark/engine.yaml            # about ten minutes on two idle cores
    python benchmarks/engine.py --config configs/benchmark/engine.yaml --resume   # go on after an interruption
    python benchmarks/engine.py --report benchmarks/results/engine.json           # tables and plot again, no measuring

Everything is compared as ratios of interleaved runs, medians over repeats. Writes JSON with every sample, and
Markdown and PNG beside it.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from specpilot.benchmarks.engine_config import EngineBenchmark
from specpilot.benchmarks.engine_sections import SECTIONS, Context, section_ticks
from specpilot.benchmarks.measurement import ROOT, Prompts, machine_state
from specpilot.benchmarks.report import render
from specpilot.configs import ConfigError, load_config
from specpilot.engine import Pair, PairError, load_pair
from specpilot.train.run_record import run_record, write_json

FORMAT = 1
SAME_RUN = ("format", "config", "quick", "versions", "git_revision")  # what must agree for a run to be resumed


def main() -> None:
    """Parse the command line, measure or render, print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs/benchmark/engine.yaml")
    parser.add_argument("--quick", action="store_true", help="smoke run: every code path, numbers without meaning")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="only these")
    parser.add_argument("--resume", action="store_true", help="keep the finished sections of an interrupted run")
    parser.add_argument("--report", type=Path, metavar="JSON", help="write the report of these results and end")
    arguments = parser.parse_args()
    try:
        if arguments.report is not None:
            print(render(json.loads(arguments.report.read_text()), arguments.report))
            return
        config = load_config(EngineBenchmark, arguments.config)
        config = config.quick() if arguments.quick else config
        results = measure(config, arguments.quick, arguments.resume, arguments.sections)
    except (ConfigError, PairError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    output = ROOT / config.output
    write_json(output, results)
    _partial(output).unlink(missing_ok=True)
    print(render(results, output))
    print(f"results: {output} (+ .md, .png)")


def measure(config: EngineBenchmark, quick: bool, resume: bool, names: list[str]) -> dict[str, Any]:
    """Run the sections; after each one, what is finished is on disk beside the output."""
    output = ROOT / config.output
    prompts = Prompts(ROOT / config.prompts, config.seed)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    results = {"format": FORMAT, "quick": quick, **run_record(config, machine=machine_state())}
    results |= {"section_seconds": {}, "sections": {}}
    if resume:
        _resume(results, _partial(output))
    directories = {
        name: value for name, value in (("target", config.target), ("drafter", config.drafter)) if value is not None
    }
    pair = load_pair(**directories)
    results["pair"] = {**describe(pair), **directories}
    ticks = section_ticks(config)
    todo = [name for name in SECTIONS if name in names and name not in results["sections"]]
    with tqdm(total=sum(ticks[name] for name in todo), unit="repeat") as progress:
        context = Context(config, directories, pair, prompts, progress.update)
        for name in todo:
            progress.set_description(name)
            start = time.perf_counter()
            results["sections"][name] = SECTIONS[name](context)
            results["section_seconds"][name] = time.perf_counter() - start
            write_json(_partial(output), results)
    return results


def describe(pair: Pair) -> dict[str, Any]:
    """Sizes of the pair: parameters, layers and vocabulary."""
    models = {"target": pair.target, "drafter": pair.drafter}
    return {
        "vocab_size": pair.vocab_size,
        **{
            f"{name}_{what}": value
            for name, model in models.items()
            if model is not None
            for what, value in (
                ("parameters", model.num_parameters()),
                ("layers", model.config.num_hidden_layers),
                ("dtype", str(model.dtype)),
            )
        },
    }


def _partial(output: Path) -> Path:
    return output.with_suffix(".partial.json")


def _resume(results: dict[str, Any], partial: Path) -> None:
    """Take over the sections of an interrupted run, unless anything that they depend on has changed."""
    if not partial.is_file():
        return
    earlier = json.loads(partial.read_text())
    now = json.loads(json.dumps(results))  # tuples become lists, as in the file
    changed = [key for key in SAME_RUN if earlier.get(key) != now[key]]
    if changed:
        raise ValueError(f"{partial} was made with another {', '.join(changed)}; run without --resume")
    results["sections"], results["section_seconds"] = earlier["sections"], earlier["section_seconds"]
    print(f"resumed: {', '.join(results['sections'])} already measured")


if __name__ == "__main__":
    main()
