"""The contract between the core and a hardware platform.

Whatever differs between devices is data here (`Capabilities`, `KVLayout`, `Plan`) or a call on these classes; the
core never asks which vendor it runs on. A platform is a plugin (`core.hookspecs`) that makes one `Platform`. What
is abstract must be given; the rest has defaults that serve: memory through torch, the reference attention, an
executor in this process.

Tensor handles are opaque to the core: it gets them from `MemoryBackend.alloc` and passes them to kernels. Only the
default implementations, which are torch's, look inside.

One file, longer than most: it is what a backend's author reads from top to bottom.
"""

from __future__ import annotations

import abc
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from core.clock import Clock, MonotonicClock
from core.config import Config
from core.errors import Unsupported
from core.program import OpProgram, Value
from core.types import (
    SAMPLING_FEATURES,
    DType,
    KVGroupSpec,
    KVTransferStats,
    SamplingParams,
    StepOutput,
    StepPlan,
)

if TYPE_CHECKING:
    from core.logits import LogitsKernels  # it needs numpy, which choosing a platform does not

#: (major, minor) of this contract. A plugin loads if its major is equal and its minor not greater.
API_VERSION = (1, 2)

Kernel = Callable[..., None]
Progress = Callable[[str, float], None]  # (what is being done, fraction done of it)


# --- what a plugin says of itself ----------------------------------------------------------------------------


class PluginInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who made the plugin, and which contract it was written for.

    `options` declares what `--platform-opt NAME.KEY=VALUE` may say: a Struct whose fields are the keys, each with a
    default, and a `msgspec.Meta(description=…)` for people. What it does not fit is refused before the probe.
    """

    name: str
    vendor: str
    version: str
    api: tuple[int, int]
    replaces: tuple[str, ...] = ()  # platforms that this one stands in for when both are available
    experimental: bool = False  # never chosen unless asked for by name
    options: type[msgspec.Struct] | None = None  # None: it has no options


class DeviceInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One device. `memory_bytes` is its whole memory, 0 where it cannot be told without waking the device."""

    index: int
    name: str
    memory_bytes: int = 0
    details: dict[str, str] = {}


class ProbeEnv(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe may look at besides the machine: the platform's own options, as text.

    They have been held against `PluginInfo.options`; `core.hookspecs.parse_own_options` converts them.
    """

    options: dict[str, str] = {}


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found, without creating a context or any other side effect.

    ABSENT: no such hardware, or this install cannot drive it; `reason` says what to install. BROKEN: it should work
    here and does not. The AVAILABLE platform with the highest `score` is chosen; the CPU's is 0, an accelerator's 100.
    """

    state: Literal["AVAILABLE", "ABSENT", "BROKEN"]
    reason: str
    devices: tuple[DeviceInfo, ...] = ()
    score: int = 0


class PlatformContext(msgspec.Struct, frozen=True, kw_only=True):
    """What `create_platform` gets: the options given with `--platform-opt NAME.KEY=VALUE`, as in `ProbeEnv`."""

    options: dict[str, str] = {}


# --- data ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Support:
    """Whether something is supported, and if not, why."""

    ok: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.ok


@dataclass(frozen=True, order=True)
class Bucket:
    """A step shape: at most this many tokens and sequences, padded up to exactly that.

    `context`: the most KV positions that any of the sequences may have, its tokens of this step included; 0: any.
    """

    num_tokens: int
    num_seqs: int
    context: int = 0


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What the platform's devices can do. Whatever is not declared is refused before it can fail.

    `buckets`: the only step shapes that can run; empty means any. `deterministic`: the same step gives the same
    bits; `batch_invariant`: a request's tokens do not depend on what else is in the batch, on chunking, on prefix
    hits or on preemption. `sampling`: which of `core.types.SAMPLING_FEATURES` are honoured; the core's own sampler,
    which the default worker uses, honours them all. `kv_transfer`: the attention backends export and import blocks.
    `quantization`: the schemes that `MemoryBackend.alloc_quantized` takes; `ONLINE_SCHEMES` of them quantise a float
    weight as it is uploaded, the others are GGUF's block types in lower case ("q4_k").
    """

    dtypes: tuple[DType, ...]
    kv_dtypes: tuple[DType, ...]
    quantization: tuple[str, ...] = ()
    buckets: tuple[Bucket, ...] = ()
    max_parallel_size: int = 1
    deterministic: bool = False
    batch_invariant: bool = False
    sampling: tuple[str, ...] = SAMPLING_FEATURES
    kv_transfer: bool = False


class Override(msgspec.Struct, frozen=True, kw_only=True):
    """One option that the platform decided or changed, and why. `option` is a field of `core.config.Options`."""

    option: str
    value: str
    reason: str


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration as this platform will run it, as a new object."""

    config: Config
    overrides: tuple[Override, ...] = ()


@dataclass(frozen=True)
class KVLayout:
    """How one layer's KV blocks lie in memory: `planes` tensors of [num_blocks, *block_shape]."""

    block_shape: tuple[int, ...]
    dtype: DType
    planes: int = 2  # keys and values; one where they share a latent

    @property
    def block_bytes(self) -> int:
        """Bytes of one block, all planes."""
        return self.planes * math.prod(self.block_shape) * self.dtype.itemsize


@dataclass(frozen=True)
class AttentionQuery:
    """What a layer asks of an attention backend."""

    head_dim: int
    num_heads: int
    num_kv_heads: int
    window: int | None
    dtype: DType
    kv_dtype: DType
    block_size: int


# --- memory --------------------------------------------------------------------------------------------------

#: Schemes that `MemoryBackend.upload` quantises to. int8: symmetric, one scale an output (row). int4: a scale and a
#: minimum for each 32 inputs of an output, as GGUF's Q4_1.
ONLINE_SCHEMES = ("int8", "int4")


@dataclass(frozen=True)
class QuantizedRows:
    """Rows of a weight that are kept in one scheme of `Capabilities.quantization`; None: in the weight's own dtype."""

    rows: int
    scheme: str | None


@dataclass(frozen=True)
class MemoryInfo:
    """Bytes of device memory: all of it, and what this process could still take."""

    total: int
    free: int


class MemoryBackend(abc.ABC):
    """Device memory. Every persistent byte of the engine goes through it, so a plan can be held against it."""

    @abc.abstractmethod
    def info(self) -> MemoryInfo:
        """Total and free bytes now."""

    @abc.abstractmethod
    def alloc_size(self, shape: Sequence[int], dtype: DType) -> int:
        """Bytes that `alloc` would take, rounding included."""

    @abc.abstractmethod
    def alloc(self, shape: Sequence[int], dtype: DType, usage: str) -> Any:
        """A zeroed tensor handle; `usage` is weights, kv, activations or inputs. Raises OutOfDeviceMemory."""

    @abc.abstractmethod
    def free(self, handle: Any) -> None:
        """Give a handle back. Raises ValueError on one that this backend does not hold."""

    @abc.abstractmethod
    def upload(self, handle: Any, data: Any, *, row: int = 0) -> None:
        """Copy a host torch tensor into rows `row …` of a handle, converting the element type."""

    @abc.abstractmethod
    def download(self, handle: Any) -> Any:
        """The contents of a handle as a host torch tensor."""

    def host_view(self, handle: Any) -> Any:
        """The handle as a host torch tensor that is its very memory, or None where the host cannot reach it.

        The core then writes a step's inputs and reads its logits there, between two runs, and copies neither.
        """
        del handle
        return None

    @abc.abstractmethod
    def in_use(self) -> Mapping[str, int]:
        """Bytes held now, by usage."""

    # Needed where `Capabilities.quantization` is declared.

    def quantized_size(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> int:
        """Bytes that `alloc_quantized` would take."""
        raise _not_quantized(shape, parts)

    def alloc_quantized(self, shape: Sequence[int], dtype: DType, parts: Sequence[QuantizedRows]) -> Any:
        """A weight [outputs, inputs] for `linear` and `embedding`, zero until it is filled, of usage weights.

        `parts` lie one below the other; their rows add up to the outputs. `dtype` is what the weight reads as, and what
        parts without a scheme are kept in. `upload` quantises float rows that fall into a part of an online scheme;
        `download` gives the values that the kernels multiply by. Raises OutOfDeviceMemory; Unsupported for a scheme
        that is not declared, or inputs that its blocks do not divide.
        """
        raise _not_quantized(shape, parts)

    def upload_blocks(self, handle: Any, blocks: Any, scheme: str, *, row: int = 0) -> None:
        """Fill rows `row …`, all of them of one part, with what a file keeps in GGUF's block type `scheme`.

        blocks: host torch uint8 [rows, bytes of a row], the blocks of a row one after the other. The weight then reads
        as `core.weights.gguf` would dequantise them, within the scheme's bound (docs/quantization.md). Raises ValueError
        if they do not fit.
        """
        raise Unsupported(f"weights in {scheme}", f"{type(self).__name__} keeps none quantised")

    def synchronize(self) -> None:  # noqa: B027 - nothing to wait for is a fine default
        """Wait for the device to finish what it was given."""


def _not_quantized(shape: Sequence[int], parts: Sequence[QuantizedRows]) -> Unsupported:
    schemes = ", ".join(sorted({part.scheme or "no scheme" for part in parts}))
    return Unsupported(f"a weight {list(shape)} of {schemes}", "this platform's memory keeps none quantised")


# --- kernels -------------------------------------------------------------------------------------------------


class KernelTable(abc.ABC):
    """The platform's kernels by op name. Claiming `core.ops.REFERENCE[op]` is allowed where the device is torch's."""

    @abc.abstractmethod
    def supports(self, op: str) -> Support:
        """Whether there is a kernel for `op`."""

    @abc.abstractmethod
    def get(self, op: str) -> Kernel:
        """The kernel, called as `kernel(*inputs, *outputs, **attrs)`. Raises Unsupported.

        Arguments are handles, or views of them: with the default memory torch tensors, whose rows may lie apart. An
        optional input that is left out, as linear's bias, is None. Outputs are overwritten and never alias an input.
        """


class AttentionBackend(abc.ABC):
    """Attention over the paged cache: it owns the layout, so it writes, reads and moves the blocks."""

    name: str

    @abc.abstractmethod
    def supports(self, query: AttentionQuery) -> Support:
        """Whether this backend can serve such a layer."""

    @abc.abstractmethod
    def kv_layout(self, query: AttentionQuery) -> KVLayout:
        """How such a layer's blocks lie in memory."""

    @abc.abstractmethod
    def write_kv(self, key: Any, value: Any, cache: Sequence[Any], slot_mapping: Any) -> None:
        """The kernel of op `kv_write`."""

    @abc.abstractmethod
    def forward(self, *args: Any, **attrs: Any) -> None:
        """The kernel of op `attention`."""

    @abc.abstractmethod
    def copy_blocks(self, cache: Sequence[Any], pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks of one layer, (source, destination) in order."""

    def export_blocks(self, cache: Sequence[Any], blocks: Sequence[int]) -> Any:
        """Blocks of one layer as a host torch tensor, uint8 [len(blocks), bytes of a block], for a KV connector.

        Needed where `Capabilities.kv_transfer` is declared; so is `import_blocks`.
        """
        raise Unsupported("moving KV blocks out of the device", f"attention backend {self.name!r} cannot export them")

    def import_blocks(self, cache: Sequence[Any], blocks: Sequence[int], data: Any) -> None:
        """Fill blocks of one layer with what `export_blocks` gave, here or in another process."""
        raise Unsupported("moving KV blocks into the device", f"attention backend {self.name!r} cannot import them")


# --- programs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bindings:
    """Where a program's persistent values lie, and how its activations may.

    `handles` maps Value.index to a handle (a sequence of planes for a cache). `arena` is one uint8 handle that is
    large enough for `limits`, and `offsets` places each activation in it, in bytes, by Value.index. Places are used
    again once a value has been read for the last time, so they hold for calls in the program's order; who runs them in
    another keeps activations elsewhere, and still attends after the layer's `kv_write`, which has no outputs.
    """

    program: OpProgram
    handles: Mapping[int, Any]
    arena: Any
    offsets: Mapping[int, int]
    limits: Bucket
    kernels: Mapping[str, Kernel]  # one for each op the program uses

    def handle(self, value: Value) -> Any:
        """The handle of a persistent value."""
        return self.handles[value.owner.index]


class Executable(abc.ABC):
    """A program made ready to run."""

    @abc.abstractmethod
    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Run one step on what lies in the input buffers. Where buckets are declared, the sizes are a bucket's."""

    def close(self) -> None:  # noqa: B027 - most hold nothing that their own end does not give back
        """Give back what the device or a library holds for this program; called before its handles are freed."""


# --- executors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BlockFormat:
    """What `AttentionBackend.export_blocks` gives, all layers of a KV group one after the other.

    `layout` names the order and type of the elements: on one platform, equal models with equal layouts can exchange
    blocks. `block_bytes[group]` are the bytes of a block in each KV group.
    """

    layout: str
    block_bytes: tuple[int, ...]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of device memory by use, known before any weight is read."""

    weights: int
    activations: int
    inputs: int
    kv_block_bytes: int  # one block of every group
    num_blocks: int
    block_size: int
    free: int  # on the device, when this was planned
    block_format: BlockFormat | None = None  # given where `Capabilities.kv_transfer` is declared

    @property
    def kv_cache(self) -> int:
        """Bytes of the whole KV cache."""
        return self.kv_block_bytes * self.num_blocks

    @property
    def total(self) -> int:
        """Bytes of everything."""
        return self.weights + self.activations + self.inputs + self.kv_cache

    def sizes(self) -> dict[str, int]:
        """Bytes by use, for people and messages."""
        return {
            "weights": self.weights,
            "activations": self.activations,
            "inputs": self.inputs,
            "kv_cache": self.kv_cache,
            "total": self.total,
            "free": self.free,
        }


@dataclass(frozen=True)
class Health:
    """Whether an executor can take another step."""

    ok: bool
    reason: str = ""


@dataclass
class Ticket:
    """A submitted step."""

    step: int
    result: Any = None


class Executor(abc.ABC):
    """Runs steps on one or more devices. Calls come from one thread."""

    max_in_flight: int = 1

    @abc.abstractmethod
    def plan_memory(self) -> MemoryPlan:
        """The memory plan, from the model's shapes alone."""

    @abc.abstractmethod
    def kv_groups(self) -> Sequence[KVGroupSpec]:
        """The model's KV groups."""

    @abc.abstractmethod
    def load(self, progress: Progress) -> None:
        """Put the weights on the device."""

    @abc.abstractmethod
    def measure_kv_budget(self) -> int:
        """Bytes that the KV cache may take, measured with the weights loaded."""

    @abc.abstractmethod
    def allocate_kv(self, num_blocks: int) -> None:
        """Make the KV cache: `num_blocks` blocks in each group, block 0 the null block."""

    @abc.abstractmethod
    def warmup(self, progress: Progress) -> None:
        """Compile what has to be compiled and touch what has to be warm, so that the first request finds it so."""

    @abc.abstractmethod
    def submit(self, plan: StepPlan) -> Ticket:
        """Begin a step and return at once. At most `max_in_flight` tickets are open."""

    @abc.abstractmethod
    def collect(self, ticket: Ticket) -> StepOutput:
        """Wait for a step, oldest first. Raises DeviceLost."""

    def prepared(self, params: SamplingParams) -> bool:
        """Whether a request with these parameters can be admitted without holding up a step. It begins what that takes,
        never waits, and is asked again each turn until it is so."""
        del params
        return True

    def kv_transfers(self) -> KVTransferStats:
        """What a KV connector has been given and has brought; zeros where there is none."""
        return KVTransferStats()

    @abc.abstractmethod
    def health(self) -> Health:
        """Whether the devices still answer."""

    @abc.abstractmethod
    def shutdown(self) -> None:
        """Free everything. May be called twice."""


# --- the platform --------------------------------------------------------------------------------------------


class Platform(abc.ABC):
    """One kind of hardware. Made once in the engine process, by the plugin that was chosen."""

    #: Where the default executor finds the worker, by name: executors know no runner.
    worker: str = "core.runner.worker:Worker"

    #: Steps that the default executor takes before the first is collected; 2 lets the core schedule ahead.
    max_in_flight: int = 1

    #: What time it is for the scheduler. A platform whose time is not the machine's has one of its own.
    clock: Clock = MonotonicClock()

    @abc.abstractmethod
    def devices(self) -> Sequence[DeviceInfo]:
        """The devices, in index order."""

    @abc.abstractmethod
    def capabilities(self) -> Capabilities:
        """What they can do."""

    @abc.abstractmethod
    def plan(self, config: Config) -> Plan:
        """Decide what the user left open. Pure: no allocation, same answer every time. Raises Unsupported.

        `config.model.dtype` is what the user asked for, or what the weights are stored in; `config.options.dtype` tells
        which (`auto`), and so for the KV cache. The plan settles `model.dtype`, `cache.dtype` and `cache.memory_bytes`,
        and says why of each that it changed.
        """

    @abc.abstractmethod
    def memory(self) -> MemoryBackend:
        """The device's memory; the same object every time."""

    @abc.abstractmethod
    def kernels(self) -> KernelTable:
        """The kernels of all ops but attention's."""

    @abc.abstractmethod
    def attention(self) -> Sequence[AttentionBackend]:
        """Attention backends, best first."""

    def logits_kernels(self) -> LogitsKernels | None:
        """Kernels that choose tokens from logits that the host can read; None: the core's own, in NumPy."""
        return None

    def compile(self, bindings: Bindings, bucket: Bucket | None) -> Executable | None:
        """Make the program executable for `bucket` (any shape within the limits if None).

        Called once the weights are loaded and the KV cache is there: neither the weights nor the place of any handle
        changes afterwards. None declines: the core then calls the kernels one by one.
        """
        del bindings, bucket
        return None

    def create_executor(self, plan: Plan) -> Executor:
        """An executor for this plan; by default one worker in this process."""
        parallel = plan.config.parallel
        if parallel.world_size > 1:
            raise Unsupported(
                f"--tensor-parallel-size {parallel.tensor} --pipeline-parallel-size {parallel.pipeline}",
                f"platform {type(self).__name__} runs a model on one device; set both to 1",
            )
        module = importlib.import_module("core.distributed.uniproc")
        executor: Executor = module.UniprocExecutor(self, plan)
        return executor

    def close(self) -> None:  # noqa: B027 - so is nothing to give back
        """Give back what the platform holds. May be called twice."""


@dataclass(frozen=True)
class ChosenPlatform:
    """What the parent decided, once; child processes receive it and do not choose again."""

    name: str
    options: dict[str, str] = field(default_factory=dict)
    reason: str = ""  # what its probe said of this machine
