"""Traces of requests: JSON lines from a file, or made by a seed.

A line is `{"arrival": 1.5, "prompt_tokens": 512, "output_tokens": 128}`: seconds from the start, and lengths in tokens.
`prompt_tokens` may be a list of token ids instead. Optional: `priority`; `prefix` and `prefix_tokens`, a name and how many
of the prompt's first tokens all requests of that name share. Lines of Mooncake's traces (Qin et al., FAST 2025) are
read as well: `timestamp` in milliseconds, `input_length`, `output_length`, and `hash_ids`, a name for each 512 tokens
of the prompt.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from core.errors import ConfigError

#: Tokens that one of Mooncake's `hash_ids` stands for.
MOONCAKE_BLOCK = 512

_Count = Annotated[int, Meta(ge=1)]


class TraceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `shared` are the pieces that its prompt begins with, (name, tokens) in order: equal names, equal
    tokens. `token_ids` is the prompt itself where the trace gives it; `line` where it stands, from 1."""

    arrival: float
    prompt_tokens: int
    output_tokens: int
    priority: int = 0
    shared: tuple[tuple[str, int], ...] = ()
    token_ids: list[int] | None = None
    line: int = 0


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    arrival: Annotated[float, Meta(ge=0)]
    prompt_tokens: _Count | Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
    output_tokens: _Count
    priority: int = 0
    prefix: str | int | None = None
    prefix_tokens: _Count | None = None

    def request(self, line: int) -> TraceRequest:
        """Raises ValueError where the fields contradict each other."""
        token_ids = self.prompt_tokens if isinstance(self.prompt_tokens, list) else None
        length = len(token_ids) if token_ids is not None else self.prompt_tokens
        assert isinstance(length, int)
        shared: tuple[tuple[str, int], ...] = ()
        if (self.prefix is None) != (self.prefix_tokens is None):
            raise ValueError("`prefix` and `prefix_tokens` belong together; give both or neither")
        if self.prefix is not None and self.prefix_tokens is not None:
            if token_ids is not None:
                raise ValueError("`prefix` names tokens, and `prompt_tokens` lists them; give one of the two")
            if self.prefix_tokens > length:
                raise ValueError(f"`prefix_tokens` {self.prefix_tokens} is more than the {length} of `prompt_tokens`")
            shared = ((str(self.prefix), self.prefix_tokens),)
        return TraceRequest(
            arrival=self.arrival,
            prompt_tokens=length,
            output_tokens=self.output_tokens,
            priority=self.priority,
            shared=shared,
            token_ids=token_ids,
            line=line,
        )


class _MooncakeLine(msgspec.Struct):  # what other tools add to such lines is of no interest here
    timestamp: Annotated[float, Meta(ge=0)]
    input_length: _Count
    output_length: _Count
    hash_ids: list[int] = []

    def request(self, line: int) -> TraceRequest:
        """Raises ValueError where there are more or fewer names than blocks."""
        blocks = -(-self.input_length // MOONCAKE_BLOCK)
        if self.hash_ids and len(self.hash_ids) != blocks:
            raise ValueError(
                f"`hash_ids` has {len(self.hash_ids)} names for {self.input_length} tokens; give {blocks}, one for each "
                f"{MOONCAKE_BLOCK} tokens, or none"
            )
        left = self.input_length
        shared = []
        for name in self.hash_ids:
            shared.append((str(name), min(left, MOONCAKE_BLOCK)))
            left -= MOONCAKE_BLOCK
        return TraceRequest(
            arrival=self.timestamp / 1000,
            prompt_tokens=self.input_length,
            output_tokens=self.output_length,
            shared=tuple(shared),
            line=line,
        )


def read_trace(path: str) -> list[TraceRequest]:
    """The requests of a file in order of arrival. Raises ConfigError naming the line and the fix."""
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise ConfigError("--trace", f"cannot read {path!r}: {error.strerror}") from error
    own, mooncake = msgspec.json.Decoder(_Line), msgspec.json.Decoder(_MooncakeLine)
    requests = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            requests.append((mooncake if b'"timestamp"' in line else own).decode(line).request(number))
        except (msgspec.DecodeError, ValueError) as error:
            raise ConfigError(
                "--trace",
                f"{path}, line {number}: {error}; a line is "
                '{"arrival": SECONDS, "prompt_tokens": N, "output_tokens": N}',
            ) from error
    if not requests:
        raise ConfigError("--trace", f"{path} has no request in it")
    return sorted(requests, key=lambda request: request.arrival)


def synthetic_trace(
    count: int, *, rate: float | None, input_len: int, output_len: int, prefix_len: int, max_model_len: int, seed: int
) -> list[TraceRequest]:
    """`count` equal requests with Poisson arrivals, `rate` a second; without a rate all are there at the start.

    The first `prefix_len` tokens of all prompts are the same. Raises ConfigError for lengths that cannot be.
    """
    if input_len + output_len > max_model_len:
        raise ConfigError(
            "--input-len",
            f"{input_len} and --output-len {output_len} are more than the context of {max_model_len}; lower them, or raise "
            "--max-model-len",
        )
    if prefix_len > input_len:
        raise ConfigError("--prefix-len", f"{prefix_len} is more than the {input_len} tokens of --input-len")
    gaps, now = random.Random(seed), 0.0
    shared = (("prefix", prefix_len),) if prefix_len else ()
    requests = []
    for number in range(1, count + 1):
        requests.append(
            TraceRequest(arrival=now, prompt_tokens=input_len, output_tokens=output_len, shared=shared, line=number)
        )
        now += gaps.expovariate(rate) if rate else 0.0
    return requests


def check_lengths(requests: Sequence[TraceRequest], max_model_len: int, vocab_size: int) -> None:
    """Raises ConfigError naming the first line that the model cannot serve, and the fix."""
    for request in requests:
        length = request.prompt_tokens + request.output_tokens
        if length > max_model_len:
            raise ConfigError(
                "--trace",
                f"line {request.line}: {request.prompt_tokens} prompt and {request.output_tokens} output tokens are more "
                f"than the context of {max_model_len}; raise --max-model-len, or leave the line out",
            )
        if request.token_ids is not None and max(request.token_ids) >= vocab_size:
            raise ConfigError(
                "--trace",
                f"line {request.line}: token id {max(request.token_ids)} is not in the vocabulary of {vocab_size}",
            )
