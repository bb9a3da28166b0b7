"""Parameters, and the context in which a model's forward is recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from core.program import OpProgram, Storage, Value
from core.types import DType, KVGroupSpec


@dataclass(frozen=True)
class ShardSpec:
    """The slice of a checkpoint tensor that this device holds: `rank` of `world` equal parts along `dim`.

    dim 0 splits rows (outputs), dim 1 columns (inputs), None keeps the whole.
    """

    dim: int | None = None
    rank: int = 0
    world: int = 1

    def span(self, size: int) -> slice:
        """This rank's part of `size` rows or columns."""
        part = size // self.world
        return slice(self.rank * part, (self.rank + 1) * part)


@dataclass(frozen=True)
class Source:
    """The checkpoint tensor that fills `rows` rows of a parameter, from `row` on."""

    name: str
    row: int
    rows: int


@dataclass(frozen=True)
class Parameter:
    """A weight of the program and where its contents come from: checkpoint tensors, or given numbers."""

    value: Value
    sources: tuple[Source, ...] = ()
    constant: tuple[float, ...] | None = None
    shard: ShardSpec = ShardSpec()


@dataclass(frozen=True)
class AttentionSpec:
    """One attention layer, as KV groups and attention backends need to know it."""

    layer: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    window: int | None


@dataclass
class Builder:
    """Collects what a model declares while it is made."""

    program: OpProgram
    dtype: DType
    rank: int = 0
    world: int = 1
    parameters: list[Parameter] = field(default_factory=list)
    attention_layers: list[AttentionSpec] = field(default_factory=list)
    position_offset: int = 0  # what the model adds to positions, where it looks them up in a table

    def weight(
        self, name: str, parts: Sequence[tuple[str, int]], width: int | None = None, *, shard_dim: int | None = None
    ) -> Value:
        """Declare a weight whose rows are those of `parts` [(checkpoint name, rows)] in order.

        Shape [rows] or, with `width`, [rows, width], sizes being this rank's share where it is sharded.
        """
        shard = ShardSpec(shard_dim, self.rank, self.world)
        sources, row = [], 0
        for source, rows in parts:
            share = rows // self.world if shard_dim == 0 else rows
            sources.append(Source(source, row, share))
            row += share
        columns = () if width is None else (width // self.world if shard_dim == 1 else width,)
        value = self.program.new(name, (row, *columns), self.dtype, Storage.WEIGHT)
        self.parameters.append(Parameter(value, tuple(sources), shard=shard))
        return value

    def constant(self, name: str, numbers: Sequence[float]) -> Value:
        """Declare a float32 vector whose contents are known now."""
        value = self.program.new(name, (len(numbers),), DType.FLOAT32, Storage.WEIGHT)
        self.parameters.append(Parameter(value, constant=tuple(numbers)))
        return value

    def kv_groups(self) -> tuple[KVGroupSpec, ...]:
        """The attention layers, grouped where one block table serves them."""
        groups: dict[tuple[int, int, int | None], list[int]] = {}
        for spec in self.attention_layers:
            groups.setdefault((spec.num_kv_heads, spec.head_dim, spec.window), []).append(spec.layer)
        return tuple(
            KVGroupSpec(layers=tuple(layers), num_kv_heads=heads, head_dim=head_dim, window=window)
            for (heads, head_dim, window), layers in groups.items()
        )


@dataclass(frozen=True)
class GroupInputs:
    """One KV group's step inputs: slot_mapping [T] int32 and block_table [S, max_blocks] int32."""

    slot_mapping: Value
    block_table: Value


@dataclass(frozen=True)
class StepContext:
    """The step's inputs, as a model's forward sees them.

    token_ids, positions [T] int32; query_start [S + 1], seq_lens [S] int32; logits_rows [S] int32, the row of each
    sequence whose next token is wanted. `groups` by layer; `caches` by layer. Of models that pool: first_rows [S] int32,
    each sequence's first row, and segments [T] int32, 1 for the tokens of the second text of a pair.
    """

    token_ids: Value
    positions: Value
    query_start: Value
    seq_lens: Value
    logits_rows: Value
    groups: Mapping[int, GroupInputs]
    caches: Mapping[int, Value]
    first_rows: Value | None = None
    segments: Value | None = None
