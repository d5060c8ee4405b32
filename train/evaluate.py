"""Compare controllers over scenarios, on requests that none was trained or tuned on.

    python train/evaluate.py --config configs/evaluate/pystdlib.yaml [--output DIR] [--workers 2]
    python train/evaluate.py --config configs/evaluate/pystdlib.yaml --backend live
    python train/evaluate.py --config configs/evaluate/vllm.yaml --backend vllm

The output folder gets ``results.json`` (every number of every seed), ``results.csv``, ``table.md``, ``plot.png`` and,
with another backend than replay, ``<backend>.json`` and ``<backend>.md``. Interrupted, the same command goes on with
what is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from specpilot.configs import ConfigError, load_config
from specpilot.controllers import CostSurfaceError
from specpilot.envs.trace import TraceError
from specpilot.envs.traffic import TrafficError
from specpilot.train.evaluation import EvaluateConfig, ReplayEvaluation
from specpilot.train.evaluation_plot import plot
from specpilot.train.evaluation_table import csv_text, markdown, summarise, write_text
from specpilot.train.run_record import run_record, write_json


def evaluate(config: EvaluateConfig, workers: int = 1) -> dict[str, Any]:
    """Serve everything on replay and write the results; returns what ``results.json`` holds."""
    output, start = Path(config.output), time.monotonic()
    evaluation = ReplayEvaluation(config)
    rows = evaluation.run(workers)
    summaries = {name: summarise(own) for name, own in rows.items()}
    results = run_record(
        config,
        seconds=round(time.monotonic() - start, 1),
        tuning=evaluation.tuning,
        scenarios={name: {**summaries[name], "rows": rows[name]} for name in rows},
    )
    write_json(output / "results.json", results)
    write_text(output / "results.csv", csv_text(summaries))
    table = markdown(summaries, evaluation.tuning["quality"])
    write_text(output / "table.md", table)
    print(table)
    plot(summaries, tuple(own.name for own in config.controllers), output / "plot.png")
    _track(config, summaries)
    return results


def _track(config: EvaluateConfig, summaries: dict[str, Any]) -> None:
    """Log the table where tracking is asked for."""
    if config.tracking == "none":
        return
    from specpilot.train.tracking import Tracker

    keys = ("figure", "relative_to_off", "relative_to_best_constant", "share_of_oracle_gap", "share_of_ceiling_gap")
    rows = [
        [scenario, name, *(own[key]["median"] for key in keys)]
        for scenario, summary in summaries.items()
        for name, own in summary["contenders"].items()
    ]
    tracker = Tracker.start(config.tracking, config, Path(config.output), "evaluate")
    tracker.table("evaluation", ["scenario", "contender", *keys], rows)
    tracker.finish(Path(config.output))


def parse(arguments: list[str] | None) -> tuple[EvaluateConfig, argparse.Namespace]:
    """Read the command line and its configuration."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="YAML of EvaluateConfig")
    parser.add_argument("--output", help="another output folder than the configuration's")
    parser.add_argument("--backend", choices=("replay", "live", "vllm"), default="replay")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    options = parser.parse_args(arguments)
    config = load_config(EvaluateConfig, options.config)
    return (replace(config, output=options.output) if options.output else config), options


def main(arguments: list[str] | None = None) -> int:
    """Evaluate. Exit status 2 and one line on stderr where the input is at fault."""
    try:
        config, options = parse(arguments)
        if options.backend != "replay":
            from specpilot.train.live_evaluation import evaluate_live

            evaluate_live(config, options.backend)
        else:
            evaluate(config, options.workers)
    except (ConfigError, CostSurfaceError, TraceError, TrafficError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
