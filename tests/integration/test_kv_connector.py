"""KV that was computed elsewhere: an engine that finds it gives the tokens of one that computes it, and so does one
whose store goes wrong."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiny_models

from core import LLM, SamplingParams
from core.errors import ConfigError, PluginLoadError, Unsupported
from core.platform import Capabilities
from core.transfer import lane
from platforms.cpu.platform import CpuPlatform

CONNECTORS = Path(__file__).parents[1] / "connectors"
BLOCK = 16

GREEDY = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.2, top_p=0.95, seed=3, max_tokens=24, ignore_eos=True)
#: full attention, a window, and a group of each
FAMILIES = ["llama", "mistral", "qwen2-mixed"]

Make = Callable[..., LLM]
_names = itertools.count()


@pytest.fixture
def make(tiny_model: Callable[[str], Path], test_platforms: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Makes engines, with a connector to `store` if one is named."""
    monkeypatch.syspath_prepend(str(CONNECTORS))
    made: list[LLM] = []

    def new(family: str = "llama", store: str | None = None, fault: str = "none", **options: Any) -> LLM:
        if store is not None:
            options |= {"kv_connector": "shelf", "plugin_opt": (f"shelf.store={store}", f"shelf.fault={fault}")}
        defaults = {"platform": "cpu", "dtype": "float32", "max_num_seqs": 8, "max_model_len": 256}
        if options.get("platform", "cpu") == "cpu":
            options["platform_opt"] = ("cpu.threads=1",)
        made.append(LLM(str(tiny_model(family)), progress=False, **{**defaults, **options}))
        return made[-1]

    yield new
    for llm in made:
        llm.close()


@pytest.fixture
def store() -> str:
    """A name that no other test has."""
    return f"store {next(_names)}"


@pytest.fixture
def release() -> Iterator[None]:
    """Ends, at last, the calls that hang."""
    import shelf  # on sys.path by now

    shelf.RELEASE.clear()
    yield
    shelf.RELEASE.set()


def prompts(seed: int = 0) -> list[list[int]]:
    """Some that share a beginning of five blocks, some that share nothing, of lengths about a block's."""
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(3, tiny_models.VOCAB) for _ in range(count)]

    common = ids(5 * BLOCK)
    return [common + ids(n) for n in (1, 5, 17, 40)] + [ids(n) for n in (1, 15, 16, 17, 33, 150)]


def tokens(llm: LLM, params: SamplingParams, given: list[list[int]] | None = None) -> list[list[int]]:
    outputs = llm.generate(prompts() if given is None else given, params, progress=False)
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.slow
@pytest.mark.parametrize("platform", ["cpu", "static", "fakegraph"])
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_an_engine_without(
    make: Make, store: str, family: str, params: SamplingParams, platform: str
) -> None:
    expected = tokens(make(family, platform=platform), params)
    first = make(family, store, platform=platform)
    assert tokens(first, params) == expected
    first.close()  # the last saves are made by then
    second = make(family, store, platform=platform)
    assert tokens(second, params) == expected
    stats = second.engine.stats()
    assert stats.external_prefix_queries >= stats.external_prefix_hits >= 5 * BLOCK + 2 * BLOCK + 9 * BLOCK
    assert stats.kv_transfers.loaded > 0 and stats.kv_transfers.failed == stats.kv_transfers.dropped == 0


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_are_those_of_an_engine_without_under_preemption(make: Make, store: str, family: str) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=90, ignore_eos=True)
    expected = tokens(make(family), params)
    tight = {"kv_cache_memory": "205KiB", "max_num_batched_tokens": 48}
    for _ in range(2):
        llm = make(family, store, **tight)
        assert tokens(llm, params) == expected
        assert llm.engine.stats().preemptions > 0
        llm.close()
    assert llm.engine.stats().external_prefix_hits > 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_prompts_are_reported_as_cached(make: Make, store: str, dtype: str) -> None:
    (prompt,) = prompts()[9:]
    first = make("llama", store, dtype=dtype)
    (fresh,) = first.generate(prompt, GREEDY)
    first.close()
    (found,) = make("llama", store, dtype=dtype).generate(prompt, GREEDY)
    assert (fresh.num_cached_tokens, found.num_cached_tokens) == (0, 144)
    if dtype == "float32":
        assert found.outputs[0].token_ids == fresh.outputs[0].token_ids


@pytest.mark.slow
def test_what_blocks_mean_is_part_of_their_names(make: Make, store: str) -> None:
    """Another model, dtype, block size, layout or platform shares nothing."""
    import shelf

    variants: list[dict[str, Any]] = [
        {},
        {"family": "qwen3"},
        {"kv_cache_dtype": "bfloat16"},
        {"block_size": 32},
        {"platform": "static"},
    ]
    shelf.CONTEXTS.clear()
    for variant in variants:
        llm = make(**{"store": store, **variant})
        tokens(llm, GREEDY)
        assert llm.engine.stats().external_prefix_hits == 0
        llm.close()
    assert len({context.identity for context in shelf.CONTEXTS}) == len(variants)
    for context in shelf.CONTEXTS:
        per_token = 3 * 2 * 2 * (32 * 4 if "32:" in context.identity else 16 * 4)
        assert context.block_bytes[0] in (context.block_size * per_token, context.block_size * per_token // 2)
    assert shelf.CONTEXTS[0] == shelf.CONTEXTS[1], "both sides"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "raise-load", "short", "forget"])
def test_a_store_that_goes_wrong_costs_computations_only(
    make: Make, store: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "REST_S", 0.0)
    expected = tokens(make("qwen2-mixed"), GREEDY)
    good = make("qwen2-mixed", store)
    tokens(good, GREEDY)
    good.close()
    bad = make("qwen2-mixed", store, fault)
    assert tokens(bad, GREEDY) == expected
    stats = bad.engine.stats()
    assert stats.external_prefix_hits == 0
    assert stats.kv_transfers.loaded == 0 and stats.kv_transfers.failed > 0


@pytest.mark.slow
def test_a_store_that_hangs_costs_computations_only(
    make: Make, store: str, release: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("HUNG_S", 0.2), ("REST_S", 0.1), ("CLOSE_S", 0.1)):
        monkeypatch.setattr(lane, name, value)
    expected = tokens(make("mistral"), GREEDY)
    good = make("mistral", store)
    tokens(good, GREEDY)
    good.close()
    bad = make("mistral", store, "hang")
    assert tokens(bad, GREEDY) == expected
    assert bad.engine.stats().external_prefix_hits == 0
    assert bad.engine.stats().kv_transfers.failed > 0


@pytest.mark.slow
def test_waiting_for_loads_is_no_busy_loop(
    make: Make, store: str, release: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane, "HUNG_S", 0.5)
    monkeypatch.setattr(lane, "CLOSE_S", 0.1)
    prompt = prompts()[9]
    good = make("llama", store)
    good.generate(prompt, GREEDY)
    good.close()
    bad = make("llama", store, "hang")
    bad.generate(prompt, SamplingParams(temperature=0.0, max_tokens=1))
    assert bad.engine.stats().steps < 120, "half a second of polling, a hundredth of a second each"


# --- options -------------------------------------------------------------------------------------------------


def test_an_unknown_connector_names_the_nearest(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"--kv-connector: there is no 'shlef'; did you mean 'shelf'\?"):
        make(kv_connector="shlef")


def test_a_connector_needs_prefix_caching(make: Make) -> None:
    with pytest.raises(ConfigError, match=r"--kv-connector: .*set --enable-prefix-caching"):
        make(kv_connector="shelf", enable_prefix_caching=False)


def test_a_connector_needs_a_platform_that_moves_blocks(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = CpuPlatform.capabilities

    def without(platform: CpuPlatform) -> Capabilities:
        return msgspec.structs.replace(declared(platform), kv_transfer=False)

    monkeypatch.setattr(CpuPlatform, "capabilities", without)
    with pytest.raises(Unsupported, match="--kv-connector shelf is not supported: this platform does not move KV"):
        make(kv_connector="shelf")


def test_a_connector_that_cannot_be_made_stops_the_start(make: Make, store: str) -> None:
    with pytest.raises(
        PluginLoadError, match=r"'shelf' .*core-test-connectors 0.1.* OSError: the shelf is not mounted"
    ):
        make(store=store, fault="make")
    with pytest.raises(PluginLoadError, match=r"'no-connector' .* where a core.cache.connector.KVConnector is due"):
        make(kv_connector="no-connector")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("shelf-")]
