"""Settings of the vLLM benchmark."""

from __future__ import annotations

from dataclasses import dataclass

CONSTANTS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class VllmBenchmark:
    """What is compared on vLLM; wrong values raise ``ValueError`` with the value and the fix."""

    record: str
    """Folder of ``train/record.py --engine vllm``: its evaluation requests are served, its training requests and costs
    tune vLLM's table."""
    controller: str
    """File or directory that ``save_controller`` wrote."""
    output: str
    target: str = "pairs/pystdlib/target"
    drafter: str = "pairs/pystdlib/drafter"
    lengths: tuple[int, ...] = CONSTANTS
    """Constant lengths, beside off."""
    concurrencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Requests in the system in closed loop."""
    requests: int = 8
    """Of a closed loop, at least."""
    requests_per_slot: float = 1.5
    """Of a closed loop: this many times its concurrency, at least."""
    loads: tuple[float, ...] = (0.5, 1.0)
    """Bursting arrivals: their mean rate over what plain decoding could serve."""
    arrivals: str | None = None
    """CSV of real arrivals (the Azure LLM inference trace's columns); None: bursts made by ``envs/traffic.py``."""
    arrival_requests: int = 64
    repeats: int = 5
    """Each of other requests; every contender serves the same ones."""
    max_num_seqs: int = 32
    max_model_len: int = 1024
    prefill_chunk: int = 1024
    seed: int = 0
    threads: int = 1
    """Of torch: those that the costs were measured with."""

    def __post_init__(self) -> None:
        for name in ("requests", "arrival_requests", "repeats", "max_num_seqs", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"lengths must hold one or more numbers of 1 or more, got {list(self.lengths)}")
        if not self.concurrencies and not self.loads:
            raise ValueError("nothing is left to serve: give concurrencies or loads")
        if any(not 1 <= count <= self.max_num_seqs for count in self.concurrencies):
            raise ValueError(f"concurrencies must be 1 … max_num_seqs {self.max_num_seqs}, got {self.concurrencies}")
