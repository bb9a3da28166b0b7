"""Models in S3, played by moto's server behind a proxy that cuts and spoils."""

from __future__ import annotations

import base64
import hashlib
import json
import random
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cutting_proxy import CuttingProxy, cutting_proxy
from s3_server import ENVIRONMENT, client, s3_server

from core.errors import ConfigError, CoreError, ModelError, ModelNotFound, WeightError
from core.weights.s3 import checksums, partial, transfer
from core.weights.s3.store import Checksum
from core.weights.source import download, locate

pytestmark = pytest.mark.slow  # a server in a process of its own

PART = 1 << 20
WEIGHTS = random.Random(0).randbytes(5 * PART + 1000)
CONFIG = json.dumps({"architectures": ["LlamaForCausalLM"]}).encode()
FILES = {"config.json": CONFIG, "tokenizer.json": b"{}", "model.safetensors": WEIGHTS}
UNWANTED = {"pytorch_model.bin": b"pickle", "original/consolidated.safetensors": b"", "README.md": b"#"}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as port:
        s3 = client(port)
        s3.create_bucket(Bucket="models")
        for name, content in {**FILES, **UNWANTED}.items():
            s3.put_object(Bucket="models", Key=f"team/llama/{name}", Body=content)
        s3.put_object(Bucket="models", Key="gguf/small.gguf", Body=WEIGHTS, ChecksumAlgorithm="SHA256")
        s3.put_object(Bucket="models", Key="no-weights/config.json", Body=CONFIG)
        s3.put_object(Bucket="models", Key="other/readme.txt", Body=b"")
        yield port


@pytest.fixture
def store(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[CuttingProxy]:
    for name, value in {**ENVIRONMENT, "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(partial, "PART_BYTES", PART)
    monkeypatch.setattr(transfer, "_WAIT_S", 0.001)
    with cutting_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_prefix_becomes_a_directory_of_the_cache(store: CuttingProxy, tmp_path: Path) -> None:
    source = locate("s3://models/team/llama/")
    assert source.path == tmp_path / "hf" / "s3" / "models" / "team" / "llama" and source.format == "huggingface"
    assert contents(source.path) == FILES

    passed = store.passed
    assert locate("s3://models/team/llama") == source
    assert store.passed - passed < PART, "what is there was fetched again"


def test_without_weights_only_the_description_is_fetched(store: CuttingProxy) -> None:
    source = locate("s3://models/team/llama", weights=False)
    assert sorted(contents(source.path)) == ["config.json", "tokenizer.json"]


def test_one_file_into_a_directory(store: CuttingProxy, tmp_path: Path) -> None:
    path = download("s3://models/gguf/small.gguf", tmp_path / "here")
    assert path == tmp_path / "here" / "small.gguf" and path.read_bytes() == WEIGHTS
    assert locate("s3://models/gguf/small.gguf").format == "gguf"


def test_a_connection_that_is_cut_is_taken_up_where_it_stopped(store: CuttingProxy, tmp_path: Path) -> None:
    store.cuts_left, store.cut_after = 5, PART // 2
    path = download("s3://models/gguf/small.gguf", tmp_path)
    assert path.read_bytes() == WEIGHTS and store.cuts_left == 0
    # Five parts begun anew would pass another 2.5; what a cut loses is a chunk.
    assert store.passed < len(WEIGHTS) + PART


def test_a_later_process_fetches_only_the_parts_that_are_missing(
    store: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "CONNECTIONS", 1)
    begun = iter(range(100))

    def read(*arguments: Any) -> Iterator[bytes]:
        if next(begun) == 3:
            raise ModelNotFound("the network is gone")
        return real(*arguments)

    real = transfer.Store.read
    monkeypatch.setattr(transfer.Store, "read", read)
    with pytest.raises(ModelNotFound, match="the network is gone"):
        download("s3://models/gguf/small.gguf", tmp_path)
    assert not (tmp_path / "small.gguf").exists()

    passed = store.passed
    assert download("s3://models/gguf/small.gguf", tmp_path).read_bytes() == WEIGHTS
    assert store.passed - passed < len(WEIGHTS) - 2 * PART


def test_a_store_that_brings_nothing_is_given_up(store: CuttingProxy, tmp_path: Path) -> None:
    (tmp_path / "small.gguf").mkdir()  # nothing may touch it
    store.cut_bodies = True
    with pytest.raises(ModelNotFound, match=r"s3://models/gguf/small\.gguf could not be fetched, in 6 tries"):
        download("s3://models/gguf/small.gguf", tmp_path)


def test_an_error_of_a_later_part_ends_an_earlier_one(
    store: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(_: Any, __: Any, start: int, ___: int) -> Iterator[bytes]:
        if start != 0:
            raise ModelNotFound("access was taken back")
        for _ in range(500):
            time.sleep(0.01)
            yield b""
        raise AssertionError("nobody ended it")

    monkeypatch.setattr(transfer.Store, "read", read)
    with pytest.raises(ModelNotFound, match="access was taken back"):
        download("s3://models/gguf/small.gguf", tmp_path)


def test_a_store_that_knows_no_ranges_is_refused(
    store: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init(self: transfer.Store, bucket: str) -> None:
        real(self, bucket)
        get = self._client.get_object
        self._client.get_object = lambda Range, **given: get(**given)

    real = transfer.Store.__init__
    monkeypatch.setattr(transfer.Store, "__init__", init)
    with pytest.raises(ModelNotFound, match="5243880 bytes came where 1048576 were asked for"):
        download("s3://models/gguf/small.gguf", tmp_path)


def test_a_wrong_checksum_is_refused(store: CuttingProxy, tmp_path: Path) -> None:
    store.spoil = (WEIGHTS[PART + 100 : PART + 116], bytes(16))
    with pytest.raises(WeightError, match="SHA256 checksum, and was discarded"):
        download("s3://models/gguf/small.gguf", tmp_path)
    assert contents(tmp_path) == {}
    store.spoil = None
    assert download("s3://models/gguf/small.gguf", tmp_path).read_bytes() == WEIGHTS


def test_an_object_that_was_replaced_is_fetched_again(store: CuttingProxy, port: int, tmp_path: Path) -> None:
    s3 = client(port)
    for content in (b"one" * PART, b"two" * PART):
        s3.put_object(Bucket="models", Key="changing/a.gguf", Body=content)
        assert download("s3://models/changing/a.gguf", tmp_path).read_bytes() == content


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("s3://", ModelNotFound, "not of the form s3://bucket/prefix"),
        ("s3://models/../x", ModelNotFound, "not of the form"),
        ("s3://absent/x", ModelNotFound, "the store has nothing there"),
        ("s3://models/absent.gguf", ModelNotFound, "the store has nothing there"),
        ("s3://models/absent", ModelNotFound, "there is nothing under that prefix"),
        ("s3://models/other", ModelNotFound, "not a model in Hugging Face's format"),
        ("s3://models/gguf", ModelNotFound, "did you mean s3://models/gguf/small.gguf?"),
        ("s3://models/no-weights", ModelNotFound, "holds no weights"),
    ],
)
def test_what_is_no_model_is_refused(store: CuttingProxy, url: str, error: type[CoreError], message: str) -> None:
    with pytest.raises(error) as caught:
        locate(url)
    assert message in str(caught.value)


def test_a_revision_is_refused(store: CuttingProxy) -> None:
    with pytest.raises(ConfigError, match="--revision"):
        locate("s3://models/team/llama", revision="v2")


def test_a_full_disk_is_named_before(store: CuttingProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type(transfer.shutil.disk_usage(tmp_path))(1, 1, 0)
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda _: full)
    with pytest.raises(ModelError, match=r"0\.0 GB are free; make room"):
        download("s3://models/gguf/small.gguf", tmp_path)


def test_what_to_install_is_said(store: CuttingProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(ModelError, match=r"pip install 'core\[s3\]'"):
        locate("s3://models/team/llama")


# --- checksums -----------------------------------------------------------------------------------------------


def encoded(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


MD5 = hashlib.md5(WEIGHTS).hexdigest()
PARTS = b"".join(hashlib.md5(WEIGHTS[at : at + PART]).digest() for at in range(0, len(WEIGHTS), PART))
MULTIPART = f'"{hashlib.md5(PARTS).hexdigest()}-6"'


@pytest.mark.parametrize(
    ("head", "algorithm"),
    [
        ({"ChecksumSHA256": encoded(hashlib.sha256(WEIGHTS).digest())}, "SHA256"),
        ({"ChecksumSHA1": encoded(hashlib.sha1(WEIGHTS).digest())}, "SHA1"),
        ({"ChecksumCRC32": encoded(zlib.crc32(WEIGHTS).to_bytes(4, "big"))}, "CRC32"),
        ({"ETag": f'"{MD5}"'}, "MD5"),
        ({"ETag": MULTIPART}, "MD5"),
        ({"ETag": MULTIPART, "ChecksumType": "COMPOSITE", "ChecksumCRC32": "AAAAAA==-6"}, "MD5"),
        ({"ETag": f'"{MD5}"', "ServerSideEncryption": "AES256"}, "MD5"),
    ],
)
def test_the_store_s_checksum_fits_the_file_and_no_other(head: dict[str, Any], algorithm: str, tmp_path: Path) -> None:
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_bytes(WEIGHTS)
    wrong.write_bytes(WEIGHTS[:-1] + b"x")
    head = {"ETag": '"opaque"', "ContentLength": len(WEIGHTS), **head}
    checksum = checksums.stored_checksum(head, lambda: PART)
    assert checksum is not None and checksum.algorithm == algorithm
    assert checksums.matches(right, checksum) and not checksums.matches(wrong, checksum)


@pytest.mark.parametrize(
    ("algorithm", "check_value"),
    # Of the digits 1 to 9: the check values of the catalogue of CRCs, https://reveng.sourceforge.io/crc-catalogue/
    [("CRC64NVME", "ae8b14860a799888"), ("CRC32C", "e3069283"), ("CRC32", "cbf43926")],
)
def test_crcs_have_the_catalogue_s_check_values(algorithm: str, check_value: str, tmp_path: Path) -> None:
    file = tmp_path / "digits"
    file.write_bytes(b"123456789")
    assert checksums.matches(file, Checksum(algorithm, bytes.fromhex(check_value)))


@pytest.mark.parametrize(
    "head",
    [
        {"ETag": '"opaque"'},
        {"ETag": f'"{MD5}"', "ServerSideEncryption": "aws:kms"},
        {"ETag": f'"{MD5}"', "SSECustomerAlgorithm": "AES256"},
        {"ETag": MULTIPART.replace("-6", "-7")},  # parts of different sizes
    ],
)
def test_what_is_no_checksum_is_not_tried(head: dict[str, Any]) -> None:
    assert checksums.stored_checksum({"ContentLength": len(WEIGHTS), **head}, lambda: PART) is None


def test_multipart_uploads_are_checked(store: CuttingProxy, port: int, tmp_path: Path) -> None:
    s3, place, size = client(port), {"Bucket": "models", "Key": "multipart/m.gguf"}, 5 << 20
    content = random.Random(1).randbytes(size + 1)
    upload = s3.create_multipart_upload(**place)["UploadId"]
    parts = []
    for number, part in enumerate((content[:size], content[size:]), 1):
        answer = s3.upload_part(**place, UploadId=upload, PartNumber=number, Body=part)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    s3.complete_multipart_upload(**place, UploadId=upload, MultipartUpload={"Parts": parts})
    store.spoil = (content[-200:-184], bytes(16))
    with pytest.raises(WeightError, match="checksum"):
        download("s3://models/multipart/m.gguf", tmp_path)
    store.spoil = None
    assert download("s3://models/multipart/m.gguf", tmp_path).read_bytes() == content


# --- the commands --------------------------------------------------------------------------------------------


def test_a_model_is_served_from_s3(store: CuttingProxy, port: int, tiny_model: Callable[[str], Path]) -> None:
    from real_server import ONE_THREAD, real_server

    s3 = client(port)
    for path in tiny_model("llama").iterdir():
        s3.put_object(Bucket="models", Key=f"tiny/{path.name}", Body=path.read_bytes())
    with real_server("s3://models/tiny", "--kv-cache-memory", "16MiB", *ONE_THREAD) as server:
        assert server.model == "s3://models/tiny"
        status, _, answer = server.complete([1, 2, 3], max_tokens=4)
    assert status == 200 and answer["usage"]["completion_tokens"] == 4
