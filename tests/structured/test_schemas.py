"""Random JSON schemas: an answer of the demo model that ends is valid by the schema it was given.

CORE_TEST_SCHEMAS says how many schemas are tried.
"""

from __future__ import annotations

import json
import os
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from core import LLM, SamplingParams
from core.errors import InvalidRequest
from core.structured.grammar import check
from core.types import StructuredOutputs

COUNT = int(os.environ.get("CORE_TEST_SCHEMAS", "24"))
MAX_TOKENS = 120


def typed(kind: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas of a type, with all or some of these keywords."""
    return st.fixed_dictionaries({"type": st.just(kind)}, optional=fields)


def schemas(depth: int) -> st.SearchStrategy[dict[str, Any]]:
    """Schemas that nest up to `depth` deep."""
    scalar = st.sampled_from(["x", "two words", 'q"\\', "é", 0, -7, 2.5, True, None])
    kinds = [
        st.sampled_from(["boolean", "null", "integer", "number"]).map(lambda kind: {"type": kind}),
        typed("string", minLength=st.integers(0, 3), maxLength=st.integers(3, 9)),
        typed("string", pattern=st.sampled_from(["^[a-f]{2,5}$", "^(yes|no)$", r"^\d{4}-\d\d$"])),
        typed("string", format=st.sampled_from(["date", "uuid", "ipv4", "time"])),
        typed("integer", minimum=st.integers(-99, 0), maximum=st.integers(0, 1000)),
        st.lists(scalar, min_size=1, max_size=4).map(lambda values: {"enum": values}),
        scalar.map(lambda value: {"const": value}),
    ]
    if depth:
        inner, names = schemas(depth - 1), st.sampled_from(["a", "name", "n m"])
        some = st.lists(names, unique=True)
        kinds += [
            st.builds(_object, st.dictionaries(names, inner), some),
            typed("array", items=inner, minItems=st.integers(0, 2), maxItems=st.integers(2, 4)),
            st.lists(inner, min_size=1, max_size=3).map(lambda each: {"anyOf": each}),
        ]
    return st.one_of(kinds)


def _object(properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def generated(count: int) -> list[dict[str, Any]]:
    """Different schemas, the same in every run, that the library takes."""
    found: dict[str, dict[str, Any]] = {}

    @settings(
        max_examples=20 * count, derandomize=True, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(schemas(2))
    def collect(schema: dict[str, Any]) -> None:
        text = json.dumps(schema, sort_keys=True)
        if len(found) < count and text not in found and is_taken(schema):
            found[text] = schema

    collect()
    return list(found.values())


def is_taken(schema: dict[str, Any]) -> bool:
    """Whether anything is valid by it: all keywords here are enforced."""
    try:
        check(StructuredOutputs(json=schema))
    except InvalidRequest as error:
        assert "nsatisfiable" in str(error) or "no text matches" in str(error), error
        return False
    return True


@pytest.mark.slow
def test_answers_that_end_are_valid(demo_model: str, record_property: Any) -> None:
    asked = generated(COUNT)
    assert len(asked) == COUNT
    params = [
        SamplingParams(temperature=0.7, seed=i, max_tokens=MAX_TOKENS, structured_outputs=StructuredOutputs(json=each))
        for i, each in enumerate(asked)
    ]
    with LLM(demo_model, dtype="float32", max_model_len=512, max_num_seqs=64, progress=False) as llm:
        outputs = llm.generate([f"An example in JSON of {json.dumps(each)}:\n" for each in asked], params)
    ended = 0
    for schema, output in zip(asked, outputs, strict=True):
        choice = output.outputs[0]
        assert choice.finish_reason in ("stop", "length"), (schema, choice)
        if choice.finish_reason == "stop":
            jsonschema_rs.Draft202012Validator(schema, validate_formats=True).validate(json.loads(choice.text))
            ended += 1
    record_property("ended", f"{ended} of {COUNT}")
    print(f"{ended} of {COUNT} answers ended within {MAX_TOKENS} tokens")
    assert ended > COUNT // 2
