"""From a configuration to a recorded program: no weights, no device, only shapes.

What an executor needs to know of a model. The default worker uses it, and so may an executor of a platform's own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from core import ops
from core.config import Config
from core.layers import pool
from core.layers.base import AttentionSpec, Builder, GroupInputs, Parameter, StepContext
from core.models.registry import Classifier, HiddenModel, model_builder, pooled_model
from core.pooling import PoolerConfig
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Storage, Value
from core.types import DType, KVGroupSpec

#: The one output: float32 [num_seqs, vocab], or of a model that pools its vectors before their activation.
LOGITS = "logits"


@dataclass(frozen=True)
class RecordedModel:
    """A model's program with what it declared: parameters, attention layers and the KV groups they form."""

    program: OpProgram
    parameters: Sequence[Parameter]
    attention_layers: Sequence[AttentionSpec]
    groups: Sequence[KVGroupSpec]
    max_blocks: int  # columns of a block table
    position_offset: int = 0  # that the runner adds to each position


def record_model(config: Config) -> RecordedModel:
    """Make the model of `config` and record its forward. Raises UnsupportedModel, RecordingError, PluginLoadError."""
    program = OpProgram()
    builder = Builder(program, config.model.dtype, world=config.parallel.tensor)
    forward = _make_model(config, builder)
    groups = builder.kv_groups()
    max_blocks = -(-config.scheduler.max_model_len // config.cache.block_size)
    context = _step_context(program, builder.attention_layers, groups, max_blocks, config.cache.dtype)
    if config.model.pooler is not None:
        context = _with_pooling_inputs(program, context)
    ops.record(program, lambda: _keep(program, forward(context)))
    return RecordedModel(
        program,
        tuple(builder.parameters),
        tuple(builder.attention_layers),
        groups,
        max_blocks,
        builder.position_offset,
    )


def _keep(program: OpProgram, result: Value) -> None:
    program.keep(result, LOGITS)


def _make_model(config: Config, builder: Builder) -> Callable[[StepContext], Value]:
    """The model's weights on the builder, and what records its forward."""
    model, added = config.model, config.extensions.models
    if model.pooler is None:
        return model_builder(model.architecture, added)(builder, model.hf_config)
    return _pooled(pooled_model(model.architecture, added, model.pooler)(builder, model.hf_config), model.pooler)


def _pooled(model: HiddenModel, pooler: PoolerConfig) -> Callable[[StepContext], Value]:
    def forward(context: StepContext) -> Value:
        vectors = pool(context, model.hidden(context), pooler.pooling)
        return model.scores(vectors) if isinstance(model, Classifier) and pooler.task == "classify" else vectors

    return forward


def _with_pooling_inputs(program: OpProgram, context: StepContext) -> StepContext:
    return replace(
        context,
        first_rows=program.new("first_rows", (NUM_SEQS,), DType.INT32, Storage.INPUT),
        segments=program.new("segments", (NUM_TOKENS,), DType.INT32, Storage.INPUT),
    )


def _step_context(
    program: OpProgram,
    layers: Sequence[AttentionSpec],
    groups: Sequence[KVGroupSpec],
    max_blocks: int,
    kv_dtype: DType,
) -> StepContext:
    def new(name: str, *shape: int | Dim) -> Value:
        return program.new(name, shape, DType.INT32, Storage.INPUT)

    by_layer: dict[int, GroupInputs] = {}
    for index, group in enumerate(groups):
        inputs = GroupInputs(
            new(f"slot_mapping.{index}", NUM_TOKENS), new(f"block_table.{index}", NUM_SEQS, max_blocks)
        )
        by_layer.update(dict.fromkeys(group.layers, inputs))
    return StepContext(
        token_ids=new("token_ids", NUM_TOKENS),
        positions=new("positions", NUM_TOKENS),
        query_start=new("query_start", Dim(NUM_SEQS.symbol, 1)),
        seq_lens=new("seq_lens", NUM_SEQS),
        logits_rows=new("logits_rows", NUM_SEQS),
        groups=by_layer,
        caches={spec.layer: program.new(f"kv.{spec.layer}", (), kv_dtype, Storage.CACHE) for spec in layers},
    )
