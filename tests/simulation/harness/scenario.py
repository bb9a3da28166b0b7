"""What happens in one run: the server, its clients and their bad luck, as data. `harness.dice` draws it from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from core.config import CacheConfig, Config, ModelConfig, Options, Policy, SchedulerConfig
from core.types import DType, EngineRequest, SamplingParams

VOCAB = 23
EOS = 0
MAX_MODEL_LEN = 64
WEIGHTS = "simulated weights"


@dataclass(frozen=True)
class Shape:
    """The model's attention and the server's limits."""

    window: int | None
    mixed: bool  # one layer of two slides
    block_size: int
    num_blocks: int
    max_num_seqs: int
    budget: int
    policy: Policy
    chunked: bool
    caching: bool
    connector: bool
    max_queued: int
    max_in_flight: int

    def config(self) -> Config:
        """As `core.config.resolve` would make it."""
        kv_bytes = 2 * 2 * 8 * self.block_size * DType.BFLOAT16.itemsize  # two layers, keys and values, one head of 8
        return Config(
            options=Options(max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.budget),
            model=ModelConfig(
                name="simulated",
                path="/nowhere",
                format="huggingface",
                architecture="Qwen2ForCausalLM",
                hf_config=self._hf_config(),
                dtype=DType.BFLOAT16,
                max_model_len=MAX_MODEL_LEN,
                vocab_size=VOCAB,
                eos_token_ids=(EOS,),
                tokenizer_path="/nowhere",
                fingerprint=WEIGHTS,
            ),
            cache=CacheConfig(
                block_size=self.block_size,
                dtype=DType.BFLOAT16,
                memory_bytes=kv_bytes * self.num_blocks,
                enable_prefix_caching=self.caching,
            ),
            scheduler=SchedulerConfig(
                max_num_seqs=self.max_num_seqs,
                max_num_batched_tokens=self.budget,
                max_model_len=MAX_MODEL_LEN,
                policy=self.policy,
                enable_chunked_prefill=self.chunked,
                max_queued_requests=self.max_queued,
            ),
        )

    def _hf_config(self) -> dict[str, Any]:
        return {
            "model_type": "qwen2",
            "vocab_size": VOCAB,
            "hidden_size": 8,
            "intermediate_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "max_position_embeddings": MAX_MODEL_LEN,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": True,
            "use_sliding_window": self.window is not None,
            "sliding_window": self.window,
            "max_window_layers": int(self.mixed),
        }


@dataclass(frozen=True)
class Arrival:
    """One client's request, of n choices, and what the client does to it."""

    at: float
    frontend: int
    name: str
    prompt: tuple[int, ...]
    params: SamplingParams
    priority: int
    patience: float | None  # seconds to its deadline
    salt: str
    leaves: tuple[float | None, ...]  # by choice: seconds until the client closes its stream
    aborts: tuple[float | None, ...]  # by choice: seconds until it is aborted by name

    def choice_id(self, choice: int) -> str:
        """The request id of a choice."""
        return self.name if self.params.n == 1 else f"{self.name}.{choice}"

    def requests(self, now: float) -> list[EngineRequest]:
        """As the input processor would make them."""
        return [
            EngineRequest(
                request_id=self.choice_id(choice),
                prompt_token_ids=list(self.prompt),
                params=self.params,
                choice_index=choice,
                parent_id=None if choice == 0 else self.choice_id(0),
                priority=self.priority,
                arrival_time=now,
                deadline=None if self.patience is None else now + self.patience,
                cache_salt=self.salt,
            )
            for choice in range(self.params.n)
        ]


FaultKind = Literal["submit", "collect", "allocate", "death", "slow"]


@dataclass(frozen=True)
class StepFault:
    """What goes wrong with the `step`-th step that any engine takes.

    submit, collect: that call raises; allocate: the first block allocation of the step does. death: the engine is killed
    when `fraction` of the step's time has passed; more than 1 is after it has sent its results. slow: it takes `seconds`
    longer.
    """

    step: int
    kind: FaultKind
    fraction: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Faults:
    """Bad luck, by time and by step."""

    steps: tuple[StepFault, ...] = ()
    engine_deaths: tuple[float, ...] = ()
    frontend_deaths: tuple[tuple[float, int], ...] = ()  # (when, which)
    failed_starts: tuple[int, ...] = ()  # engines, counted from 1, that fail while they load
    failed_frontends: tuple[int, ...] = ()  # frontends, counted from 1, that fail at once
    poison: str | None = None  # a request that ends every engine that computes it
    shutdowns: tuple[float, ...] = ()  # when the server is told to end; never: when all is done


@dataclass(frozen=True)
class Scenario:
    """All that happens."""

    seed: int
    shape: Shape
    frontends: int
    arrivals: tuple[Arrival, ...]
    faults: Faults
    slowest_message: float
    kv_delay: float  # the longest that a connector's load takes
    kv_failures: float  # the fraction of loads that fail
    stats_every: float | None
    drain_s: float  # what running requests get when the server is told to end

    @property
    def last_event(self) -> float:
        """When the last arrival or fault that has a time comes."""
        faults = self.faults
        moments = [arrival.at for arrival in self.arrivals]
        moments += [*faults.engine_deaths, *(moment for moment, _ in faults.frontend_deaths)]
        return max([*moments, *faults.shutdowns], default=0.0)
