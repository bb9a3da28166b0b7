"""One device's part of the model: weights, KV cache, executables, and the runner that drives them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

import torch

from core.defaults import EagerExecutable
from core.errors import Unsupported
from core.layers.base import Parameter
from core.logits import ReferenceLogits
from core.logs import get_logger
from core.platform import (
    Bindings,
    BlockFormat,
    Bucket,
    Executable,
    Health,
    KVLayout,
    MemoryPlan,
    Plan,
    Platform,
    Progress,
)
from core.program import Storage
from core.recording import LOGITS, record_model
from core.runner.arena import plan_arena
from core.runner.attention import attention_query, choose_attention
from core.runner.batch import BatchState, holds, pick_bucket
from core.runner.blocks import BlockMover
from core.runner.inputs import InputBuffers
from core.runner.kernels import resolve_kernels
from core.runner.model_runner import ModelRunner
from core.runner.pooling import PoolingRunner
from core.sampling import make_sampler
from core.structured.guidance import Matchers
from core.transfer import open_blocks
from core.types import DType, KVGroupSpec, KVTransferStats, SamplingParams, StepOutput, StepPlan
from core.weights import loader
from core.weights.placement import plan_parts
from core.weights.quantized import open_weights

log = get_logger("runner")

_WARMUP_TOKENS = 32


class Worker:
    """Made by an executor, on the thread that will use it."""

    def __init__(self, platform: Platform, plan: Plan) -> None:
        torch.set_grad_enabled(False)  # of this thread
        self._platform = platform
        self._config = plan.config
        self._memory = platform.memory()
        self._model = record_model(self._config)
        self._attention = choose_attention(platform.attention(), self._model.attention_layers, self._config)
        self._kernels = resolve_kernels(
            platform, self._attention, self._model.program, fallback=self._config.platform.op_fallback
        )
        capabilities = platform.capabilities()
        self._buckets = self._useful_buckets(capabilities.buckets)
        self._parts = plan_parts(
            self._config, self._model.program, self._model.parameters, capabilities.quantization
        )  # of the weights that are kept quantised
        self._limits = self._step_limits()
        self._arena = plan_arena(self._model.program, self._limits)
        self._handles: dict[int, Any] = {}
        self._arena_handle: Any = None
        self._executables: dict[Bucket | None, Executable] = {}
        self._blocks: BlockMover | None = None
        self._runner: ModelRunner | None = None

    def _useful_buckets(self, declared: tuple[Bucket, ...]) -> tuple[Bucket, ...]:
        """The buckets that steps of this configuration can come to need. Raises Unsupported where some step has none."""
        scheduler = self._config.scheduler
        limits = Bucket(scheduler.max_num_batched_tokens, scheduler.max_num_seqs, scheduler.max_model_len)
        if declared and not any(holds(bucket, limits) for bucket in declared):
            raise Unsupported(
                f"a step of {limits.num_tokens} tokens and {limits.num_seqs} sequences with {limits.context} positions",
                f"no bucket of the platform holds it, the largest is {max(declared)}; "
                "lower --max-num-batched-tokens, --max-num-seqs or --max-model-len",
            )
        steps = (_within(bucket, limits) for bucket in declared)
        return tuple(sorted({pick_bucket(declared, s.num_tokens, s.num_seqs, s.context) for s in steps}))

    def _step_limits(self) -> Bucket:
        scheduler = self._config.scheduler
        if not self._buckets:
            return Bucket(scheduler.max_num_batched_tokens, scheduler.max_num_seqs)
        return Bucket(max(b.num_tokens for b in self._buckets), max(b.num_seqs for b in self._buckets))

    # --- planning ---

    def kv_groups(self) -> Sequence[KVGroupSpec]:
        """The model's KV groups."""
        return self._model.groups

    def plan_memory(self) -> MemoryPlan:
        """Bytes by use, from shapes alone; the KV cache as large as the configuration allows and can use."""
        budget = self._config.cache.memory_bytes or 0
        block_format = self._block_format()
        block_bytes = sum(block_format.block_bytes)
        return MemoryPlan(
            weights=sum(map(self._weight_size, self._model.parameters)),
            activations=self._memory.alloc_size((max(self._arena.size, 1),), DType.UINT8),
            inputs=sum(self._memory.alloc_size(shape, dtype) for shape, dtype in self._io_shapes().values()),
            kv_block_bytes=block_bytes,
            num_blocks=min(budget // block_bytes, self._useful_blocks()) if block_bytes else self._useful_blocks(),
            block_size=self._config.cache.block_size,
            free=self._memory.info().free,
            block_format=block_format,
        )

    def _weight_size(self, parameter: Parameter) -> int:
        value = parameter.value
        shape, parts = value.resolve(0, 0), self._parts.get(value.index)
        if parts is None:
            return self._memory.alloc_size(shape, value.dtype)
        return self._memory.quantized_size(shape, value.dtype, parts)

    def _kv_layouts(self) -> dict[int, KVLayout]:
        return {
            spec.layer: self._attention.kv_layout(attention_query(spec, self._config))
            for spec in self._model.attention_layers
        }

    def _block_format(self) -> BlockFormat:
        layouts = self._kv_layouts()
        shapes = [
            f"{layout.planes}x{'x'.join(map(str, layout.block_shape))}:{layout.dtype}" for layout in layouts.values()
        ]
        sizes = [sum(layouts[layer].block_bytes for layer in group.layers) for group in self._model.groups]
        return BlockFormat(f"{self._attention.name}/{'+'.join(sorted(set(shapes)))}", tuple(sizes))

    def _useful_blocks(self) -> int:
        """Blocks beyond which no more requests could run: every row with a full context, and the null block."""
        return self._config.scheduler.max_num_seqs * self._model.max_blocks + 1

    def _io_shapes(self) -> dict[int, tuple[tuple[int, ...], Any]]:
        program, limits = self._model.program, self._limits
        values = [*program.of(Storage.INPUT), *program.of(Storage.OUTPUT)]
        return {v.index: (v.resolve(limits.num_tokens, limits.num_seqs), v.dtype) for v in values}

    # --- loading ---

    def load(self, progress: Progress) -> None:
        """Read the weights, and allocate what a step needs beside the KV cache."""
        model = self._config.model
        if model.load_format == "dummy":
            seed = self._config.options.seed
            self._handles = loader.dummy_parameters(
                self._model.parameters, self._memory, progress, self._parts, seed=seed
            )
        else:
            with closing(open_weights(self._config)) as reader:
                parameters = loader.matched_names(self._model.parameters, reader.tensors())
                self._handles = loader.load_parameters(parameters, reader, self._memory, progress, self._parts)
                unused = loader.unused_tensors(parameters, reader.tensors())
            if unused:
                log.warning("%d tensors of the checkpoint are not used, the first is %s", len(unused), unused[0])
        for index, (shape, dtype) in self._io_shapes().items():
            self._handles[index] = self._memory.alloc(shape, dtype, "inputs")
        self._arena_handle = self._memory.alloc((max(self._arena.size, 1),), DType.UINT8, "activations")

    def measure_kv_budget(self) -> int:
        """Bytes for the KV cache: what the configuration grants, if the device still has it."""
        return min(self._config.cache.memory_bytes or 0, self._memory.info().free)

    def allocate_kv(self, num_blocks: int) -> None:
        """Make every layer's blocks, the connector that moves them, and the runner that uses them."""
        self._blocks = self._make_blocks(num_blocks)
        scheduler, cache = self._config.scheduler, self._config.cache
        model, kernels = self._model, self._platform.logits_kernels() or ReferenceLogits()
        sampler = make_sampler(self._config, kernels)
        described = self._config.model
        self._matchers = Matchers(described.tokenizer_path, described.vocab_size, described.eos_token_ids)
        program = model.program
        inputs = InputBuffers(program.named(Storage.INPUT), self._handles, self._memory, self._limits)
        runner = ModelRunner if self._config.model.pooler is None else PoolingRunner
        self._runner = runner(
            batch=BatchState(
                scheduler.max_num_seqs,
                scheduler.max_model_len,
                model.max_blocks,
                len(model.groups),
                cache.block_size,
                sampler.is_argmax,
                self._matchers.start,
                inputs.arrays,
                position_offset=model.position_offset,
            ),
            sampler=sampler,
            logits_kernels=kernels,
            executable_for=self._executable_for,
            buckets=self._buckets,
            inputs=inputs,
            logits=self._handles[program.named(Storage.OUTPUT)[LOGITS].index],
            memory=self._memory,
            blocks=self._blocks,
        )

    def _make_blocks(self, num_blocks: int) -> BlockMover:
        caches = self._model.program.named(Storage.CACHE)
        layouts = self._kv_layouts()
        layers: dict[int, tuple[Any, ...]] = {}
        for layer, layout in layouts.items():
            shape = (num_blocks, *layout.block_shape)
            planes = tuple(self._memory.alloc(shape, layout.dtype, "kv") for _ in range(layout.planes))
            layers[layer] = self._handles[caches[f"kv.{layer}"].index] = planes
        sizes = {layer: layout.block_bytes for layer, layout in layouts.items()}
        transfer = open_blocks(self._config, self._block_format())
        return BlockMover(self._attention, self._model.groups, layers, sizes, transfer)

    # --- running ---

    def _executable_for(self, shape: Bucket) -> Executable:
        key = shape if self._buckets else None
        executable = self._executables.get(key)
        if executable is None:
            executable = self._executables[key] = self._compile(key)
        return executable

    def _compile(self, bucket: Bucket | None) -> Executable:
        bindings = Bindings(
            program=self._model.program,
            handles=self._handles,
            arena=self._arena_handle,
            offsets=self._arena.offsets,
            limits=self._limits,
            kernels=self._kernels,
        )
        compiled = self._platform.compile(bindings, bucket) if self._config.platform.compile else None
        return compiled if compiled is not None else EagerExecutable(bindings)

    def warmup(self, progress: Progress) -> None:
        """Run each bucket, or a decode and a short prefill, on the null block: every weight and kernel is touched."""
        shapes = self._buckets or (Bucket(1, 1), Bucket(min(_WARMUP_TOKENS, self._limits.num_tokens), 1))
        for done, shape in enumerate(shapes, 1):
            self._ready().idle(shape)
            progress("warming up", done / len(shapes))

    def execute(self, plan: StepPlan) -> StepOutput:
        """Carry out one plan."""
        return self._ready().execute(plan)

    def _ready(self) -> ModelRunner:
        if self._runner is None:
            raise RuntimeError("allocate_kv comes before the first step")
        return self._runner

    def prepared(self, params: SamplingParams) -> bool:
        """Whether the grammar of the answer is compiled, if it has one. Comes from another thread, as the next does."""
        form = params.structured_outputs
        return form is None or self._matchers.ready(form)

    def kv_transfers(self) -> KVTransferStats:
        """What the KV connector has done."""
        blocks = self._blocks
        return blocks.stats() if blocks is not None else KVTransferStats()

    def health(self) -> Health:
        """A worker that answers is healthy."""
        return Health(ok=True)

    def shutdown(self) -> None:
        """Give all memory back. May be called twice."""
        self._runner = None
        if self._blocks is not None:
            self._blocks.close()
            self._blocks = None
        executables, self._executables = self._executables, {}
        for executable in executables.values():
            executable.close()
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            for plane in handle if isinstance(handle, tuple) else (handle,):
                self._memory.free(plane)
        if self._arena_handle is not None:
            self._memory.free(self._arena_handle)
            self._arena_handle = None


def _within(bucket: Bucket, limits: Bucket) -> Bucket:
    """The largest step that falls into a bucket and keeps to the limits."""
    return Bucket(
        min(bucket.num_tokens, limits.num_tokens),
        min(bucket.num_seqs, limits.num_seqs),
        min(bucket.context or limits.context, limits.context),
    )
