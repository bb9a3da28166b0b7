"""An engine without a model for tests of the processes around it, and a frontend that only waits.

A request's token at output position i is a function of its prompt and i alone, so streams that were interrupted can
be held against ones that were not. `ChosenPlatform.options` says how the engine behaves: see `FakeEngine.build`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from core.config import CacheConfig, Config, ModelConfig, Options, SchedulerConfig
from core.engine.client import RemoteEngineClient
from core.errors import ConfigError, InvalidRequest, QueueFull, Unsupported
from core.platform import ChosenPlatform, MemoryPlan, Override, Plan
from core.types import DType, EngineRequest, EngineStats, RequestDelta, SamplingParams

VOCAB = 1000
#: A prompt that begins with this token kills the engine that runs it …
POISON = 666
#: … and one that begins with this makes it raise, unless it has emitted something already.
BAD_LUCK = 667

CONFIG = Config(
    options=Options(),
    model=ModelConfig(
        name="fake",
        path="/nowhere",
        format="huggingface",
        architecture="FakeForCausalLM",
        hf_config={},
        dtype=DType.FLOAT32,
        max_model_len=4096,
        vocab_size=VOCAB,
        eos_token_ids=(2,),
        tokenizer_path="/nowhere",
    ),
    cache=CacheConfig(),
    scheduler=SchedulerConfig(),
)


def make_request(name: str, prompt: list[int], max_tokens: int) -> EngineRequest:
    return EngineRequest(request_id=name, prompt_token_ids=prompt, params=SamplingParams(max_tokens=max_tokens, seed=0))


def tokens_of(request: EngineRequest) -> list[int]:
    """The whole answer to a request."""
    return [_token(request, position) for position in range(request.params.max_tokens or 0)]


def _token(request: EngineRequest, position: int) -> int:
    return (sum(request.prompt_token_ids) + 31 * position) % VOCAB


class FakeEngine:
    """One token for every request in each step of `step_s` seconds."""

    def __init__(self, config: Config, options: dict[str, str]) -> None:
        self.config = msgspec.structs.replace(config, scheduler=SchedulerConfig(max_model_len=1234))
        self.plan = Plan(config=self.config, overrides=(Override(option="max_model_len", value="1234", reason="test"),))
        self.memory_plan = MemoryPlan(
            weights=1000, activations=200, inputs=30, kv_block_bytes=64, num_blocks=10, block_size=16, free=10_000
        )
        self._step_s = float(options.get("step_s", "0.002"))
        self._max_requests = int(options.get("max_requests", "1000000"))
        self._live: dict[str, tuple[EngineRequest, int]] = {}  # request, tokens so far
        self._steps = 0

    @classmethod
    def build(
        cls,
        config: Config,
        chosen: ChosenPlatform,
        progress: Callable[[str, float], None],
        planned: Callable[[Plan, MemoryPlan], None],
    ) -> FakeEngine:
        """`log`: a file that gets the pid of each engine. `fail`: how the build fails, from the life `fail_from` on."""
        life = 1
        if log := chosen.options.get("log"):
            with Path(log).open("a") as file:
                file.write(f"{os.getpid()}\n")
            life = len(Path(log).read_text().split())
        engine = cls(config, chosen.options)
        planned(engine.plan, engine.memory_plan)
        for percent in range(101):
            progress("loading", percent / 100)
        if life >= int(chosen.options.get("fail_from", "1")):
            match chosen.options.get("fail"):
                case "unsupported":
                    raise Unsupported("float16", "this is a test")
                case "segfault":
                    os.kill(os.getpid(), signal.SIGSEGV)
                case "hang":
                    time.sleep(600)
        return engine

    def add(self, request: EngineRequest) -> None:
        if not request.prompt_token_ids:
            raise InvalidRequest("prompt: is empty", param="prompt", code="empty")
        if len(self._live) >= self._max_requests:
            raise QueueFull("too many requests", retry_after_s=0.05)
        self._live[request.request_id] = request, len(request.output_token_ids)

    def abort(self, request_id: str) -> None:
        self._live.pop(request_id, None)

    def has_work(self) -> bool:
        return bool(self._live)

    def step(self) -> list[RequestDelta]:
        time.sleep(self._step_s)
        self._steps += 1
        deltas = []
        for name, (request, position) in list(self._live.items()):
            if request.prompt_token_ids[0] == POISON:
                os.kill(os.getpid(), signal.SIGKILL)
            if request.prompt_token_ids[0] == BAD_LUCK and position == 3 and not request.output_token_ids:
                raise RuntimeError("the step failed")
            ended = position + 1 == request.params.max_tokens
            deltas.append(RequestDelta(name, [_token(request, position)], "length" if ended else None))
            if ended:
                del self._live[name]
            else:
                self._live[name] = request, position + 1
        return deltas

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._live), steps=self._steps)

    def reset_prefix_cache(self) -> bool:
        return not self._live

    def shutdown(self) -> None:
        self._live.clear()


# --- frontends -----------------------------------------------------------------------------------------------


class FrontendOptions(msgspec.Struct, frozen=True, kw_only=True):
    """`log`: a file that gets the pid of each frontend. `requests`: how many it makes, of `tokens` tokens each."""

    log: str = ""
    requests: int = 0
    tokens: int = 10
    results: str = ""  # a file that gets the answers, once all are complete
    fail: bool = False


def run_frontend(config: Config, options: FrontendOptions, listen_fd: int, control_endpoint: str) -> None:
    os.fstat(listen_fd)  # inherited, so open
    if options.log:
        with Path(options.log).open("a") as file:
            file.write(f"{os.getpid()}\n")
    if options.fail:
        raise ConfigError("--fake", "this frontend cannot start")
    asyncio.run(_frontend(config, options, control_endpoint))


async def _frontend(config: Config, options: FrontendOptions, control_endpoint: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    client = RemoteEngineClient(control_endpoint, config)
    requests = [
        make_request(f"{os.getpid()}-{index}", [index + 1], options.tokens) for index in range(options.requests)
    ]
    answers = asyncio.gather(*(collect(client, request) for request in requests))
    await stop.wait()
    complete = msgspec.json.encode(await answers)
    if options.results:
        Path(options.results).write_bytes(complete)
    await client.close()


async def collect(client: Any, request: EngineRequest) -> list[int]:
    """All tokens of a request. Raises AssertionError where it ends for another reason than its length."""
    tokens: list[int] = []
    async for delta in client.generate(request):
        tokens += delta.token_ids
        if delta.finish_reason is not None:
            assert delta.finish_reason == "length", delta
    return tokens
