"""The header of a GGUF file: metadata and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian.

The file is not trusted. Every count is checked against the bytes that are left before anything of its size is made,
and the header as a whole is bounded: the worst file costs some seconds and a few hundred megabytes before its
`WeightError`.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from core.errors import UnsupportedModel, WeightError
from core.types import DType
from core.weights.base import MappedFile, TensorMeta
from core.weights.gguf.quants import QUANT_TYPES

MAX_HEADER_BYTES = 128 << 20  # a vocabulary of 256 thousand with its merges takes 16 MiB
MAX_ITEMS = 1 << 22  # keys, tensors and array elements together; a vocabulary of 256 thousand makes 1.3 million
MAX_NESTING = 4
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")

_STRING, _ARRAY = 8, 9
#: Metadata value types with a fixed size, as struct codes.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

#: ggml's tensor types by number; those without a reader here are named in the error.
_GGML_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip
_PLAIN = {"F32": DType.FLOAT32, "F16": DType.FLOAT16, "BF16": DType.BFLOAT16}


class GGUFHeader(msgspec.Struct, frozen=True):
    """Metadata by key, and the tensors by the file's own names with each one's offset from the start of the file.

    Metadata values are bool, int, float, str, or lists of these. Shapes are already in Hugging Face's order, the
    reverse of ggml's.
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[TensorMeta, int]]


def read_gguf_metadata(path: Path) -> Mapping[str, Any]:
    """All of the file's metadata, the tokenizer's arrays included. Raises `WeightError` for a malformed file."""
    return read_header(MappedFile(path)).metadata


def read_header(file: MappedFile, *, string_arrays: bool = True) -> GGUFHeader:
    """Parse the header. `string_arrays=False` leaves the (long) arrays of strings out, at a quarter of the time.

    Raises `WeightError` for a malformed file and `UnsupportedModel` for what is well-formed but not implemented.
    """
    cursor = _Cursor(file)
    num_tensors, num_keys = _preamble(cursor)
    metadata: dict[str, Any] = {}
    for _ in range(num_keys):
        at = cursor.position
        key = cursor.string("a metadata key")
        if key in metadata:
            raise cursor.error(f"metadata key {key!r} appears twice", at)
        value = cursor.value(cursor.u32(f"the type of {key!r}"), key, string_arrays)
        if value is not None:
            metadata[key] = value
    infos = [_tensor_info(cursor) for _ in range(num_tensors)]
    return GGUFHeader(metadata, _place_tensors(file, infos, cursor.position, _alignment(file, metadata)))


class _Cursor:
    """Reads forward through the header, never past its end."""

    def __init__(self, file: MappedFile) -> None:
        self.file = file
        self.data: mmap.mmap = file.memory
        self.position = 0
        self.end = min(file.size, MAX_HEADER_BYTES)
        self.items_left = MAX_ITEMS

    def error(self, message: str, offset: int | None = None) -> WeightError:
        return WeightError(self.file.path, message, offset=self.position if offset is None else offset)

    def need(self, nbytes: int, what: str) -> None:
        """Raise unless `nbytes` more bytes are there."""
        if nbytes > self.end - self.position:
            limit = "the file ends" if self.end == self.file.size else f"a header may take {MAX_HEADER_BYTES} bytes"
            raise self.error(
                f"{what} needs {nbytes} bytes, but {limit} at {self.end}; the file is cut short or malformed"
            )

    def spend(self, count: int, nbytes: int, what: str) -> None:
        """Account for `count` items of at least `nbytes` each before any of them is made."""
        self.need(count * nbytes, f"{what}, {count} items,")
        if count > self.items_left:
            raise self.error(f"{what} has {count} items; a header may have {MAX_ITEMS} in all")
        self.items_left -= count

    def take(self, nbytes: int, what: str) -> int:
        """Move over `nbytes` bytes, and say where they begin."""
        self.need(nbytes, what)
        start = self.position
        self.position += nbytes
        return start

    def u32(self, what: str) -> int:
        (value,) = _U32.unpack_from(self.data, self.take(4, what))
        return int(value)

    def u64(self, what: str) -> int:
        (value,) = _U64.unpack_from(self.data, self.take(8, what))
        return int(value)

    def string(self, what: str) -> str:
        start = self.take(self.u64(f"the length of {what}"), what)
        return self._decode([(start, self.position)], what)[0]

    def value(self, kind: int, key: str, string_arrays: bool) -> Any:
        """One metadata value; None for an array of strings that is not wanted."""
        if kind == _STRING:
            return self.string(f"the value of {key!r}")
        if kind == _ARRAY:
            return self._array(key, string_arrays, 1)
        return self._scalars(kind, 1, f"the value of {key!r}")[0]

    def _array(self, key: str, string_arrays: bool, depth: int) -> list[Any] | None:
        what = f"the array {key!r}"
        if depth > MAX_NESTING:
            raise self.error(f"{what} is nested more than {MAX_NESTING} deep")
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            self.spend(count, 8, what)
            spans = self._string_spans(count, what)
            return self._decode(spans, what) if string_arrays else None
        if kind == _ARRAY:
            self.spend(count, 12, what)
            return [self._array(key, string_arrays, depth + 1) for _ in range(count)]
        self.spend(count, 1, what)
        return self._scalars(kind, count, what)

    def _scalars(self, kind: int, count: int, what: str) -> list[Any]:
        if kind not in _SCALARS:
            raise self.error(f"{what} has the type {kind}; GGUF has 0 to 12")
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return list(layout.unpack_from(self.data, self.take(layout.size, what)))

    def _string_spans(self, count: int, what: str) -> list[tuple[int, int]]:
        """Pass over `count` strings. Hot: a vocabulary and its merges are a hundred thousand of them and more."""
        spans: list[tuple[int, int]] = []
        data, end, position, unpack = self.data, self.end, self.position, _U64.unpack_from
        for number in range(count):
            start = position + 8
            position = start + unpack(data, position)[0] if start <= end else start
            if position > end:
                raise self.error(
                    f"{what} has {count} strings, but number {number} runs over the end of the file", start
                )
            spans.append((start, position))
        self.position = position
        return spans

    def _decode(self, spans: list[tuple[int, int]], what: str) -> list[str]:
        data = self.data
        try:
            return [data[start:stop].decode() for start, stop in spans]
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason}") from error


def _preamble(cursor: _Cursor) -> tuple[int, int]:
    """Magic, version and the two counts: (tensors, metadata keys)."""
    cursor.need(24, "the preamble")
    cursor.take(4, "the magic")
    if cursor.data[:4] != b"GGUF":
        raise cursor.error("this is not a GGUF file: it does not begin with 'GGUF'", 0)
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise UnsupportedModel(
            f"{cursor.file.path}: a big-endian GGUF; convert it to little endian (gguf-convert-endian)"
        )
    if version not in (2, 3):
        raise UnsupportedModel(
            f"{cursor.file.path}: GGUF version {version}; core reads 2 and 3: convert the model anew"
        )
    num_tensors, num_keys = cursor.u64("the number of tensors"), cursor.u64("the number of metadata keys")
    cursor.spend(num_keys, 13, "the metadata")
    cursor.spend(num_tensors, 24, "the tensor list")
    return num_tensors, num_keys


def _alignment(file: MappedFile, metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
        raise WeightError(file.path, f"general.alignment is {alignment!r}, not a multiple of 8 up to {MAX_ALIGNMENT}")
    return alignment


def _tensor_info(cursor: _Cursor) -> tuple[TensorMeta, int]:
    """One entry of the tensor list, with its offset from the start of the tensor data."""
    at = cursor.position
    name = cursor.string("a tensor name")
    num_dims = cursor.u32(f"the dimensions of {name!r}")
    if num_dims > MAX_DIMENSIONS:
        raise WeightError(
            cursor.file.path, f"has {num_dims} dimensions; ggml allows {MAX_DIMENSIONS}", tensor=name, offset=at
        )
    shape = tuple(cursor.u64(f"the shape of {name!r}") for _ in range(num_dims))[::-1]
    if 0 in shape:
        raise WeightError(cursor.file.path, f"is empty: {list(shape)}", tensor=name, offset=at)
    kind = cursor.u32(f"the type of {name!r}")
    quant = _GGML_TYPES.get(kind, f"number {kind}")
    return _meta(cursor.file, name, shape, quant, at), cursor.u64(f"the offset of {name!r}")


def _meta(file: MappedFile, name: str, shape: tuple[int, ...], kind: str, at: int) -> TensorMeta:
    weights = math.prod(shape)
    if kind in _PLAIN:
        return TensorMeta(name, shape, _PLAIN[kind], weights * _PLAIN[kind].itemsize)
    if kind not in QUANT_TYPES:
        known = ", ".join((*_PLAIN, *QUANT_TYPES))
        raise UnsupportedModel(f"{file.path}: tensor {name!r} has the ggml type {kind}; core reads {known}")
    quant = QUANT_TYPES[kind]
    if len(shape) < 2 or shape[-1] % quant.block_weights:
        message = f"{list(shape)} is not a matrix whose rows divide into {kind} blocks of {quant.block_weights}"
        raise WeightError(file.path, message, tensor=name, offset=at)
    return TensorMeta(name, shape, DType.FLOAT32, weights // quant.block_weights * quant.block_bytes, kind)


def _place_tensors(
    file: MappedFile, infos: list[tuple[TensorMeta, int]], header_end: int, alignment: int
) -> dict[str, tuple[TensorMeta, int]]:
    """Offsets from the start of the file; each aligned, inside the file, and apart from the others."""
    data_start = -(-header_end // alignment) * alignment
    placed: dict[str, tuple[TensorMeta, int]] = {}
    free_from = data_start
    for meta, relative in sorted(infos, key=lambda info: (info[1], info[0].nbytes)):
        offset = data_start + relative
        if meta.name in placed:
            raise WeightError(file.path, "appears twice in the tensor list", tensor=meta.name, offset=offset)
        if relative % alignment:
            raise WeightError(file.path, f"is not aligned to {alignment} bytes", tensor=meta.name, offset=offset)
        if offset + meta.nbytes > file.size:
            message = f"needs {meta.nbytes} bytes, but the file ends at {file.size}; it is cut short: fetch it again"
            raise WeightError(file.path, message, tensor=meta.name, offset=offset)
        if offset < free_from:
            raise WeightError(file.path, "overlaps the tensor before it", tensor=meta.name, offset=offset)
        free_from = offset + meta.nbytes
        placed[meta.name] = (meta, offset)
    return placed
