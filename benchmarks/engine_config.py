"""Settings of the engine benchmark: what is measured, how often, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class AssistedSchedule:
    """One way to run transformers' assisted generation; the fields carry the names of its generation config."""

    schedule: str = "constant"
    """``num_assistant_tokens_schedule``: ``constant``, ``heuristic`` or ``heuristic_transient``."""
    tokens: int = 20
    """``num_assistant_tokens``: tokens drafted per round (the first round's for the heuristics)."""
    confidence: float = 0.4
    """``assistant_confidence_threshold``: drafting stops below this probability; 0 never stops."""

    @property
    def name(self) -> str:
        """Short name used in results, such as ``assisted constant 4``."""
        stop = f", stop below {self.confidence:g}" if self.confidence else ""
        return f"assisted {self.schedule} {self.tokens}{stop}"


# transformers' own default, its heuristic, and constants around the useful range, with and without the early stop.
DEFAULT_SCHEDULES = (
    AssistedSchedule("constant", 20, 0.4),
    AssistedSchedule("heuristic", 5, 0.0),
    AssistedSchedule("heuristic", 5, 0.4),
    AssistedSchedule("constant", 2, 0.0),
    AssistedSchedule("constant", 3, 0.0),
    AssistedSchedule("constant", 4, 0.0),
    AssistedSchedule("constant", 6, 0.0),
)


@dataclass(frozen=True)
class PlainSettings:
    """Plain decoding against ``generate``, and what a loaded drafter costs at K = 0."""

    batches: tuple[int, ...] = (1, 16)
    """Requests decoded together."""
    requests: int = 8
    """Prompts per repeat; at least one full batch is run."""
    new_tokens: int = 64
    """Tokens generated per request."""
    repeats: int = 7
    """Interleaved repeats, each on other prompts."""


@dataclass(frozen=True)
class SpeculationSettings:
    """Best constant K at batch 1 against plain decoding and assisted generation."""

    temperatures: tuple[float, ...] = (0.0, 1.0)
    """0 compares with transformers too; other temperatures compare K with plain decoding only."""
    lengths: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 7, 8)
    """Constant speculation lengths K tried, in tokens."""
    lookups: tuple[int, ...] = (4, 8)
    """Constant K tried with n-gram prompt lookup in place of the drafter model."""
    schedules: tuple[AssistedSchedule, ...] = DEFAULT_SCHEDULES
    """Settings of assisted generation tried."""
    requests: int = 6
    """Prompts per repeat."""
    new_tokens: int = 64
    """Tokens generated per request."""
    screen_repeats: int = 2
    """Repeats in which the best K and the best schedule are chosen; not part of the reported ratios."""
    repeats: int = 7
    """Repeats in which the chosen ones are compared, on prompts that the choice has not seen."""


@dataclass(frozen=True)
class TableSettings:
    """Decode throughput over batch size and K."""

    temperatures: tuple[float, ...] = (0.0,)
    """One table each."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Requests decoded together."""
    lengths: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 8)
    """Constant speculation lengths K in tokens; must hold 0, which everything is relative to."""
    requests: int = 8
    """Prompts per cell and repeat; batches smaller than this run several times, larger ones once."""
    new_tokens: int = 64
    """Tokens generated per request."""
    repeats: int = 5
    """Interleaved repeats, each on other prompts."""

    def __post_init__(self) -> None:
        if 0 not in self.lengths:
            raise ValueError("table.lengths must hold 0: the other lengths are measured relative to it")


@dataclass(frozen=True)
class StepSettings:
    """One drafter level against one target pass of one token, at batch 1."""

    length: int = 8
    """Levels drafted per round, in tokens."""
    requests: int = 4
    """Prompts per repeat, one after the other."""
    new_tokens: int = 64
    """Tokens generated per request."""
    repeats: int = 7
    """Repeats; each gives one median per model."""


@dataclass(frozen=True)
class MemorySettings:
    """Peak memory of a fresh process that loads the pair and serves one batch."""

    batch: int = 32
    """Requests decoded together."""
    length: int = 8
    """Constant speculation length K in tokens."""
    new_tokens: int = 64
    """Tokens generated per request."""


@dataclass(frozen=True)
class EngineBenchmark:
    """Everything ``benchmarks/engine.py`` does."""

    target: str | None = None
    """Directory or hub id of the target; None: the pair that ships."""
    drafter: str | None = None
    """Directory or hub id of the drafter; None: the pair that ships."""
    prompts: str = "pairs/pystdlib/evaluation_prompts.json"
    """``{"prompts": [{"file": str, "token_ids": [int]}]}``; relative to the repository root."""
    output: str = "benchmarks/results/engine.json"
    """Results; ``.md`` and ``.png`` of the same name are written beside it. Relative to the repository root."""
    seed: int = 0
    """Order of the prompts and, with the prompt's number, seed of every request."""
    threads: int | None = None
    """torch's intra-op threads; None: torch's own choice."""
    plain: PlainSettings = field(default_factory=PlainSettings)
    speculation: SpeculationSettings = field(default_factory=SpeculationSettings)
    table: TableSettings = field(default_factory=TableSettings)
    step: StepSettings = field(default_factory=StepSettings)
    memory: MemorySettings = field(default_factory=MemorySettings)

    @property
    def max_length(self) -> int:
        """Largest K anywhere, in tokens: what the engines are built for."""
        return max(*self.speculation.lengths, *self.table.lengths, self.memory.length)

    def quick(self) -> EngineBenchmark:
        """Return a smoke run: every code path in about a minute, numbers without meaning, results in ``runs/``."""
        return replace(
            self,
            output="runs/benchmark/engine-quick.json",
            plain=replace(self.plain, batches=(1, 4), requests=2, new_tokens=8, repeats=2),
            speculation=replace(
                self.speculation,
                lengths=(1, 3),
                schedules=self.speculation.schedules[:2],
                requests=2,
                new_tokens=8,
                screen_repeats=1,
                repeats=2,
            ),
            table=replace(self.table, batches=(1, 4), lengths=(0, 2, 4), requests=2, new_tokens=12, repeats=2),
            step=replace(self.step, requests=1, new_tokens=24, repeats=2),
            memory=replace(self.memory, batch=4, new_tokens=8),
        )
