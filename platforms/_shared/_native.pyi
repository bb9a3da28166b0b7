"""CPU kernels, written in csrc/cpu. Addresses are `Tensor.data_ptr()`, strides count elements, dtypes go by torch's names.

Every function raises `ValueError` naming the argument that cannot be. What an address points to is not checked: the
caller keeps the tensors alive, of the shapes given here, and block ids and slots within the cache.
"""

import enum

def available_isas() -> list[str]:
    """The instruction-set tiers this processor can run, best last: of `scalar`, `avx2`, `avx512`, `avx512bf16`."""

def isa() -> str:
    """The tier in use: the best one, or what CORE_CPU_ISA or `set_isa` names.

    Raises ValueError if CORE_CPU_ISA names a tier that is not available.
    """

def set_isa(name: str) -> None:
    """Choose the tier; not while a kernel runs. Raises ValueError naming the available ones."""

def num_threads() -> int:
    """Threads the kernels use, the caller's included. 1 until `set_num_threads` is called."""

def set_num_threads(num_threads: int) -> None:
    """Set it, for the whole process, once a kernel that runs has ended. Raises ValueError below 1.

    The threads are the kernels' own: they are started by the first call that needs them, and again in a forked child.
    """

def kv_write(
    key: int,
    value: int,
    key_cache: int,
    value_cache: int,
    slot_mapping: int,
    num_tokens: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    key_stride: int,
    value_stride: int,
    dtype: str,
    cache_dtype: str,
) -> None:
    """Store keys and values in their slots, rounding to nearest even where the cache is narrower.

    key, value: [num_tokens, num_kv_heads, head_dim] of `dtype` (float32 or bfloat16), tokens `key_stride` and
    `value_stride` elements apart, so that they may be columns of a packed QKV. key_cache, value_cache: [num_blocks,
    num_kv_heads, block_size, width] of `cache_dtype` (int8 as well), contiguous, where width is head_dim filled up to a
    multiple of 16; for int8, 4 more. What is where in a block is the kernels' own. slot_mapping: int32 [num_tokens], block *
    block_size + offset; a negative slot is skipped. Tokens that share a slot (the null block's) leave either's value.
    """

def paged_attention(
    query: int,
    query_stride: int,
    key_cache: int,
    value_cache: int,
    block_tables: int,
    block_table_stride: int,
    query_start: int,
    seq_lens: int,
    out: int,
    out_stride: int,
    num_seqs: int,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    scale: float,
    window: int,
    dtype: str,
    cache_dtype: str,
) -> None:
    """Causal attention of a mixed batch of prefills and decodes over the paged cache.

    query, out: [num_tokens, num_heads, head_dim] of `dtype`, tokens `query_stride` and `out_stride` elements apart;
    head_dim is at most 256. Sequence s has queries query_start[s] … query_start[s + 1] (int32 [num_seqs + 1]; equal
    bounds: none, a padding row), the last of them at position seq_lens[s] - 1 (int32 [num_seqs], this step's tokens
    included). block_tables: int32, rows `block_table_stride` apart, entry i the block of positions i * block_size….
    A query at position p sees (p - window, p], or all of [0, p] where window is 0; blocks it does not see are not
    read, and `out` is written for no token outside query_start.

    A row's result is the same to the bit whatever else is in the batch, however its prompt was chunked and however
    many threads there are. It differs from tier to tier.
    """

# --- choosing tokens ------------------------------------------------------------------------------------------

def choose(
    logits: int,
    num_rows: int,
    vocab: int,
    stride: int,
    count: int,
    rows: int,
    temperature: int,
    top_k: int,
    top_p: int,
    min_p: int,
    seed: int,
    choice: int,
    position: int,
    out: int,
) -> None:
    """`count` tokens from logits float32 [num_rows, vocab], as `core.logits.ReferenceLogits.choose` says.

    rows, top_k: int32 [count]; temperature, top_p, min_p: float64; seed, choice, position, out: int64.
    """

def logprobs(
    logits: int,
    num_rows: int,
    vocab: int,
    stride: int,
    count: int,
    alternatives: int,
    rows: int,
    tokens: int,
    values: int,
    ids: int,
    ranks: int,
) -> None:
    """What `core.logits.ReferenceLogits.logprobs` says of `tokens` int64 [count] in `rows` int32 [count].

    values: float64 [count, 1 + alternatives]; ids: int64 of that shape; ranks: int64 [count].
    """

# --- what the machine can do, for benchmarks -----------------------------------------------------------------

def read_memory(data: int, bytes: int) -> int:
    """Read a buffer with all threads; its words or-ed."""

def multiply(dtype: str, rounds: int) -> int:
    """Multiply in registers, `rounds` times in each thread, by the tier's best instruction; FLOPs done in all.

    `dtype`: float32, bfloat16, or int8 for bytes as a quantised weight and activations are.
    """

# --- programs ------------------------------------------------------------------------------------------------

class Rows(enum.Enum):
    """How many rows an op has at a step: as many as the step has tokens, or sequences."""

    tokens = ...
    seqs = ...

class Tensor:
    """`columns` elements a row, rows `stride` elements apart; or a vector, of one row.

    `dtype` is float32, bfloat16 or int32. How many rows there are is said when the program runs.
    """

    def __init__(self, data: int, dtype: str, columns: int, stride: int) -> None: ...
    def slice(self, first: int, columns: int) -> Tensor:
        """`columns` of its columns, from `first` on."""

class Weight:
    """A packed weight [outputs, inputs] in `packed_bytes(dtype, outputs, inputs)` bytes at `data`, zeroed at first."""

    def __init__(self, data: int, dtype: str, outputs: int, inputs: int) -> None: ...
    def pack(self, row: int, rows: int, source: Tensor) -> None:
        """Fill outputs `row : row + rows` from the rows of `source`, of the weight's type."""

    def unpack(self, row: int, rows: int, target: Tensor) -> None:
        """The reverse."""

class KVCache:
    """One layer's keys and values, as `kv_write` writes them; `width` without the 4 more of int8."""

    def __init__(
        self, key_cache: int, value_cache: int, cache_dtype: str, num_kv_heads: int, width: int, block_size: int
    ) -> None: ...

def packed_bytes(dtype: str, outputs: int, inputs: int) -> int:
    """Bytes of a packed weight: outputs filled up to whole panels of 16, inputs to whole words of 4 bytes."""

class QuantizedWeight:
    """A weight [outputs, inputs] in one of `schemes()`, in `quantized_bytes(…)` bytes at `data`, zeroed at first.

    `data` is at a multiple of 64. `dtype` is that of the activations that it is multiplied with.
    """

    def __init__(self, data: int, dtype: str, scheme: str, outputs: int, inputs: int) -> None: ...
    def quantize(self, row: int, rows: int, source: Tensor) -> None:
        """Fill outputs `row : row + rows` from rows of floats. For int8 and int4."""

    def pack_blocks(self, row: int, rows: int, blocks: int, row_bytes: int) -> None:
        """Fill them from rows of a GGUF file's blocks, one after the other. For the other schemes."""

    def dequantize(self, row: int, rows: int, target: Tensor) -> None:
        """What outputs `row : row + rows` stand for, as float32 or bfloat16."""

def schemes() -> list[str]:
    """The names of the schemes: int8, int4 and GGUF's block types in lower case."""

def quantized_bytes(scheme: str, outputs: int, inputs: int) -> int:
    """Bytes of a quantised weight. Raises ValueError where the scheme's blocks do not divide the inputs."""

class Program:
    """Calls of ops in order, each as `core.ops` records it: rows, inputs, outputs, attributes.

    Adding one raises ValueError naming the operand that does not fit. The memory behind the operands must stay as long
    as the program. A row's result is the same to the bit whatever other rows there are and however many threads.
    """

    def __init__(self) -> None: ...
    def run(self, num_tokens: int, num_seqs: int) -> None:
        """Run all calls. Raises ValueError for a token id outside of its table, or a sequence outside of its blocks."""

    def embedding(self, rows: Rows, token_ids: Tensor, weight: Weight | QuantizedWeight, out: Tensor, /) -> None: ...
    def linear(
        self, rows: Rows, x: Tensor, weight: Weight | QuantizedWeight, bias: Tensor | None, out: Tensor, /
    ) -> None:
        """A quantised weight is multiplied with activations of eight bits, by row or by the weight's group."""

    def select_rows(self, rows: Rows, x: Tensor, indices: Tensor, out: Tensor, /) -> None: ...
    def rms_norm(self, rows: Rows, x: Tensor, weight: Tensor, out: Tensor, *, eps: float) -> None: ...
    def add_rms_norm(
        self,
        rows: Rows,
        x: Tensor,
        residual: Tensor,
        weight: Tensor,
        normed: Tensor,
        total: Tensor,
        *,
        eps: float,
    ) -> None: ...
    def silu_mul(self, rows: Rows, gate_up: Tensor, out: Tensor, /) -> None: ...
    def rope_angles(self, rows: Rows, positions: Tensor, inv_freq: Tensor, out: Tensor, *, scale: float) -> None: ...
    def rope(self, rows: Rows, x: Tensor, angles: Tensor, out: Tensor, *, head_dim: int) -> None: ...
    def add(self, rows: Rows, x: Tensor, y: Tensor, out: Tensor, /) -> None: ...
    def add_layer_norm(
        self, rows: Rows, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, out: Tensor, *, eps: float
    ) -> None: ...
    def activation(self, rows: Rows, x: Tensor, out: Tensor, *, kind: str) -> None: ...
    def encoder_attention(
        self,
        rows: Rows,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_start: Tensor,
        out: Tensor,
        *,
        head_dim: int,
        num_kv_heads: int,
        scale: float,
    ) -> None: ...
    def mean_rows(self, rows: Rows, x: Tensor, query_start: Tensor, out: Tensor, /) -> None: ...
    def kv_write(self, rows: Rows, key: Tensor, value: Tensor, cache: KVCache, slot_mapping: Tensor, /) -> None: ...
    def attention(
        self,
        rows: Rows,
        query: Tensor,
        cache: KVCache,
        block_table: Tensor,
        query_start: Tensor,
        seq_lens: Tensor,
        out: Tensor,
        *,
        head_dim: int,
        num_kv_heads: int,
        scale: float,
        window: int | None,
    ) -> None: ...
