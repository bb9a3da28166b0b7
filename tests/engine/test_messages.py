"""The wire: what is sent is what arrives."""

from __future__ import annotations

import msgspec
import pytest
from fake_engine import CONFIG
from hypothesis import given
from hypothesis import strategies as st

from core.engine.messages import (
    LENGTH,
    Birth,
    Deltas,
    EngineSpec,
    FromEngine,
    FrontendSpec,
    Spec,
    Submit,
    ToEngine,
    encode,
    frame,
    load_name,
    rejection,
    request_error,
)
from core.errors import DeadlineExceeded, InvalidRequest, NotFound, QueueFull, RequestError
from core.platform import ChosenPlatform
from core.server.options import ServerOptions
from core.types import EngineRequest, RequestDelta, SamplingParams, TokenLogprobs

_IDS = st.lists(st.integers(0, 2**31 - 1), max_size=20)
_LOGPROBS = st.builds(
    TokenLogprobs,
    st.floats(-100, 0),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 1000), st.floats(-100, 0)), max_size=3),
)


@given(st.text(), _IDS, _IDS, st.none() | st.floats(0, 1e9), st.dictionaries(st.integers(0, 99), st.floats(-100, 100)))
def test_requests_arrive_as_they_were(
    name: str, prompt: list[int], output: list[int], deadline: float | None, bias: dict[int, float]
) -> None:
    request = EngineRequest(
        request_id=name,
        prompt_token_ids=prompt,
        output_token_ids=output,
        deadline=deadline,
        params=SamplingParams(seed=-(2**63), logit_bias=bias, stop=("a", "\0")),
    )
    assert msgspec.msgpack.decode(encode(Submit(request)), type=ToEngine) == Submit(request)


@given(
    st.lists(st.builds(RequestDelta, st.text(), _IDS, logprobs=st.none() | st.lists(_LOGPROBS, max_size=3)), max_size=4)
)
def test_deltas_arrive_as_they_were(deltas: list[RequestDelta]) -> None:
    assert msgspec.msgpack.decode(encode(Deltas(deltas)), type=FromEngine) == Deltas(deltas)


@pytest.mark.parametrize("kind", [RequestError, InvalidRequest, NotFound, DeadlineExceeded])
def test_errors_arrive_as_they_were(kind: type[RequestError]) -> None:
    arrived = request_error(rejection("r", kind("x: is wrong", param="x", code="wrong")))
    assert type(arrived) is kind
    assert (str(arrived), arrived.param, arrived.code) == ("x: is wrong", "x", "wrong")


def test_a_full_queue_arrives_with_its_delay() -> None:
    arrived = request_error(rejection("r", QueueFull("full", retry_after_s=7.5)))
    assert isinstance(arrived, QueueFull) and arrived.retry_after_s == 7.5


def test_an_error_of_an_unknown_kind_stays_a_request_error() -> None:
    class Special(InvalidRequest):
        pass

    assert type(request_error(rejection("r", Special("x")))) is RequestError


def arrive(spec: Spec) -> Spec:
    birth = Birth(parent_pid=1, report_fd=2, spec=spec)
    return msgspec.msgpack.decode(frame(birth)[LENGTH.size :], type=Birth).spec


def test_specs_arrive_as_they_were() -> None:
    engine = EngineSpec(factory="a:b", config=CONFIG, chosen=ChosenPlatform("cpu", {"k": "v"}), endpoint="e")
    options = ServerOptions(port=1, api_key=("k",))
    frontend = FrontendSpec(
        entry="a:b",
        options_type="core.server.options:ServerOptions",
        options=msgspec.Raw(encode(options)),
        config=CONFIG,
        listen_fd=3,
        control_endpoint="c",
    )
    assert arrive(engine) == engine
    arrived = arrive(frontend)
    assert isinstance(arrived, FrontendSpec)
    assert msgspec.msgpack.decode(arrived.options, type=load_name(arrived.options_type)) == options


def test_a_name_leads_to_its_object() -> None:
    assert load_name("core.types:SamplingParams.greedy") is SamplingParams.greedy
