"""Options are checked by name and value before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from core.config import Options, parse_bytes, parse_named_options, parse_options, resolve
from core.errors import ConfigError, ModelNotFound
from core.types import DType


def test_a_misspelt_option_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="max_num_seq: no such option; did you mean 'max_num_seqs'"):
        parse_options({"max_num_seq": 3})


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_num_seqs", 0), ("max_model_len", "long"), ("dtype", "float8"), ("seed", -1), ("scheduling_policy", "lifo")],
)
def test_a_wrong_value_names_the_option(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_options({name: value})


def test_every_option_is_described() -> None:
    for field in msgspec.structs.fields(Options):
        info = msgspec.inspect.type_info(field.type)
        assert isinstance(info, msgspec.inspect.Metadata), field.name
        assert (info.extra_json_schema or {}).get("description"), field.name


@pytest.mark.parametrize(
    ("text", "count"), [("1048576", 1 << 20), ("512MiB", 512 << 20), ("1.5 GiB", 3 << 29), ("2gb", 2 * 10**9)]
)
def test_sizes(text: str, count: int) -> None:
    assert parse_bytes("--kv-cache-memory", text) == count


@pytest.mark.parametrize("text", ["", "-1", "4 GiBs", "many", "1e9"])
def test_wrong_sizes_name_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match="--kv-cache-memory"):
        parse_bytes("--kv-cache-memory", text)


def test_platform_options_go_to_their_platform() -> None:
    pairs = ("cpu.threads=2", "tpu.device=cpu", "cpu.note=a=b.c")
    assert parse_named_options("--platform-opt", pairs, "cpu") == {"threads": "2", "note": "a=b.c"}
    with pytest.raises(ConfigError, match=r"NAME\.KEY=VALUE"):
        parse_named_options("--platform-opt", ("threads=2",), "cpu")


class TestResolve:
    def test_reads_the_model(self, tiny_model: Callable[[str], Path]) -> None:
        config = resolve(str(tiny_model("qwen3")), parse_options({"max_model_len": 100, "dtype": "bfloat16"}))
        assert config.model.architecture == "Qwen3ForCausalLM"
        assert config.model.dtype is config.cache.dtype is DType.BFLOAT16
        assert config.scheduler.max_model_len == 100
        assert config.model.eos_token_ids == (2,)
        assert len(config.model.fingerprint) == 64

    def test_context_longer_than_the_models(self, tiny_model: Callable[[str], Path]) -> None:
        with pytest.raises(ConfigError, match="max_model_len: 513 is more than the 512"):
            resolve(str(tiny_model("llama")), parse_options({"max_model_len": 513}))

    def test_a_step_has_room_for_every_request(self, tiny_model: Callable[[str], Path]) -> None:
        model = str(tiny_model("llama"))
        assert resolve(model, parse_options({"max_num_seqs": 900})).scheduler.max_num_batched_tokens == 900
        whole = resolve(model, parse_options({"enable_chunked_prefill": False, "max_num_seqs": 2}))
        assert whole.scheduler.max_num_batched_tokens == 512
        for options in ({"max_num_seqs": 33}, {"enable_chunked_prefill": False}):
            with pytest.raises(ConfigError, match="--max-num-batched-tokens: 32 is less than"):
                resolve(model, parse_options({**options, "max_num_batched_tokens": 32}))

    def test_a_chat_template_file_that_is_not_there(self, tiny_model: Callable[[str], Path]) -> None:
        with pytest.raises(ConfigError, match=r"--chat-template: cannot read 'none\.jinja'"):
            resolve(str(tiny_model("llama")), parse_options({"chat_template": "none.jinja"}))

    def test_no_such_model(self) -> None:
        with pytest.raises(ModelNotFound, match="no such/directory/here"):
            resolve("no such/directory/here", Options())
