"""The reference model: a recorded program, computed by the references of `core.ops` in float32 on the host.

Nothing of the engine takes part: no scheduler, no runner, no sampler, no block that is shared or reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import torch
from torch import Tensor

from core import ops
from core.config import Config, ParallelConfig
from core.conformance.bounds import FLOATS, NEAR_TIE
from core.defaults import torch_dtype
from core.program import OpProgram, Storage, Value
from core.recording import LOGITS, RecordedModel, record_model
from core.types import DType

#: What a value is on the host: a tensor, or the planes of a cache.
HostValue = Tensor | tuple[Tensor, ...]


def evaluate(
    program: OpProgram, given: Mapping[int, HostValue], num_tokens: int, num_seqs: int, *, widen: bool = True
) -> dict[int, HostValue]:
    """Run `program` on `given` (inputs, weights and caches by Value.index) and return every value.

    widen: compute in float32 whatever the element types; else in the program's own.
    """
    values = dict(given)

    def host(value: Value | None) -> HostValue | None:
        if value is None:
            return None
        owner = values[value.owner.index]
        if value.base is None:
            return owner
        assert isinstance(owner, Tensor) and isinstance(value.shape[-1], int)
        return owner[..., value.offset : value.offset + value.shape[-1]]

    for call in program.calls:
        for value in call.outputs:
            wide = widen and value.dtype in FLOATS
            dtype = torch_dtype(DType.FLOAT32 if wide else value.dtype)
            values[value.index] = torch.empty(value.resolve(num_tokens, num_seqs), dtype=dtype)
        ops.REFERENCE[call.op](*map(host, (*call.inputs, *call.outputs)), **call.attrs)
    return values


def parameter_tensors(model: RecordedModel, tensors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """A model's weights, float32 on the host, by Value.index."""
    weights = {}
    for parameter in model.parameters:
        if parameter.constant is not None:
            data = torch.tensor(parameter.constant)
        else:
            data = torch.cat([tensors[source.name].float() for source in parameter.sources])
        weights[parameter.value.index] = data
    return weights


def reference_cache(model: RecordedModel, num_blocks: int, block_size: int) -> dict[int, HostValue]:
    """Empty caches in the reference's layout, by Value.index."""
    caches = model.program.named(Storage.CACHE)
    return {
        caches[f"kv.{spec.layer}"].index: tuple(
            torch.zeros(num_blocks, spec.num_kv_heads, block_size, spec.head_dim) for _ in range(2)
        )
        for spec in model.attention_layers
    }


class Oracle:
    """What a checkpoint's logits are in exact arithmetic, or nearly: in float32, one sequence at a time."""

    def __init__(self, config: Config, tensors: Mapping[str, Tensor]) -> None:
        wide = msgspec.structs.replace(
            config,
            model=msgspec.structs.replace(config.model, dtype=DType.FLOAT32),
            cache=msgspec.structs.replace(config.cache, dtype=DType.FLOAT32),
            parallel=ParallelConfig(),
        )
        self._block_size = config.cache.block_size
        self._model = record_model(wide)
        rounded = {name: tensor.to(torch_dtype(config.model.dtype)) for name, tensor in tensors.items()}
        self._weights = parameter_tensors(self._model, rounded)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """[len(token_ids), vocab]: what follows each of the tokens.

        The model is asked for as many sequences as there are tokens, the first of which owns them all and the others
        none: then each can ask for the logits of a row of its own.
        """
        count = len(token_ids)
        blocks = -(-count // self._block_size)
        table = torch.zeros(count, self._model.max_blocks, dtype=torch.int32)
        table[0, :blocks] = torch.arange(1, blocks + 1)
        ordered = torch.arange(count, dtype=torch.int32)
        arrays = {
            "token_ids": torch.tensor(token_ids, dtype=torch.int32),
            "positions": ordered,
            "query_start": torch.tensor([0, *[count] * count], dtype=torch.int32),
            "seq_lens": torch.tensor([count, *[0] * (count - 1)], dtype=torch.int32),
            "logits_rows": ordered,
        }
        for group in range(len(self._model.groups)):
            arrays[f"slot_mapping.{group}"] = ordered + self._block_size
            arrays[f"block_table.{group}"] = table
        inputs = self._model.program.named(Storage.INPUT)
        given: dict[int, HostValue] = {inputs[name].index: array for name, array in arrays.items()}
        given |= self._weights
        given |= reference_cache(self._model, blocks + 1, self._block_size)
        values = evaluate(self._model.program, given, count, count)
        found = values[self._model.program.named(Storage.OUTPUT)[LOGITS].index]
        assert isinstance(found, Tensor)
        return found

    def wrong_greedy(self, prompt: Sequence[int], output: Sequence[int], dtype: DType) -> str:
        """What is wrong with `output` as the greedy continuation of `prompt`; empty if nothing is.

        Each token's logit, after the prompt and the tokens before it, is the largest, or within NEAR_TIE of it.
        """
        if not output:
            return "no token came"
        logits = self.logits([*prompt, *output[:-1]])[len(prompt) - 1 :]
        return first_wrong(logits, output, NEAR_TIE[dtype] * float(logits.abs().max()))


def first_wrong(logits: Tensor, output: Sequence[int], tie: float) -> str:
    """The first of `output` whose logit in its row is more than `tie` below the largest; empty if there is none."""
    for index, token in enumerate(output):
        best = int(logits[index].argmax())
        short = float(logits[index, best] - logits[index, token])
        if short > tie:
            return f"token {index} of the answer is {token}, whose logit is {short:.3g} below that of {best}"
    return ""
