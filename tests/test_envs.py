from __future__ import annotations

import pytest

from core import envs
from core.errors import ConfigError


def test_defaults_and_values() -> None:
    assert envs.read({}) == envs.Environment()
    assert envs.read({"CORE_LOG_LEVEL": "debug", "CORE_LOG_FORMAT": ""}) == envs.Environment(log_level="debug")


def test_a_bad_value_names_the_variable_and_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"^CORE_LOG_FORMAT: 'yaml'.*json, text") as caught:
        envs.read({"CORE_LOG_FORMAT": "yaml"})
    assert caught.value.option == "CORE_LOG_FORMAT"


def test_every_variable_has_a_description() -> None:
    from msgspec import inspect

    described = inspect.type_info(envs.Environment)
    assert isinstance(described, inspect.StructType)
    for field in described.fields:
        assert isinstance(field.type, inspect.Metadata)
        assert (field.type.extra_json_schema or {})["description"]


def test_unknown_variables_are_named_with_the_nearest() -> None:
    environ = {"CORE_LOG_LEVL": "x", "CORE_CPU_ISA": "avx2", "CORE_LOG_LEVEL": "info", "HOME": "/", "CORE_QQ": ""}
    assert envs.unknown(environ) == [
        "CORE_LOG_LEVL is set, but nothing reads it; did you mean 'CORE_LOG_LEVEL'?",
        "CORE_QQ is set, but nothing reads it",
    ]
