"""A load on any server with OpenAI's completions API, and what its clients see of it.

Closed loop: a fixed number of requests is always in flight. Open loop: requests are sent at random times whatever
the server does (Poisson arrivals), which is how users come and what shows queueing (Schroeder et al., NSDI 2006).
Every request streams, greedy, `ignore_eos`: so each engine generates the same number of tokens.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import aiohttp
import msgspec

from core.bench.figures import Figures, spread

_WORDS = (
    "river stone window morning letter garden silver engine winter paper bridge candle market copper ocean village "
    "thunder basket mirror forest harbour needle orange planet quiet ribbon shadow ticket valley whisper yellow anchor "
    "button carpet dinner eleven finger gentle hollow island jacket kettle ladder memory number oyster pepper quarter "
    "rocket summer travel useful velvet wonder between carry decide follow gather hurry imagine listen measure"
)


@dataclass(frozen=True)
class Workload:
    """What is sent. `rate` (requests a second) makes it an open loop; otherwise `concurrency` bounds a closed one."""

    requests: int
    input_words: int
    output_tokens: int
    concurrency: int = 1
    rate: float | None = None
    shared_prefix_words: int = 0
    seed: int = 0
    warmup: int = 2


@dataclass
class Sample:
    """One request as its client saw it. Times are of one clock, in seconds."""

    start: float
    end: float = 0.0
    arrivals: list[float] = field(default_factory=list)  # of each chunk with text
    prompt_tokens: int = 0
    output_tokens: int = 0
    error: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Choice(msgspec.Struct):
    text: str = ""


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


def prompts(workload: Workload) -> list[str]:
    """The prompts, the same ones for the same seed."""
    source, vocabulary = random.Random(workload.seed), _WORDS.split()
    prefix = source.choices(vocabulary, k=workload.shared_prefix_words)
    return [" ".join(prefix + source.choices(vocabulary, k=workload.input_words)) for _ in range(workload.requests)]


async def run(url: str, model: str | None, workload: Workload, done: Callable[[Sample], None]) -> Figures:
    """Put the load on the server at `url`, calling `done` after each request. Returns the figures, in seconds."""
    texts = prompts(workload)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=30)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        sender = _Sender(session, f"{url.rstrip('/')}/v1/completions", model, workload.output_tokens)
        for index in range(workload.warmup):
            warm = Workload(1, workload.input_words, workload.output_tokens, seed=-1 - index)
            await sender.send(prompts(warm)[0])
        begin = time.perf_counter()
        samples = await (_open_loop if workload.rate else _closed_loop)(sender, texts, workload, done)
        return figures(samples, time.perf_counter() - begin)


async def _closed_loop(
    sender: _Sender, texts: list[str], workload: Workload, done: Callable[[Sample], None]
) -> list[Sample]:
    samples: list[Sample] = []
    remaining = iter(texts)

    async def client() -> None:
        for text in remaining:
            samples.append(await sender.send(text))
            done(samples[-1])

    await asyncio.gather(*(client() for _ in range(workload.concurrency)))
    return samples


async def _open_loop(
    sender: _Sender, texts: list[str], workload: Workload, done: Callable[[Sample], None]
) -> list[Sample]:
    assert workload.rate is not None
    gaps = random.Random(workload.seed + 1)
    # Each at its own time from the beginning: sleeping from one to the next would add up what the loop is late by.
    when = time.perf_counter()

    async def client(text: str, at: float) -> Sample:
        await asyncio.sleep(at - time.perf_counter())
        sample = await sender.send(text)
        done(sample)
        return sample

    clients = []
    for text in texts:
        clients.append(client(text, when))
        when += gaps.expovariate(workload.rate)
    return await asyncio.gather(*clients)


class _Sender:
    """Sends one request at a time and takes its times."""

    def __init__(self, session: aiohttp.ClientSession, url: str, model: str | None, output_tokens: int) -> None:
        self._session = session
        self._url = url
        self._body = {
            "max_tokens": output_tokens,
            "min_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        } | ({"model": model} if model else {})

    async def send(self, prompt: str) -> Sample:
        """One request; what goes wrong is in the sample."""
        sample = Sample(time.perf_counter())
        try:
            async with self._session.post(self._url, json={"prompt": prompt, **self._body}) as response:
                if response.status == 200:
                    await self._read(response, sample)
                else:
                    sample.error = f"HTTP {response.status}: {(await response.text())[:200]}"
        except (aiohttp.ClientError, msgspec.DecodeError, TimeoutError) as error:
            sample.error = f"{type(error).__name__}: {error}"
        sample.end = time.perf_counter()
        return sample

    async def _read(self, response: aiohttp.ClientResponse, sample: Sample) -> None:
        decoder = msgspec.json.Decoder(_Chunk)
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            chunk = decoder.decode(line[6:])
            if chunk.error is not None:
                sample.error = str(chunk.error.get("message"))
            if any(choice.text for choice in chunk.choices):
                sample.arrivals.append(time.perf_counter())
            if chunk.usage is not None:
                sample.prompt_tokens = chunk.usage.prompt_tokens
                sample.output_tokens = chunk.usage.completion_tokens
        sample.output_tokens = sample.output_tokens or len(sample.arrivals)


def figures(samples: list[Sample], wall: float) -> Figures:
    """Throughput over `wall` seconds, and the spread of TTFT, TPOT, ITL and end-to-end times of what succeeded."""
    good = [sample for sample in samples if sample.error is None]
    failed = [sample for sample in samples if sample.error is not None]
    output = sum(sample.output_tokens for sample in good)
    prompt = sum(sample.prompt_tokens for sample in good)
    decoded = [sample for sample in good if sample.output_tokens > 1 and sample.arrivals]
    return {
        "requests": len(samples),
        "errors": len(failed),
        "first_error": failed[0].error if failed else None,
        "wall_s": wall,
        "input_tokens": prompt,
        "output_tokens": output,
        "requests_per_s": len(good) / wall,
        "output_tokens_per_s": output / wall,
        "total_tokens_per_s": (prompt + output) / wall,
        **spread("ttft", [sample.arrivals[0] - sample.start for sample in good if sample.arrivals]),
        **spread(
            "tpot",
            [(one.arrivals[-1] - one.arrivals[0]) / (one.output_tokens - 1) for one in decoded],
        ),
        **spread("itl", [later - earlier for sample in good for earlier, later in pairwise(sample.arrivals)]),
        **spread("e2e", [sample.end - sample.start for sample in good]),
    }
