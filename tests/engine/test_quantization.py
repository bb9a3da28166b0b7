"""How weights are kept, from the option to the memory plan and the answers, on a platform of the contract's defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from core import LLM, SamplingParams, plugins
from core.config import parse_options, resolve
from core.engine.core import plan_memory
from core.errors import ConfigError, Unsupported
from core.platform import Override
from core.quantization import SCHEMES

Declare = Callable[..., None]
GREEDY = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
PROMPT = list(range(5, 30))


@pytest.fixture
def declare(monkeypatch: pytest.MonkeyPatch, test_platforms: None) -> Declare:
    """Lets the platform `static` declare schemes; its memory is the contract's default."""
    platform = type(plugins.create(plugins.choose(parse_options({"platform": "static"}))))
    before = platform.capabilities

    def declare(*schemes: str) -> None:
        def capabilities(self: Any) -> Any:
            return msgspec.structs.replace(before(self), quantization=schemes)

        monkeypatch.setattr(platform, "capabilities", capabilities)

    return declare


def planned(model: str, **options: Any) -> tuple[str, tuple[Override, ...]]:
    given = parse_options({"platform": "static", "max_model_len": 64, **options})
    plan, _ = plan_memory(resolve(model, given), plugins.choose(given))
    return plan.config.model.quantization, tuple(o for o in plan.overrides if o.option == "quantization")


@pytest.mark.parametrize(
    ("schemes", "reason"), [((), "this platform keeps no quantised weights"), (("int4",), "this platform has int4")]
)
def test_a_scheme_that_is_not_there_is_refused(
    tiny_model: Callable[[str], Path], declare: Declare, schemes: tuple[str, ...], reason: str
) -> None:
    declare(*schemes)
    with pytest.raises(Unsupported, match=f"--quantization int8 .*{reason}"):
        LLM(str(tiny_model("llama")), platform="static", quantization="int8", progress=False)


def test_an_unknown_scheme_names_the_option() -> None:
    with pytest.raises(ConfigError, match="quantization"):
        parse_options({"quantization": "int3"})


@pytest.mark.parametrize("scheme", ["int8", "int4"])
@pytest.mark.parametrize("load_format", ["auto", "dummy"])
def test_a_float_model_is_quantised_as_it_loads(
    tiny_model: Callable[[str], Path], declare: Declare, scheme: str, load_format: str
) -> None:
    declare("int8", "int4")
    options = {"platform": "static", "max_model_len": 64, "load_format": load_format, "progress": False}
    answers = {}
    for quantization in ("none", scheme):
        with LLM(str(tiny_model("llama")), quantization=quantization, **options) as llm:
            first, again = (llm.generate([PROMPT], GREEDY, progress=False)[0].outputs[0].token_ids for _ in range(2))
            assert first == again
            answers[quantization] = first
    assert len(answers[scheme]) == GREEDY.max_tokens


def test_a_float_model_has_no_blocks(tiny_model: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="--quantization: gguf keeps the blocks of a GGUF file"):
        planned(str(tiny_model("llama")), quantization="gguf")


def test_a_float_model_is_not_quantised_unasked(tiny_model: Callable[[str], Path], declare: Declare) -> None:
    declare(*SCHEMES)
    assert planned(str(tiny_model("llama"))) == ("none", ())


@pytest.mark.slow
class TestGGUF:
    def test_its_blocks_are_kept(self, demo_model: str, declare: Declare) -> None:
        declare(*SCHEMES)
        quantization, (override,) = planned(demo_model)
        assert quantization == override.value == "stored" and "kept as they are" in override.reason

    @pytest.mark.parametrize("options", [{"dtype": "float32"}, {"quantization": "none"}, {"load_format": "dummy"}])
    def test_or_not_if_the_user_says_so(self, demo_model: str, declare: Declare, options: dict[str, str]) -> None:
        declare(*SCHEMES)
        assert planned(demo_model, **options) == ("none", ())

    def test_or_where_the_platform_has_none(self, demo_model: str, declare: Declare) -> None:
        declare("int8")
        quantization, (override,) = planned(demo_model)
        assert quantization == override.value == "none"
        assert override.reason == "this platform keeps no GGUF blocks: the weights become float32"

    def test_which_is_an_error_if_they_are_asked_for(self, demo_model: str, declare: Declare) -> None:
        declare("int8")
        with pytest.raises(Unsupported, match=r"--quantization gguf .*this platform has int8"):
            planned(demo_model, quantization="gguf")

    @pytest.mark.parametrize("dtype", ["auto", "float32"])
    def test_they_are_kept_in_every_dtype_if_they_are_asked_for(
        self, demo_model: str, declare: Declare, dtype: str
    ) -> None:
        declare(*SCHEMES)
        assert planned(demo_model, quantization="gguf", dtype=dtype)[0] == "stored"

    def test_random_weights_have_none(self, demo_model: str) -> None:
        with pytest.raises(ConfigError, match="--quantization: gguf keeps the blocks of a GGUF file"):
            planned(demo_model, quantization="gguf", load_format="dummy")

    def test_or_if_another_scheme_is_wanted(self, demo_model: str, declare: Declare) -> None:
        declare(*SCHEMES)
        assert planned(demo_model, quantization="int4", dtype="float32") == ("int4", ())
