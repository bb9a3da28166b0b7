"""safetensors files, one or sharded, by mmap.

Format: https://github.com/huggingface/safetensors#format. An eight-byte length, a JSON header of that length, then the
tensors' bytes without gaps. We parse it ourselves: the reference library has no numpy view of bfloat16, and its errors do
not say where in the file they arose.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta
from numpy.typing import NDArray

from core.errors import ModelNotFound, UnsupportedModel, WeightError
from core.types import DType
from core.weights.base import NUMPY_DTYPE, Bytes, MappedFile, TensorMeta, WeightReader

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the reference library's own limit
MAX_INDEX_BYTES = 100_000_000

_DTYPES = {
    "F32": DType.FLOAT32,
    "F16": DType.FLOAT16,
    "BF16": DType.BFLOAT16,
    "I64": DType.INT64,
    "I32": DType.INT32,
    "I8": DType.INT8,
    "U8": DType.UINT8,
    "BOOL": DType.BOOL,
}
#: Well-formed, but nothing here computes with them.
_OTHER_DTYPES = {"F64", "I16", "U16", "U32", "U64", "C64", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F6_E2M3", "F6_E3M2", "F4"}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_Size = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Name = Annotated[
    str, Meta(max_length=1024, pattern=r"^[^\ud800-\udfff]*$")
]  # no lone surrogates: it must be printable


class _Entry(msgspec.Struct, frozen=True):
    """One tensor in the JSON header. Offsets count from the end of the header."""

    dtype: str
    shape: Annotated[tuple[_Size, ...], Meta(max_length=8)]
    data_offsets: tuple[_Size, _Size]


class _Place(msgspec.Struct, frozen=True):
    """Where a tensor lies: `offset` counts from the start of the file."""

    file: MappedFile
    offset: int


def weight_files(directory: Path) -> tuple[Path, ...]:
    """The directory's safetensors files, in the order in which they are read.

    Raises `UnsupportedModel` where there are only pickled weights, `ModelNotFound` where there are none at all.
    """
    single, index = directory / SINGLE_NAME, directory / INDEX_NAME
    if single.is_file():
        return (single,)
    if index.is_file():
        return tuple(directory / name for name in sorted(set(read_index(index).values())))
    files = sorted(directory.glob("*.safetensors"))
    files = [file for file in files if not file.name.startswith(("consolidated", "adapter_"))]
    if files:
        return tuple(files)
    raise _no_weights(directory)


def read_index(path: Path) -> dict[str, str]:
    """Tensor name -> shard, a file name beside the index. Raises `WeightError` for anything else in it."""
    if path.stat().st_size > MAX_INDEX_BYTES:
        raise WeightError(path, f"is larger than {MAX_INDEX_BYTES} bytes; this is not an index of weights")
    content = _parse_json(path, path.read_bytes(), 0)
    try:
        weight_map = msgspec.convert(content.get("weight_map"), dict[_Name, _Name])
    except msgspec.ValidationError as error:
        raise WeightError(path, f"weight_map does not map tensor names to file names: {error}") from error
    for name, shard in weight_map.items():
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise WeightError(path, f"names {shard!r}; a shard is a .safetensors file beside the index", tensor=name)
        if not (path.parent / shard).is_file():
            raise WeightError(path, f"names {shard!r}, which is not there: fetch the model again", tensor=name)
    return weight_map


class SafetensorsReader(WeightReader):
    """Reads a model directory's safetensors files. Raises `WeightError` or `UnsupportedModel` for a malformed one."""

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self._tensors: dict[str, TensorMeta] = {}
        self._places: dict[str, _Place] = {}
        for path in weight_files(directory):
            self._add(MappedFile(path))
        index = directory / INDEX_NAME
        if index.is_file() and not (directory / SINGLE_NAME).is_file():
            self._check_index(index)

    def tensors(self) -> Mapping[str, TensorMeta]:
        return self._tensors

    def read(self, name: str, rows: slice | None = None) -> NDArray[Any]:
        meta = self._meta(name)
        tensor = self.stored(name).view(NUMPY_DTYPE[meta.dtype]).reshape(meta.shape)
        return tensor if rows is None else tensor[rows]

    def stored(self, name: str) -> Bytes:
        nbytes, place = self._meta(name).nbytes, self._places[name]
        return place.file.view(place.offset, nbytes)

    def release(self, name: str) -> None:
        nbytes, place = self._meta(name).nbytes, self._places[name]
        place.file.release(place.offset, nbytes)

    def close(self) -> None:
        self._tensors.clear()
        self._places.clear()

    def _meta(self, name: str) -> TensorMeta:
        meta = self._tensors.get(name)
        if meta is None:
            raise WeightError(self.path, "is in none of the model's safetensors files", tensor=name)
        return meta

    def _add(self, file: MappedFile) -> None:
        for meta, offset in read_header(file):
            if meta.name in self._tensors:
                other = self._places[meta.name].file.path.name
                raise WeightError(file.path, f"is in {other} too", tensor=meta.name, offset=offset)
            self._tensors[meta.name] = meta
            self._places[meta.name] = _Place(file, offset)

    def _check_index(self, index: Path) -> None:
        for name, shard in read_index(index).items():
            place = self._places.get(name)
            if place is None or place.file.path.name != shard:
                raise WeightError(
                    index, f"is not in {shard}, where the index has it: fetch the model again", tensor=name
                )


def read_header(file: MappedFile) -> list[tuple[TensorMeta, int]]:
    """The file's tensors with their offsets from its start, in file order. Raises `WeightError`, `UnsupportedModel`."""
    path = file.path
    if file.size < 8:
        raise WeightError(path, f"the file ends at {file.size}, within the header's length; fetch it again")
    header_bytes = int.from_bytes(file.memory[:8], "little")
    if header_bytes > min(MAX_HEADER_BYTES, file.size - 8):
        message = (
            f"a header of {header_bytes} bytes in a file of {file.size}; the file is cut short, or not safetensors"
        )
        raise WeightError(path, message, offset=0)
    content = _parse_json(path, file.memory[8 : 8 + header_bytes], 8)
    content.pop("__metadata__", None)
    try:
        entries = msgspec.convert(content, dict[_Name, _Entry])
    except msgspec.ValidationError as error:
        raise WeightError(path, f"the header is not that of safetensors: {error}", offset=8) from error
    return _place_tensors(file, entries, 8 + header_bytes)


def _place_tensors(file: MappedFile, entries: dict[str, _Entry], data_start: int) -> list[tuple[TensorMeta, int]]:
    """Check that the tensors fill the rest of the file: no overlap, no gap, nothing outside."""
    placed: list[tuple[TensorMeta, int]] = []
    expected = data_start
    for name, entry in sorted(entries.items(), key=lambda item: item[1].data_offsets):
        start, stop = (data_start + offset for offset in entry.data_offsets)
        dtype = _dtype(file.path, name, entry.dtype, start)
        nbytes = math.prod(entry.shape) * dtype.itemsize
        if stop - start != nbytes:
            message = f"{entry.dtype} {list(entry.shape)} takes {nbytes} bytes, but the header gives it {stop - start}"
            raise WeightError(file.path, message, tensor=name, offset=start)
        if start != expected:
            message = f"the bytes before it end at {expected}; tensors must neither overlap nor leave gaps"
            raise WeightError(file.path, message, tensor=name, offset=start)
        if stop > file.size:
            message = f"needs {nbytes} bytes, but the file ends at {file.size}; it is cut short: fetch it again"
            raise WeightError(file.path, message, tensor=name, offset=start)
        expected = stop
        placed.append((TensorMeta(name, entry.shape, dtype, nbytes), start))
    if expected != file.size:
        raise WeightError(file.path, f"{file.size - expected} bytes belong to no tensor", offset=expected)
    return placed


def _dtype(path: Path, name: str, stored: str, offset: int) -> DType:
    if stored in _DTYPES:
        return _DTYPES[stored]
    if stored in _OTHER_DTYPES:
        raise UnsupportedModel(f"{path}: tensor {name!r} is stored as {stored}; core reads {', '.join(_DTYPES)}")
    raise WeightError(path, f"unknown type {stored!r}", tensor=name, offset=offset)


def _parse_json(path: Path, text: bytes, offset: int) -> dict[str, Any]:
    """A JSON object in which no key repeats: two readings of one file must not be possible."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
            raise WeightError(path, "is named twice", tensor=repeated, offset=offset)
        return content

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise WeightError(path, f"is not valid JSON: {error}", offset=offset) from error
    if not isinstance(content, dict):
        raise WeightError(path, "is not a JSON object", offset=offset)
    return content


def _no_weights(directory: Path) -> ModelNotFound | UnsupportedModel:
    pickles = sorted(file.name for pattern in _PICKLES for file in directory.glob(pattern))
    if not pickles:
        return ModelNotFound(f"{directory} holds no .safetensors file; download the model's weights into it")
    return UnsupportedModel(
        f"{directory} has its weights only as pickle ({pickles[0]}), which can run any code when it is read, so core "
        "never does; convert them with transformers: from_pretrained(…).save_pretrained(…)"
    )
