"""A real HTTP server in front of an engine that answers from a script, in a thread of its own.

The thread has its own event loop, so that synchronous clients can be tested too.
"""

from __future__ import annotations

import asyncio
import itertools
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import tokenizers
from aiohttp import web
from tokenizers import decoders, models, pre_tokenizers

from core.config import CacheConfig, Config, ModelConfig, Options, SchedulerConfig
from core.engine.client import EngineClient
from core.engine.messages import EngineStatus
from core.extensions import NO_EXTENSIONS, Extensions
from core.server.app import app_runner, create_app
from core.server.options import ServerOptions
from core.tokenization import ChatTemplate, Tokenizer
from core.types import DType, EngineRequest, EngineStats, RequestDelta, TokenLogprobs

TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
MAX_MODEL_LEN = 512


def make_tokenizer(template: str | None) -> Tokenizer:
    """Bytes, a few merges, an end token and another special one: small, and real."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate(["<|end|>", *alphabet, "th", "the", "in", "Ġa"])}
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a")]
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in ("<|end|>", "<|call|>")])
    chat_template = ChatTemplate(template) if template else None
    return Tokenizer(backend, special_tokens={"eos_token": "<|end|>"}, chat_template=chat_template)


def make_config(extensions: Extensions = NO_EXTENSIONS, **model: object) -> Config:
    """A configuration that no engine has to run."""
    facts = {
        "name": "fake/model", "path": "", "format": "huggingface", "architecture": "FakeForCausalLM", "hf_config": {},
        "dtype": DType.FLOAT32, "max_model_len": MAX_MODEL_LEN, "vocab_size": 262, "eos_token_ids": (0,),
        "tokenizer_path": "", "fingerprint": "0123456789abcdef",
    }  # fmt: skip
    return Config(
        options=Options(),
        model=ModelConfig(**{**facts, **model}),
        cache=CacheConfig(),
        scheduler=SchedulerConfig(max_model_len=MAX_MODEL_LEN),
        extensions=extensions,
    )


def pooled(request: EngineRequest) -> bytes:
    """A vector of length one or less that depends on every token: how many there are, their sum, the first, the last."""
    ids = request.prompt_token_ids
    numbers = [len(ids) / 1000, sum(ids) / 100_000, ids[0] / 1000, ids[-1] / 1000]
    return struct.pack("<4f", *numbers)[: 4 * ((request.pooling and request.pooling.dimensions) or 4)]


class FakeEngine(EngineClient):
    """Answers every request with `answer`, a token at a time, then the end token."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self.config = config
        self.reset()
        self._tokenizer = tokenizer

    def reset(self) -> None:
        """As new."""
        self.answer = "the quick brown fox jumps over a lazy dog in the rain"
        self.state = "ready"
        self.error: Exception | None = None  # raised before the first token
        self.error_after: tuple[int, Exception] | None = None  # raised after that many tokens
        self.finish: str | None = None  # instead of any token
        self.reason: str | None = None  # beside it
        self.stall_after: int | None = None  # tokens after which nothing more comes
        self.requests: list[EngineRequest] = []
        self.aborted: list[str] = []
        self.stalls_stats = False
        self.resets, self.resets_cache = 0, True

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(state=self.state, stage="reading weights", progress=0.25, message="a message")

    async def wait_ready(self) -> None:
        return

    async def generate(self, request: EngineRequest) -> AsyncIterator[RequestDelta]:
        self.requests.append(request)
        finished, stall_after = False, self.stall_after  # a test may change it for the requests that follow
        try:
            if stall_after == 0:
                await asyncio.sleep(3600)
            for delta in self._deltas(request):
                await asyncio.sleep(0)
                yield delta
                finished = delta.finish_reason is not None
                if len(request.output_token_ids) == stall_after:
                    await asyncio.sleep(3600)
        finally:
            if not finished:
                self.aborted.append(request.request_id)

    def _deltas(self, request: EngineRequest) -> Iterator[RequestDelta]:
        if self.error is not None:
            raise self.error
        if self.finish is not None:
            yield RequestDelta(request.request_id, [], self.finish, error=self.reason)
            return
        if request.pooling is not None:
            yield RequestDelta(request.request_id, [], "stop", pooled=pooled(request))
            return
        script = itertools.chain(self._tokenizer.encode(self.answer), [0] if not request.params.ignore_eos else [])
        for count, token_id in enumerate(itertools.cycle(script) if request.params.ignore_eos else script, start=1):
            if self.error_after is not None and count > self.error_after[0]:
                raise self.error_after[1]
            request.output_token_ids.append(token_id)
            reason = "stop" if token_id == 0 else "length" if count == request.params.max_tokens else None
            top = request.params.logprobs
            entry = (
                None
                if top is None
                else [TokenLogprobs(-0.5, 1, [(token_id, -0.5), (65, -1.5), (66, float("-inf"))][:top])]
            )
            prompt = self._prompt_logprobs(request) if count == 1 else None
            cached = 3 if count == 1 else 0
            yield RequestDelta(request.request_id, [token_id], reason, None, entry, cached, prompt_logprobs=prompt)
            if reason is not None:
                return

    def _prompt_logprobs(self, request: EngineRequest) -> list[TokenLogprobs] | None:
        top = request.params.prompt_logprobs
        if top is None:
            return None
        others = [(65, -1.25), (66, -1.5)][:top]
        return [TokenLogprobs(-2.0 - token_id, 9, others) for token_id in request.prompt_token_ids[1:]]

    async def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    async def stats(self) -> EngineStats:
        if self.stalls_stats:
            await asyncio.sleep(3600)
        return EngineStats(running=2, waiting=1, kv_usage=0.5, prompt_tokens=7, generated_tokens=11)

    async def reset_prefix_cache(self) -> bool:
        self.resets += 1
        return self.resets_cache

    async def close(self) -> None:
        return


@dataclass
class Server:
    """A running server and what is behind it."""

    engine: FakeEngine
    url: str


@dataclass
class ServerThread:
    """An application served on a free port by a loop in another thread, as a client's own process would see it."""

    app: web.Application
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)
    _started: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> str:
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))
        self._thread.start()
        assert self._started.wait(10)
        return self.url

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        runner = app_runner(self.app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._stop.wait()
        await runner.cleanup()


@contextmanager
def servers() -> Iterator[Callable[..., Server]]:
    """A function that starts a server with options of its own; all of them end with the context."""
    threads = []

    def start(
        options: ServerOptions | None = None,
        template: str | None = TEMPLATE,
        extensions: Extensions = NO_EXTENSIONS,
        **model: object,
    ) -> Server:
        tokenizer = make_tokenizer(template)
        engine = FakeEngine(make_config(extensions, **model), tokenizer)
        thread = ServerThread(create_app(engine, tokenizer, options or ServerOptions()))
        url = thread.__enter__()
        threads.append(thread)
        return Server(engine, url)

    try:
        yield start
    finally:
        for thread in threads:
            thread.__exit__()
