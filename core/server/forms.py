"""The form that a request asks its answer to have, by whichever of the fields that APIs have for it.

Sources: OpenAI's API reference (`response_format`) and vLLM's structured outputs, `guided_*` as it once spelt them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import msgspec

from core.errors import InvalidRequest
from core.types import StructuredOutputs


class JsonSchema(msgspec.Struct, frozen=True, kw_only=True):
    """A schema by name. Unless it is `strict`, keywords that cannot be enforced are left to the model."""

    schema: dict[str, Any]
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Any text, any JSON object, or JSON by a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def form(self, field: str) -> StructuredOutputs | None:
        """What the engine is asked for; nothing for any text. Raises InvalidRequest naming the `field`."""
        if self.type == "text":
            return None
        if self.type == "json_object":
            return StructuredOutputs(json_object=True)
        if self.json_schema is None:
            param = f"{field}.json_schema"
            raise InvalidRequest(f"{param}: the field is required with the type 'json_schema'", param=param)
        return StructuredOutputs(json=self.json_schema.schema, strict=bool(self.json_schema.strict))


class Form(NamedTuple):
    """A form, if there is one, and the field that asked for it."""

    outputs: StructuredOutputs | None
    field: str


def form_of(
    response_format: ResponseFormat | None,
    structured_outputs: StructuredOutputs | None,
    guided: Mapping[str, Any],
    *,
    format_field: str = "response_format",
) -> Form:
    """The one form that is asked for; `guided` are the fields that say what, by their names.

    Raises InvalidRequest where there are several.
    """
    forms = [Form(response_format.form(format_field), format_field)] if response_format is not None else []
    forms.append(Form(structured_outputs, "structured_outputs"))
    for name, value in guided.items():
        if value is not None:
            given: dict[str, Any] = {name.removeprefix("guided_"): tuple(value) if isinstance(value, list) else value}
            forms.append(Form(StructuredOutputs(**given), name))
    asked = [form for form in forms if form.outputs is not None]
    if len(asked) > 1:
        fields = " and ".join(form.field for form in asked)
        raise InvalidRequest(f"{asked[1].field}: one form can be asked for, not {fields}", param=asked[1].field)
    return asked[0] if asked else Form(None, "structured_outputs")
