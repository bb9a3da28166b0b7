"""The store, through boto3: what lies under a prefix, one object's description, a range of its bytes.

boto3 reads the AWS_* variables (AWS_ENDPOINT_URL for other stores), profiles, and the credentials of pods and machines;
where there are none, requests go unsigned, which public buckets accept. It is imported when first needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import msgspec

from core.errors import ModelError, ModelNotFound

#: Requests at a time, over all objects of a model.
CONNECTIONS = 16

#: Bytes taken from a connection at once: what a cut may lose.
_CHUNK = 128 << 10


class Location(NamedTuple):
    """`s3://bucket/key`; the key may be empty."""

    bucket: str
    key: str

    @classmethod
    def of(cls, url: str) -> Location:
        """Raises `ModelNotFound` for what is no such URL."""
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        if scheme != "s3" or not bucket or any(part in (".", "..") for part in key.split("/")):
            raise ModelNotFound(f"{url!r} is not of the form s3://bucket/prefix")
        return cls(bucket, key.strip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


class Checksum(msgspec.Struct, frozen=True):
    """What the store says of an object's content. `part_bytes`: of a hash over the hashes of such parts, or 0."""

    algorithm: str
    digest: bytes
    part_bytes: int = 0


class StoredObject(msgspec.Struct, frozen=True):
    """One object. `etag` changes with its content; `checksum` is None where the store has none that can be tried."""

    location: Location
    size: int
    etag: str
    checksum: Checksum | None


class Cut(Exception):
    """A connection ended, or stood still, in the middle; the message says how."""


class Store:
    """The objects of one bucket."""

    def __init__(self, bucket: str) -> None:
        try:
            import boto3
        except ImportError as error:
            raise ModelError("a model in S3 needs boto3, which is not installed: pip install 'core[s3]'") from error
        from botocore import UNSIGNED
        from botocore.config import Config

        self._bucket = bucket
        with translated(f"s3://{bucket}"):
            session = boto3.session.Session()
            self._client = session.client(
                "s3",
                region_name=session.region_name or "us-east-1",  # only signs; a store elsewhere answers with its own
                config=Config(
                    max_pool_connections=CONNECTIONS,
                    retries={"mode": "standard", "max_attempts": 5},
                    connect_timeout=10,
                    read_timeout=60,
                    response_checksum_validation="when_required",  # of a range there is none; the whole file is tried
                    signature_version=None if session.get_credentials() else UNSIGNED,
                ),
            )

    def names(self, prefix: str) -> list[str]:
        """The names directly under the prefix, none with a `/`."""
        folder = f"{prefix}/" if prefix else ""
        with translated(f"s3://{self._bucket}/{prefix}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=folder, Delimiter="/"
            )
            keys = [entry["Key"] for page in pages for entry in page.get("Contents", ())]
        return sorted(name for key in keys if (name := key.removeprefix(folder)))

    def describe(self, location: Location) -> StoredObject:
        """Raises `ModelNotFound` where there is no such object."""
        from core.weights.s3.checksums import stored_checksum

        with translated(str(location)):
            head = self._head(location, ChecksumMode="ENABLED")
            return StoredObject(
                location=location,
                size=head["ContentLength"],
                etag=head["ETag"],
                checksum=stored_checksum(head, lambda: int(self._head(location, PartNumber=1)["ContentLength"])),
            )

    def _head(self, location: Location, **arguments: Any) -> dict[str, Any]:
        head: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=location.key, **arguments)
        return head

    def read(self, stored: StoredObject, start: int, stop: int) -> Iterator[bytes]:
        """The bytes [start, stop). Raises `Cut` where the connection ends before, `ModelNotFound` for a refusal."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        wanted = {"Range": f"bytes={start}-{stop - 1}", "IfMatch": stored.etag}
        with translated(str(stored.location)):
            try:
                answer = self._client.get_object(Bucket=self._bucket, Key=stored.location.key, **wanted)
                with closing(answer["Body"]) as body:
                    if answer["ContentLength"] != stop - start:
                        raise ModelNotFound(
                            f"{stored.location}: {answer['ContentLength']} bytes came where {stop - start} were asked for; "
                            "the store must answer requests with a Range"
                        )
                    yield from body.iter_chunks(_CHUNK)
            except (HTTPClientError, IncompleteReadError) as error:
                raise Cut(str(error)) from error


@contextmanager
def translated(what: str) -> Iterator[None]:
    """The seam where botocore's errors become ours."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        raise ModelNotFound(f"{what}: {_REFUSALS.get(status, f'the store refused: {error}')}") from error
    except BotoCoreError as error:
        raise ModelNotFound(f"{what} could not be fetched: {error}") from error


_REFUSALS = {
    403: "the store refuses these credentials; AWS_ACCESS_KEY_ID, AWS_PROFILE or the role must allow s3:GetObject and s3:ListBucket",
    404: "the store has nothing there; check the bucket, the key, and AWS_ENDPOINT_URL",
    412: "it was replaced while it was being fetched; start again to fetch the new one",
}
