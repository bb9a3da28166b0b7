"""Engines on simulated hardware, of models that are a config.json only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from core import plugins
from core.config import Config, parse_options, resolve
from core.engine.core import Engine
from core.types import EngineRequest, SamplingParams
from platforms.sim.profile import Profile, load_profile

#: A decoder small enough to count by hand.
SIZES: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}
LLAMA3_70B: dict[str, Any] = {
    **SIZES,
    "vocab_size": 128_256,
    "hidden_size": 8192,
    "intermediate_size": 28_672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
}


def write_model(directory: Path, sizes: dict[str, Any] = SIZES, **differences: Any) -> Path:
    """A model without weights or tokenizer."""
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**sizes, **differences}))
    return directory


def write_profile(file: Path, **figures: Any) -> Path:
    """The H100's profile with other figures."""
    file.write_bytes(msgspec.json.encode({**msgspec.to_builtins(load_profile("h100")), **figures}))
    return file


def exact_profile(**figures: Any) -> Profile:
    """Everything is reached, and nothing costs anything but what `figures` say."""
    free = {
        "peak_flops": {"bfloat16": 1e300},
        "memory_bandwidth": 1e300,
        "link_bandwidth": 1e300,
        "link_latency_s": 0.0,
        "launch_s": 0.0,
        "host_step_s": 0.0,
        "host_sequence_s": 0.0,
        "efficiency": {"flops": 1.0, "memory_bandwidth": 1.0, "link_bandwidth": 1.0, "memory": 1.0},
    }
    return msgspec.convert({**msgspec.to_builtins(load_profile("h100")), **free, **figures}, Profile)


def configured(model: Path, **options: Any) -> Config:
    """The configuration of `model` without its weights."""
    return resolve(str(model), parse_options({"load_format": "dummy", **options}))


def sim_engine(model: Path, *, profile: str = "h100", clock: str = "virtual", **options: Any) -> Engine:
    """An engine of `model` on the platform `sim`."""
    own = (f"sim.profile={profile}", f"sim.clock={clock}")
    parsed = parse_options({"load_format": "dummy", "platform": "sim", "platform_opt": own, **options})
    chosen = plugins.choose(parsed)
    return Engine.build(resolve(str(model), parsed), chosen, lambda *_: None, lambda *_: None)


def request(name: str, prompt: list[int], tokens: int, **params: Any) -> EngineRequest:
    """A request for exactly `tokens` tokens."""
    wanted = {"seed": 0, "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, **params}
    return EngineRequest(request_id=name, prompt_token_ids=prompt, params=SamplingParams(**wanted))


def drain(engine: Engine) -> dict[str, list[int]]:
    """Step until nothing is left; the tokens of each request."""
    tokens: dict[str, list[int]] = {}
    while engine.has_work():
        for delta in engine.step():
            tokens.setdefault(delta.request_id, []).extend(delta.token_ids)
    return tokens
