"""What the contract itself promises, whoever implements it."""

from __future__ import annotations

import abc
import inspect
import pickle
from typing import Any, cast

import msgspec
import pytest

from core import platform as contract
from core.config import CacheConfig, Config, ModelConfig, Options, ParallelConfig, SchedulerConfig
from core.distributed.uniproc import UniprocExecutor
from core.errors import ConfigError, Unsupported
from core.hookspecs import parse_own_options
from core.platform import Bucket, Capabilities, ChosenPlatform, Override, Plan, Platform, Support
from core.types import DType

CONFIG = Config(
    options=Options(),
    model=ModelConfig(
        name="m", path="/m", format="huggingface", architecture="A", hf_config={"a": [1]}, dtype=DType.FLOAT32,
        max_model_len=64, vocab_size=8, eos_token_ids=(1,), tokenizer_path="/m",
    ),
    cache=CacheConfig(),
    scheduler=SchedulerConfig(),
)  # fmt: skip

ABSTRACT = [cls for _, cls in inspect.getmembers(contract, inspect.isabstract)]


class Smallest(Platform):
    """Every abstract method and nothing else."""

    worker = "no_such_worker_module:Worker"

    def devices(self) -> Any: ...

    def capabilities(self) -> Any: ...

    def plan(self, config: Config) -> Plan:
        return Plan(config=config)

    def memory(self) -> Any: ...

    def kernels(self) -> Any: ...

    def attention(self) -> Any: ...


@pytest.mark.parametrize("cls", ABSTRACT)
def test_what_is_missing_fails_at_construction(cls: type[abc.ABC]) -> None:
    methods = sorted(cls.__abstractmethods__)
    for missing in methods:
        given = {name: lambda self: None for name in methods if name != missing}
        with pytest.raises(TypeError, match=missing):
            type("Incomplete", (cls,), given)()


def test_the_contracts_classes_answer_only_for_what_they_have() -> None:
    assert {cls.__name__ for cls in ABSTRACT} >= {
        "Platform",
        "MemoryBackend",
        "KernelTable",
        "AttentionBackend",
        "Executor",
    }
    for cls in ABSTRACT:
        assert not hasattr(cls, "__getattr__")
    with pytest.raises(AttributeError):
        Smallest().is_cuda  # type: ignore[attr-defined]  # noqa: B018


def test_the_smallest_platform_has_defaults() -> None:
    platform = Smallest()
    assert platform.compile(cast("Any", None), Bucket(1, 1)) is None
    assert platform.max_in_flight == 1
    platform.close()
    platform.close()


def test_the_default_executor_is_uniproc_with_the_named_worker() -> None:
    with pytest.raises(ModuleNotFoundError, match="no_such_worker_module"):
        Smallest().create_executor(Plan(config=CONFIG))
    assert issubclass(UniprocExecutor, contract.Executor)


def test_the_default_executor_refuses_several_devices() -> None:
    config = msgspec.structs.replace(CONFIG, parallel=ParallelConfig(tensor=2))
    with pytest.raises(Unsupported, match="--tensor-parallel-size 2"):
        Smallest().create_executor(Plan(config=config))


@pytest.mark.parametrize(
    "data",
    [
        Plan(config=CONFIG, overrides=(Override(option="dtype", value="float32", reason="because"),)),
        Capabilities(dtypes=(DType.FLOAT32,), kv_dtypes=(DType.BFLOAT16,), buckets=(Bucket(4, 2),)),
        ChosenPlatform("cpu", {"threads": "2"}, "a CPU"),
    ],
)
def test_what_crosses_processes_can_travel(data: Any) -> None:
    assert pickle.loads(pickle.dumps(data)) == data
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(data), type=type(data)) == data


def test_support_is_its_truth() -> None:
    assert Support(True)
    assert not Support(False, "why")


class OwnOptions(msgspec.Struct, frozen=True):
    threads: int = 1
    fast: bool = False


def test_a_platforms_options_are_converted() -> None:
    assert parse_own_options("x", {"threads": "3", "fast": "true"}, OwnOptions) == OwnOptions(3, True)
    assert parse_own_options("x", {}, OwnOptions) == OwnOptions()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thread": "3"}, r"--platform-opt x\.thread: .*did you mean 'threads'"),
        ({"zzz": "3"}, r"--platform-opt x\.zzz: .*it has threads, fast"),
        ({"threads": "many"}, r"--platform-opt x\.threads: 'many' will not do"),
    ],
)
def test_a_platforms_unknown_options_are_errors(given: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_own_options("x", given, OwnOptions)
