"""vLLM's OpenAI-compatible server with the plugin, under concurrent streams that come in bursts."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from specpilot.controllers import LengthTableController, save_controller

vllm = pytest.importorskip("vllm")
START_SECONDS = 240
BURSTS = (1, 9, 2, 12)
"""Requests that come at once."""
PAUSE = 0.7
"""Seconds between bursts."""


@contextmanager
def server(directory: Path, log: Path, controller: Path | None, *options: str) -> Iterator[str]:
    """The server in a process of its own; yields its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SPECPILOT_")}
    environment |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_LOGGING_LEVEL": "INFO"}
    if controller is not None:
        environment["SPECPILOT_CONTROLLER"] = str(controller)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory / "target")]
    command += ["--served-model-name", "pair", "--host", "127.0.0.1", "--port", port, "--dtype", "float32"]
    command += ["--max-model-len", "512", "--max-num-seqs", "8", "--enforce-eager", *options]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=log.parent, start_new_session=True
        )
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, f"the server ended:\n{log.read_text()[-4000:]}"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not start:\n{log.read_text()[-4000:]}")


async def stream(client: Any, prompt: list[int], number: int) -> tuple[str, int]:
    """Text of a greedy completion and the chunks that it came in."""
    chunks = list[str]()
    answer = await client.completions.create(
        model="pair", prompt=prompt, max_tokens=12 + 7 * (number % 6), temperature=0, stream=True
    )
    async for chunk in answer:
        chunks.append(chunk.choices[0].text)
    return "".join(chunks), len(chunks)


async def bursts(address: str, prompts: list[list[int]]) -> list[tuple[str, int]]:
    """All streams, in the order in which they began."""
    openai: Any = pytest.importorskip("openai")
    tasks = list[asyncio.Task[tuple[str, int]]]()
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none") as client:
        for size in BURSTS:
            for _ in range(size):
                prompt = prompts[len(tasks) % len(prompts)]
                tasks.append(asyncio.create_task(stream(client, prompt, len(tasks))))
            await asyncio.sleep(PAUSE)
        return await asyncio.gather(*tasks)


def metrics(address: str) -> dict[str, float]:
    """The plugin's numbers."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    found = re.findall(r"^specpilot_(\w+)\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.slow
def test_streams_in_bursts_get_the_text_without_speculation(
    pair_directory: Path, evaluation_prompts: list[list[int]], tmp_path: Path
) -> None:
    controller = save_controller(LengthTableController([(1, 2, 4), (3, 6, 2), (7, None, 0)]), tmp_path / "table.json")
    prompts = evaluation_prompts[:10]
    speculation = {"method": "draft_model", "model": str(pair_directory / "drafter"), "num_speculative_tokens": 4}
    with server(pair_directory, tmp_path / "plain.log", None) as address:
        expected = asyncio.run(bursts(address, prompts))
        assert not metrics(address), "without a controller the plugin shows nothing"
    log = tmp_path / "steered.log"
    with server(pair_directory, log, controller, "--speculative-config", json.dumps(speculation)) as address:
        found = asyncio.run(bursts(address, prompts))
        numbers = metrics(address)
    assert len(found) == sum(BURSTS) and [text for text, _ in found] == [text for text, _ in expected]
    assert sum(chunks for _, chunks in found) < sum(chunks for _, chunks in expected), "speculation gains tokens"
    assert numbers["steps_total"] > numbers["off_steps_total"] > 0, "the largest bursts turn speculation off"
    assert numbers["drafted_tokens_total"] > numbers["wasted_draft_tokens_total"] > 0
    assert numbers["switches_total"] > 2 and numbers["fallback_steps_total"] == 0 and numbers["static"] == 0
    assert numbers["decision_nanoseconds_total"] > 0
