"""What S3 knows of an object's content, and whether a file has it.

S3's own words for it: https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html. Of the
checksums that an object has, one over the whole object is taken, else the MD5 that its ETag is where the object is not
encrypted with a key of KMS or the customer: of the content, or of the MD5s of the parts that it was uploaded in.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from core.weights.s3.store import Checksum

_CHUNK = 4 << 20

_MULTIPART = re.compile(r"([0-9a-f]{32})-(\d+)")


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _CRC:
    """A cyclic redundancy check of `size` bytes, by a function that goes on from an earlier value."""

    def __init__(self, step: Callable[[bytes, int], int], size: int) -> None:
        self._step, self._size, self._value = step, size, 0

    def update(self, data: bytes) -> None:
        self._value = self._step(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def _crt(name: str, size: int) -> _CRC:
    from awscrt import checksums

    return _CRC(getattr(checksums, name), size)


def _md5() -> _Hash:
    return hashlib.md5(usedforsecurity=False)


#: In order of preference, under the names of S3's headers.
_HASHES: dict[str, Callable[[], _Hash]] = {
    "SHA256": hashlib.sha256,
    "CRC64NVME": lambda: _crt("crc64nvme", 8),
    "CRC32": lambda: _CRC(zlib.crc32, 4),
    "CRC32C": lambda: _crt("crc32c", 4),
    "SHA1": lambda: hashlib.sha1(usedforsecurity=False),
    "MD5": _md5,
}


def stored_checksum(head: Mapping[str, Any], first_part_bytes: Callable[[], int]) -> Checksum | None:
    """The checksum in an answer of HeadObject. `first_part_bytes` asks for the size of the parts where it is needed."""
    if head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        for algorithm in _HASHES:
            value = head.get(f"Checksum{algorithm}")
            if value and "-" not in value:  # a checksum of checksums, in stores that do not name the type
                return Checksum(algorithm, base64.b64decode(value))
    if head.get("SSECustomerAlgorithm") or str(head.get("ServerSideEncryption", "")).startswith("aws:"):
        return None
    etag = str(head["ETag"]).strip('"')
    if re.fullmatch(r"[0-9a-f]{32}", etag):
        return Checksum("MD5", bytes.fromhex(etag))
    if match := _MULTIPART.fullmatch(etag):
        part_bytes = first_part_bytes()
        if part_bytes and -(-int(head["ContentLength"]) // part_bytes) == int(match[2]):
            return Checksum("MD5", bytes.fromhex(match[1]), part_bytes)
    return None


def matches(file: Path, checksum: Checksum) -> bool:
    """Whether the file's content is the stored one's."""
    if not checksum.part_bytes:
        return _digest(file, checksum.algorithm, 0, file.stat().st_size) == checksum.digest
    starts = range(0, file.stat().st_size, checksum.part_bytes)
    parts = b"".join(_digest(file, checksum.algorithm, start, checksum.part_bytes) for start in starts)
    return hashlib.md5(parts, usedforsecurity=False).digest() == checksum.digest


def _digest(file: Path, algorithm: str, start: int, count: int) -> bytes:
    hasher = _HASHES[algorithm]()
    for chunk in _chunks(file, start, count):
        hasher.update(chunk)
    return hasher.digest()


def _chunks(file: Path, start: int, count: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        while count > 0 and (chunk := stream.read(min(_CHUNK, count))):
            count -= len(chunk)
            yield chunk
