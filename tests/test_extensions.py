"""What plugins of the group `core.plugins` add: the table of it, and what each part of the engine makes of it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import distributions
import msgspec
import numpy as np
import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file

from core import LLM, SamplingParams, plugins
from core.config import parse_options, resolve
from core.errors import ApiVersionError, ConfigError, InvalidRequest, PluginLoadError, UnsupportedModel
from core.extensions import Extension, Extensions

HEAD = """
import msgspec
from core.hookspecs import hookimpl
from core.platform import PluginInfo

class Own(msgspec.Struct):
    token: int = 7

@hookimpl
def plugin_info():
    return PluginInfo(name={name!r}, vendor="acme", version="1.0", api={api}, options={options})
"""

Install = Callable[..., None]

#: Modules are imported once a process, so each test gets modules of its own.
_numbers = itertools.count()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a plugin `name` of distribution `acme-name` whose hooks return what is given, or `body` as it is."""
    root = tmp_path / "site"
    root.mkdir()

    def add(
        name: str,
        body: str | None = None,
        *,
        api: tuple[int, int] = (1, 0),
        options: str = "None",
        modules: dict[str, str] | None = None,
        **hooks: Any,
    ) -> None:
        module = f"extension_{next(_numbers)}_{name}"
        source = HEAD.format(name=name, api=api, options=options)
        for hook, answer in hooks.items():
            source += f"\n@hookimpl\ndef {hook}():\n    return {answer!r}\n"
        sources = {module: source if body is None else body, **(modules or {})}
        distributions.install(root, f"acme-{name}", {"core.plugins": {name: module}}, sources)
        monkeypatch.syspath_prepend(str(root))

    return add


def extensions(**options: Any) -> Extensions:
    return plugins.extensions(parse_options(options))


# --- the table -----------------------------------------------------------------------------------------------


def test_without_plugins_there_is_nothing() -> None:
    assert [name for _, table in extensions().tables() for name in table] == []


def test_what_a_plugin_adds_is_named_with_its_owner_and_its_options(install: Install) -> None:
    install("x", options="Own", models={"AForCausalLM": "a.b:build"}, samplers={"s": "a.c:make"})
    found = extensions(plugin_opt=("x.token=9",))
    assert found.models["AForCausalLM"] == Extension(
        kind="models", name="AForCausalLM", target="a.b:build", plugin="x", distribution="acme-x 1.0",
        options={"token": "9"},
    )  # fmt: skip
    assert found.samplers["s"].target == "a.c:make"
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(found), type=Extensions) == found


def test_nothing_of_a_plugin_is_imported_but_its_entry_point(install: Install, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    install(
        "x",
        models={"A": "late_module:build"},
        modules={"late_module": f"open({str(marker)!r}, 'w').close()\nbuild = 1"},
    )
    table = extensions().models
    assert not marker.exists()
    assert table["A"].load() == 1
    assert marker.exists()


def test_plugins_chooses(install: Install) -> None:
    install("x", models={"A": "m:a"})
    install("y", models={"B": "m:b"})
    install("broken", body="import no_such_module")
    assert set(extensions(plugins="x,y").models) == {"A", "B"}
    assert set(extensions(plugins="y").models) == {"B"}
    assert not extensions(plugins="none").models
    with pytest.raises(ConfigError, match=r"--plugins: no plugin 'z' is installed.*installed: broken, x, y"):
        extensions(plugins="z")


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        ({"body": "import no_such_module"}, PluginLoadError, "cannot be loaded.*no_such_module.*uninstall"),
        ({"body": "raise SystemExit(3)"}, PluginLoadError, "cannot be loaded.*SystemExit: 3"),
        ({}, PluginLoadError, "adds nothing: it implements none of models, "),
        ({"api": (2, 0), "models": {}}, ApiVersionError, "upgrade core"),
        ({"models": ["A"]}, PluginLoadError, r"models\(\) gave \['A'\] where names"),
        ({"models": {"A": "no_colon"}}, PluginLoadError, "'module:attribute' are due"),
        ({"models": {"A": ":f"}}, PluginLoadError, "'module:attribute' are due"),
        ({"probe": None, "models": {"A": "m:f"}}, PluginLoadError, "cannot be loaded|probe"),
        ({"body": HEAD.format(name="x", api=(1, 0), options=None) + "@hookimpl\ndef models():\n    raise OSError('no')"},
         PluginLoadError, r"models\(\) raised OSError: no"),
    ],
)  # fmt: skip
def test_a_plugin_that_fails_stops_the_start_and_is_named(
    install: Install, parts: dict[str, Any], error: type[Exception], words: str
) -> None:
    install("x", **parts)
    with pytest.raises(error, match=words) as caught:
        extensions()
    assert "acme-x 1.0" in str(caught.value)
    assert not extensions(plugins="none").models


def test_two_plugins_with_one_name_for_a_thing_are_both_named(install: Install) -> None:
    install("x", models={"A": "m:f"})
    install("y", models={"A": "n:f"})
    with pytest.raises(PluginLoadError, match=r"'A' is provided by acme-x 1\.0 and acme-y 1\.0.*--plugins"):
        extensions()


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ("x.token=many", "--plugin-opt x.token: 'many' will not do"),
        ("x.tokn=1", "--plugin-opt x.tokn: .*did you mean 'token'"),
        ("y.token=1", "no plugin 'y' is loaded"),
        ("token=1", "NAME.KEY=VALUE"),
        ("plain.token=1", "'plain' has no options"),
    ],
)
def test_options_are_held_against_the_schema(install: Install, pair: str, words: str) -> None:
    install("x", options="Own", models={"A": "m:f"})
    install("plain", models={"B": "m:f"})
    with pytest.raises(ConfigError, match=words):
        extensions(plugin_opt=(pair,))


def test_a_target_that_cannot_be_imported_names_its_plugin(install: Install) -> None:
    install("x", models={"A": "no_such_module:f", "B": "json:no_such_name"})
    table = extensions().models
    for name, words in (("A", "no_such_module"), ("B", "no_such_name")):
        with pytest.raises(PluginLoadError, match=rf"models '{name}' of plugin 'x' \(acme-x 1\.0\).*{words}"):
            table[name].load()


# --- logits processors and samplers --------------------------------------------------------------------------

PROCESSORS = """
from core.sampling import LogitsProcessor, Sampler

class Force(LogitsProcessor):
    def __init__(self, options):
        self.token = int(options.get("token", 7))

    def applies(self, params):
        return bool(params.extra_args.get("force"))

    def process(self, logits, params, prompt, output):
        logits.fill_(-1e9)
        logits[self.token + len(output)] = 0.0

class Least(Sampler):
    def __init__(self, eos_token_ids, options):
        pass

    def sample(self, logits, batch):
        return logits.argmin(-1).numpy(), {}

def nonsense(*args):
    return 3
"""


@pytest.fixture
def processors(install: Install) -> None:
    install(
        "p",
        options="Own",
        logits_processors={"force": "p_objects:Force", "bad": "p_objects:nonsense"},
        samplers={"least": "p_objects:Least", "bad": "p_objects:nonsense"},
        modules={"p_objects": PROCESSORS},
    )


def engine(model: Path, **options: Any) -> LLM:
    fixed = {"dtype": "float32", "kv_cache_memory": "4MiB", "platform_opt": ("cpu.threads=1",), "progress": False}
    return LLM(str(model), **{**fixed, **options})


@pytest.mark.usefixtures("processors")
def test_a_logits_processor_changes_the_requests_that_ask_for_it(tiny_model: Callable[[str], Path]) -> None:
    model = tiny_model("llama")
    greedy = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    forced = msgspec.structs.replace(greedy, extra_args={"force": True})
    with engine(model) as plain:
        expected = plain.generate("hello", greedy)[0].outputs[0].token_ids
        with pytest.raises(InvalidRequest, match=r"vllm_xargs.*--logits-processor"):
            plain.generate("hello", forced)
    with engine(model, logits_processor=("force",), plugin_opt=("p.token=20",)) as llm:
        both = [output.outputs[0].token_ids for output in llm.generate(["hello", "hello"], [greedy, forced])]
    assert both == [expected, [20, 21, 22, 23]]
    assert expected != both[1]


@pytest.mark.usefixtures("processors")
def test_a_sampler_takes_the_place_of_ours(tiny_model: Callable[[str], Path]) -> None:
    model = tiny_models.build("llama")
    prompt = [5, 6, 7]
    with torch.no_grad():
        expected = int(model(torch.tensor([prompt])).logits[0, -1].argmin())
    with engine(tiny_model("llama"), sampler="least") as llm:
        (output,) = llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1))
    assert output.outputs[0].token_ids == [expected]


@pytest.mark.usefixtures("processors")
@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"logits_processor": ("forse",)},
            ConfigError,
            "--logits-processor: there is no 'forse'; did you mean 'force'",
        ),
        ({"sampler": "lest"}, ConfigError, "--sampler: there is no 'lest'; did you mean 'least'"),
        ({"sampler": "least", "logits_processor": ("force",)}, ConfigError, "drop one of the two"),
        ({"logits_processor": ("bad",)}, PluginLoadError, r"acme-p 1\.0.*gave 3 where a .*LogitsProcessor is due"),
        ({"sampler": "bad"}, PluginLoadError, r"acme-p 1\.0.*gave 3 where a .*Sampler is due"),
    ],
)
def test_what_cannot_be_used_is_refused_at_the_start(
    tiny_model: Callable[[str], Path], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        engine(tiny_model("llama"), **options)


# --- quantised checkpoints -----------------------------------------------------------------------------------

SCHEME = """
import numpy as np
from core.types import DType
from core.weights.base import TensorMeta, WeightReader

class RowInt8(WeightReader):
    '''int8 rows `name` with a float32 scale each in `name.scale`.'''

    def __init__(self, reader, quantization_config):
        assert quantization_config["bits"] == 8
        self.path, self._reader = reader.path, reader
        self._scaled = {name for name in reader.tensors() if name + ".scale" in reader.tensors()}

    def tensors(self):
        return {
            name: TensorMeta(name, meta.shape, DType.FLOAT32 if name in self._scaled else meta.dtype, meta.nbytes)
            for name, meta in self._reader.tensors().items()
            if not name.endswith(".scale")
        }

    def read(self, name, rows=None):
        data = self._reader.read(name, rows)
        if name not in self._scaled:
            return data
        return data.astype(np.float32) * self._reader.read(name + ".scale", rows)[:, None]

    def stored(self, name):
        return self._reader.stored(name)

    def release(self, name):
        self._reader.release(name)

    def close(self):
        self._reader.close()
"""


def quantise(model: Path, target: Path) -> tuple[Path, Path]:
    """The checkpoint with its matrices in int8, and the same as float32 numbers."""
    original = load_file(model / "model.safetensors")
    small: dict[str, torch.Tensor] = {}
    large: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        if tensor.ndim == 1:
            small[name] = large[name] = tensor
            continue
        scale = tensor.abs().amax(1) / 127
        small[name] = (tensor / scale[:, None]).round().to(torch.int8)
        small[f"{name}.scale"] = scale
        large[name] = small[name].float() * scale[:, None]
    folders = target / "int8", target / "float32"
    for folder, tensors in zip(folders, (small, large), strict=True):
        folder.mkdir()
        for file in model.iterdir():
            if file.suffix != ".safetensors":
                (folder / file.name).write_bytes(file.read_bytes())
        save_file(tensors, folder / "model.safetensors")
    config = json.loads((folders[0] / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "row-int8", "bits": 8}
    (folders[0] / "config.json").write_text(json.dumps(config))
    return folders


def test_a_quantised_checkpoint_is_decoded_by_its_scheme(
    install: Install, tiny_model: Callable[[str], Path], tmp_path: Path
) -> None:
    quantised, decoded = quantise(tiny_model("qwen2"), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"'row-int8'.*no plugin that adds one is installed"):
        resolve(str(quantised), parse_options({}))
    install("q", quantization_schemes={"row-int8": "q_objects:RowInt8"}, modules={"q_objects": SCHEME})
    params = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
    tokens = []
    for model in (quantised, decoded):
        with engine(model) as llm:
            tokens.append([output.outputs[0].token_ids for output in llm.generate(["abc", "hello"], params)])
    assert tokens[0] == tokens[1]
    assert np.unique(tokens[0]).size > 3
