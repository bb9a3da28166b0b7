"""From a configuration to a recorded program: no weights, no device, only shapes.

What an executor needs to know of a model. The default worker uses it, and so may an executor of a platform's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from core import ops
from core.config import Config
from core.layers.base import AttentionSpec, Builder, GroupInputs, Parameter, StepContext
from core.models.registry import Model, model_builder
from core.program import NUM_SEQS, NUM_TOKENS, Dim, OpProgram, Storage, Value
from core.types import DType, KVGroupSpec

LOGITS = "logits"


@dataclass(frozen=True)
class RecordedModel:
    """A model's program with what it declared: parameters, attention layers and the KV groups they form."""

    program: OpProgram
    parameters: Sequence[Parameter]
    attention_layers: Sequence[AttentionSpec]
    groups: Sequence[KVGroupSpec]
    max_blocks: int  # columns of a block table


def record_model(config: Config) -> RecordedModel:
    """Make the model of `config` and record its forward. Raises UnsupportedModel, RecordingError, PluginLoadError."""
    build = model_builder(config.model.architecture, config.extensions.models)
    program = OpProgram()
    builder = Builder(program, config.model.dtype, world=config.parallel.tensor)
    model = build(builder, config.model.hf_config)
    groups = builder.kv_groups()
    max_blocks = -(-config.scheduler.max_model_len // config.cache.block_size)
    context = _step_context(program, builder.attention_layers, groups, max_blocks, config.cache.dtype)
    ops.record(program, lambda: _forward(program, model, context))
    return RecordedModel(program, tuple(builder.parameters), tuple(builder.attention_layers), groups, max_blocks)


def _forward(program: OpProgram, model: Model, context: StepContext) -> None:
    program.keep(model(context), LOGITS)


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
