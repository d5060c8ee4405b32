"""``make demo``: record the shipped pair, train a controller, distil it, serve with it, compare it with others."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from transformers.utils import logging as transformers_logging

from specpilot import load_controller
from specpilot.controllers import ConstantController, Controller
from specpilot.engine import SHIPPED_PAIR, Engine, EngineConfig, SamplingParams, load_pair

ROOT = Path(__file__).resolve().parent.parent
RUN = Path("runs/demo")
STEPS = (
    ("record the pair and measure this machine", ["train/record.py", "--config", "configs/demo/record.yaml"]),
    ("train a controller with PPO", ["train/ppo.py", "--config", "configs/demo/ppo.yaml"]),
    ("distil it", ["train/distill.py", "--run", "runs/demo/ppo", "--states", "2000", "--iterations", "3"]),
)
COMPARISON = ("compare on evaluation requests", ["train/evaluate.py", "--config", "configs/demo/evaluate.yaml"])
BATCH, MAX_TOKENS, REPEATS = 8, 64, 5


def run_step(title: str, command: list[str]) -> None:
    """Run one script of the repository; stop where it fails."""
    print(f"\n== {title}: python {' '.join(command)}", flush=True)
    start = time.monotonic()
    code = subprocess.run([sys.executable, *command], cwd=ROOT, check=False).returncode
    if code:
        sys.exit(code)
    print(f"   {time.monotonic() - start:.0f} s", flush=True)


def serve(engine: Engine, controller: Controller, prompts: list[list[int]]) -> tuple[float, list[tuple[int, ...]]]:
    """Serve ``prompts`` at mixed temperatures; returns tokens per second and the texts."""
    engine.controller = controller
    params = [
        SamplingParams(max_tokens=MAX_TOKENS, seed=number, temperature=(0.0, 0.6, 1.0)[number % 3], ignore_eos=True)
        for number in range(len(prompts))
    ]
    start = time.perf_counter()
    outputs = engine.generate(prompts, params)
    seconds = time.perf_counter() - start
    return sum(len(output.token_ids) for output in outputs) / seconds, [output.token_ids for output in outputs]


def serve_live() -> None:
    """Load the network into the engine and serve with it, beside plain decoding and a constant, in turn."""
    print(f"\n== serve live: {BATCH} requests at once, temperatures 0, 0.6 and 1, {MAX_TOKENS} tokens each", flush=True)
    transformers_logging.disable_progress_bar()
    engine = Engine(load_pair(), EngineConfig(max_num_seqs=BATCH))
    records = json.loads((SHIPPED_PAIR / "evaluation_prompts.json").read_text())["prompts"]
    prompts = [record["token_ids"] for record in records[:BATCH]]
    surface = ROOT / RUN / "record" / "cost_surface.json"
    contenders: dict[str, Controller] = {
        "off": ConstantController(0),
        "K = 3": ConstantController(3),
        "network": load_controller(ROOT / RUN / "ppo/students/mlp", cost_surface=surface),
    }
    runs = [{name: serve(engine, own, prompts) for name, own in contenders.items()} for _ in range(REPEATS + 1)][1:]
    for name in contenders:
        ratio = statistics.median(run[name][0] / run["off"][0] for run in runs)
        same = all(run[name][1] == run["off"][1] for run in runs)
        speed = statistics.median(run[name][0] for run in runs)
        print(f"{name:<8} {speed:7.0f} tokens/s   {ratio:5.2f} x off   {'same text' if same else 'ANOTHER TEXT'}")


def main() -> None:
    """All steps; each goes on where an interrupted run stopped."""
    start = time.monotonic()
    for title, command in STEPS:
        run_step(title, command)
    serve_live()
    run_step(*COMPARISON)
    print(
        f"\ntable and plot: {RUN / 'evaluate'} (table.md, plot.png); the tree to read: {RUN / 'ppo/students/tree.txt'}"
    )
    print(f"all in {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
