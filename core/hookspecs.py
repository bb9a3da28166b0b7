"""What a plugin implements, called once at start-up. The step loop never goes through hooks.

A plugin is a module (or any object) that a distribution names in an entry-point group, and whose functions carry
`hookimpl`. A hardware platform is in the group `core.platforms`, anything else in `core.plugins`:

    [project.entry-points."core.platforms"]
    acme = "acme_core.plugin"

    @hookimpl
    def probe(env: ProbeEnv) -> ProbeResult: ...

The process that starts the engine imports that module, and does so for every installed plugin. So the module imports
neither torch nor a vendor's library at its top (numpy is allowed, and slow), prints nothing and leaves the process as
it is; a plugin that does otherwise is refused or named. A hook may leave out arguments that it does not use. `create_platform` may import what it likes, since it runs in the engine's process and
only for the platform that was chosen.

The hooks of the group `core.plugins` give names and where the object of each lies, `module:attribute`; that module is
imported only in the process that uses the object, and only if it is used. A name that the core has already, or another
plugin, is an error. `--plugins` says which installed plugins to load, `--plugin-opt NAME.KEY=VALUE` sets the options
that a plugin declares in its `plugin_info`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

import msgspec
import pluggy

from core.config import nearest
from core.errors import ConfigError

if TYPE_CHECKING:
    from core.platform import Platform, PlatformContext, PluginInfo, ProbeEnv, ProbeResult

PROJECT = "core"

hookspec = pluggy.HookspecMarker(PROJECT)
#: Marks a plugin's functions as implementations of the hooks below.
hookimpl = pluggy.HookimplMarker(PROJECT)

#: Of the group `core.platforms`.
PLATFORM_HOOKS = ("plugin_info", "probe", "create_platform")
#: Of the group `core.plugins`, beside `plugin_info`.
EXTENSION_HOOKS = (
    "models",
    "quantization_schemes",
    "kv_connectors",
    "tool_parsers",
    "reasoning_parsers",
    "logits_processors",
    "samplers",
    "server_routes",
    "metrics_sinks",
)
HOOKS = (*PLATFORM_HOOKS, *EXTENSION_HOOKS)


# --- every plugin --------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def plugin_info() -> PluginInfo:  # type: ignore[empty-body]  # a specification has no body
    """Who made the plugin, the contract it was written for, and the options it takes: constants.

    `name` equals the name of the entry point. `api` is the `core.platform.API_VERSION` that the plugin was written
    against, written out as numbers: reading it from the installed core would make the check say nothing.
    """


# --- hardware platforms --------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def probe(env: ProbeEnv) -> ProbeResult:  # type: ignore[empty-body]
    """Look whether the hardware is here and whether this installation can drive it.

    May read files under /proc, /sys and /dev, look for modules with `importlib.util.find_spec`, and load a library
    that only lists devices. May not create a device context, import torch, print, change the environment, or leave
    anything behind: it runs in a process that will fork or spawn others, and may run more than once. All probes run
    side by side and have a few seconds together; one that hangs counts as BROKEN. Options have been held against
    `PluginInfo.options`. Raises ConfigError on a value that the schema lets through and this machine does not; any
    other exception counts as BROKEN, with the exception as the cause.
    """


@hookspec(firstresult=True)
def create_platform(ctx: PlatformContext) -> Platform:  # type: ignore[empty-body]
    """Make the platform, in the engine's process. May import torch, open devices, set thread counts.

    Raises PlatformBroken or Unsupported with a reason, or ConfigError on a platform option.
    """


# --- extensions ----------------------------------------------------------------------------------------------


@hookspec(firstresult=True)
def models() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Model architectures, by the name in `config.json`'s `architectures`.

    The target is called as `build(builder: core.layers.Builder, hf_config: Mapping[str, Any])`. It declares the
    weights on the builder, by their names in the checkpoint, and gives a callable that records the forward:
    `model(ctx: core.layers.StepContext) -> Value`, the logits, float32 [num_seqs, vocab]. Raises UnsupportedModel.
    """


@hookspec(firstresult=True)
def quantization_schemes() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Formats of quantised checkpoints, by the `quant_method` in `config.json`'s `quantization_config`.

    The target is called as `open(reader: core.weights.base.WeightReader, quantization_config: Mapping[str, Any])`
    and gives a WeightReader in which every tensor has the name, shape and an element type that the model declares:
    it decodes what the given reader reads. Raises WeightError, UnsupportedModel.
    """


@hookspec(firstresult=True)
def kv_connectors() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Stores of KV blocks outside the device, chosen with `--kv-connector NAME`.

    The target is called as `make(context: core.cache.connector.ConnectorContext)`, once for the scheduler's side and
    once for the worker's, and gives a `core.cache.connector.KVConnector`.
    """


@hookspec(firstresult=True)
def tool_parsers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """How models write tool calls, chosen with `--tool-call-parser NAME`.

    The target is a `core.server.parsers.base.ToolParser`, made anew for each choice of each request.
    """


@hookspec(firstresult=True)
def reasoning_parsers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """How models mark their reasoning, chosen with `--reasoning-parser NAME`.

    The target is a `core.server.parsers.base.ReasoningParser`, made anew for each choice of each request.
    """


@hookspec(firstresult=True)
def logits_processors() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Changes to logits before a token is chosen, switched on with `--logits-processor NAME`, in that order.

    The target is called as `make(options: Mapping[str, str])` with the plugin's options and gives a
    `core.sampling.base.LogitsProcessor`. A client sets what it reads in `vllm_xargs` (`SamplingParams.extra_args`).
    """


@hookspec(firstresult=True)
def samplers() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Ways to choose the next token, in place of the core's own, chosen with `--sampler NAME`.

    The target is called as `make(eos_token_ids: Sequence[int], options: Mapping[str, str])` and gives a
    `core.sampling.base.Sampler`. It honours the parameters that a request has, or the server's answers are not what was
    asked for.
    """


@hookspec(firstresult=True)
def server_routes() -> Mapping[str, str]:  # type: ignore[empty-body]
    """HTTP routes beside the core's own; all of them are served.

    The target is called as `routes(context: core.server.extensions.RouteContext)` in each frontend and gives
    `aiohttp.web.RouteDef`s.
    """


@hookspec(firstresult=True)
def metrics_sinks() -> Mapping[str, str]:  # type: ignore[empty-body]
    """Who else is told what the server measures; all of them are.

    The target is called as `make(model: str, options: Mapping[str, str])` in each frontend and gives a
    `core.metrics.base.MetricsSink`.
    """


_OptionsType = TypeVar("_OptionsType", bound=msgspec.Struct)


def parse_own_options(
    name: str, given: Mapping[str, str], into: type[_OptionsType], *, flag: str = "--platform-opt"
) -> _OptionsType:
    """The options of plugin `name` as the Struct that declares them, text converted to its fields' types.

    Raises ConfigError, naming the option as the user wrote it, on an unknown key or a value that does not fit.
    """
    known = list(into.__struct_fields__)
    for key in given:
        if key not in known:
            hint = nearest(key, known) or f"; it has {', '.join(known)}"
            raise ConfigError(f"{flag} {name}.{key}", f"{name!r} has no such option{hint}")
    try:
        return msgspec.convert(dict(given), into, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        key = path.rstrip("`")
        raise ConfigError(f"{flag} {name}.{key}", f"{given[key]!r} will not do: {message}") from error
