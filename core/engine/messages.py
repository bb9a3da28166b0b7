"""What the processes of a server say to each other: msgspec structs as msgpack, over pipes and `core.engine.transport`.

    parent ── Birth (stdin) ──> child ── reports (pipe) ──> parent
    frontend ── Hello ──> supervisor ── StateChange ──> frontend
    frontend ── ToEngine ──> engine ── FromEngine ──> frontend

Each incarnation of the engine binds an endpoint of its own, so nothing that an old one said can be mistaken for
the new one's. Torch-free.
"""

from __future__ import annotations

import importlib
import struct
from typing import Any, Literal

import msgspec

from core.config import Config
from core.errors import CoreError, DeadlineExceeded, InvalidRequest, NotFound, QueueFull, RequestError
from core.platform import ChosenPlatform, MemoryPlan, Override, Plan
from core.types import EngineRequest, EngineStats, RequestDelta

# --- how the engine is ---------------------------------------------------------------------------------------


class EngineStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the engine is, as `/readyz` and the terminal show it. `memory_plan` is in bytes; empty until planned."""

    state: Literal["starting", "loading", "ready", "restarting", "failed", "draining"] = "starting"
    stage: str = ""  # what is being done while loading
    progress: float = 0.0  # of that stage, 0 to 1
    message: str = ""  # why it restarts or failed
    restarts: int = 0  # engines that died since the server started
    platform: str = ""
    memory_plan: dict[str, int] = {}


# --- frontend and engine -------------------------------------------------------------------------------------


class Submit(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A new request, or one that an earlier engine did not finish."""

    request: EngineRequest


class Abort(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The client of this request has gone."""

    request_id: str


class GetStats(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answered by `Stats`."""


class ResetPrefixCache(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Answered by `Reset`."""


ToEngine = Submit | Abort | GetStats | ResetPrefixCache


class Deltas(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """All that one step gave the requests of one frontend."""

    deltas: list[RequestDelta]


class Rejected(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A RequestError, field by field."""

    request_id: str
    kind: str
    message: str
    param: str | None = None
    code: str | None = None
    retry_after_s: float = 1.0


class Stats(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `GetStats`."""

    stats: EngineStats


class Reset(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The answer to `ResetPrefixCache`: whether it was done."""

    done: bool


FromEngine = Deltas | Rejected | Stats | Reset

_KINDS: dict[str, type[RequestError]] = {
    kind.__name__: kind for kind in (RequestError, InvalidRequest, NotFound, DeadlineExceeded)
}


def rejection(request_id: str, error: RequestError) -> Rejected:
    """The error as a message."""
    retry_after_s = error.retry_after_s if isinstance(error, QueueFull) else 1.0
    return Rejected(request_id, type(error).__name__, error.message, error.param, error.code, retry_after_s)


def request_error(rejected: Rejected) -> RequestError:
    """The error that `rejection` was given; a kind of error that is unknown here becomes a plain RequestError."""
    if rejected.kind == QueueFull.__name__:
        return QueueFull(rejected.message, retry_after_s=rejected.retry_after_s)
    kind = _KINDS.get(rejected.kind, RequestError)
    return kind(rejected.message, param=rejected.param, code=rejected.code)


# --- frontend and supervisor ---------------------------------------------------------------------------------


class Hello(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A frontend wants to be told of every change of state, beginning with the state as it is.

    With `incarnation`: it has done so, and sends requests to that engine now.
    """

    pid: int
    incarnation: int = 0


class StateChange(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's state. `endpoint` and `config`, as the platform planned it, are set while an engine serves."""

    status: EngineStatus
    incarnation: int = 0  # counts the engines of this server from 1
    endpoint: str | None = None
    config: Config | None = None


# --- parent and child ----------------------------------------------------------------------------------------


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What an engine is told."""

    factory: str  # module:callable, called as `core.engine.core:Engine.build`
    config: Config
    chosen: ChosenPlatform
    endpoint: str


class FrontendSpec(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What a frontend is told. SIGTERM asks it to drain and end."""

    entry: str  # module:callable, called as entry(config, options, listen_fd, control_endpoint)
    options_type: str  # module:type that `options` are decoded into
    options: msgspec.Raw
    config: Config
    listen_fd: int
    control_endpoint: str
    num_frontends: int = 1  # of this server


Spec = EngineSpec | FrontendSpec


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """The first thing a child process reads on its stdin. Closing that stdin afterwards asks an engine to end."""

    parent_pid: int
    report_fd: int
    spec: Spec


class Progress(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """How far the start-up is: `fraction` of `stage`, 0 to 1."""

    stage: str
    fraction: float


class Planned(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the platform decided, and where the memory will go, in bytes; known before any weight is read."""

    config: Config
    overrides: tuple[Override, ...]
    memory_plan: dict[str, int]


class Ready(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The engine's endpoint is bound and requests may come."""


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Why the process is about to end. `expected`: the error is one of core's own, and says what to do."""

    message: str
    expected: bool


Report = Progress | Planned | Ready | Failed


def planned(plan: Plan, memory: MemoryPlan) -> Planned:
    """The platform's plan and the memory plan as a report."""
    sizes = {**memory.sizes(), "num_blocks": memory.num_blocks, "block_size": memory.block_size}
    return Planned(plan.config, plan.overrides, sizes)


def failed(error: Exception) -> Failed:
    """What ended the process, as a report."""
    expected = isinstance(error, CoreError)
    return Failed(str(error) if expected else f"{type(error).__name__}: {error}", expected)


# --- bytes ---------------------------------------------------------------------------------------------------

#: A message on a pipe is preceded by its length.
LENGTH = struct.Struct("<I")

encode = msgspec.msgpack.Encoder().encode


def frame(message: Any) -> bytes:
    """`message` as it goes through a pipe."""
    body = encode(message)
    return LENGTH.pack(len(body)) + body


def load_name(name: str) -> Any:
    """What `module:attribute.path` names. Raises ImportError, AttributeError."""
    module, _, path = name.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in path.split("."):
        found = getattr(found, attribute)
    return found
