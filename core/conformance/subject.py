"""The platform under test, and what the checks need of it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from core import plugins
from core.config import Config, parse_options, resolve
from core.conformance import checkpoints
from core.conformance.buffers import Buffers
from core.conformance.failures import Broken, NotClaimed
from core.conformance.report import Figure, OpSupport
from core.llm import LLM
from core.platform import Bucket, Capabilities, ChosenPlatform, Plan, Platform
from core.plugins import FoundPlugin
from core.types import DType

_Kept = TypeVar("_Kept")

#: Step shapes for platforms that take any: a lone token, an odd few, more than any tile's rows.
_ANY_SHAPE = (Bucket(1, 1), Bucket(5, 3), Bucket(33, 7), Bucket(130, 9))
#: Tokens that prompts and answers in this process have room for: more would cost dense attention dearly.
_CONTEXT = 96
#: Larger buckets make the checks slow without showing more.
_LARGEST_TESTED = 512


@dataclass
class Findings:
    """What the checks learn beside passing or failing; it goes into the report."""

    ops: list[OpSupport] = field(default_factory=list)
    attention: dict[str, bool | str] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)


class Subject:
    """One platform by name. It is made when first asked for, and there is at most one at a time."""

    def __init__(self, name: str, platform_opt: tuple[str, ...] = ()) -> None:
        self.name = name
        self.platform_opt = platform_opt
        self.findings = Findings()
        #: As it was before anything of the plugin ran here, for the processes that the checks start.
        self.environment = dict(os.environ)
        self._platform: Platform | None = None
        self._buffers: Buffers | None = None
        self.hung = ""  # the check that did not end
        self._outcomes: dict[str, str] = {}
        self._kept: dict[str, Any] = {}
        self._open = contextlib.ExitStack()
        self.directory = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="core-conformance-")))

    def __enter__(self) -> Subject:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give everything back."""
        self.release()
        self._open.close()

    def note(self, check: str, outcome: str) -> None:
        """Remember what became of a check."""
        self._outcomes[check] = outcome

    def has_failed(self, check: str) -> bool:
        """Whether a check ran and failed."""
        return self._outcomes.get(check) == "failed"

    def kept(self, name: str, make: Callable[[], _Kept]) -> _Kept:
        """What `make` gives, made once for all checks that ask for it by `name`."""
        if name not in self._kept:
            self._kept[name] = make()
        kept: _Kept = self._kept[name]
        return kept

    def keep_open(self, context: contextlib.AbstractContextManager[_Kept]) -> _Kept:
        """Enter something that stays open until the last check has run."""
        return self._open.enter_context(context)

    # --- the plugin and its platform ---

    @property
    def found(self) -> FoundPlugin:
        """The plugin. Raises Broken where none is installed."""
        found = self.kept("found", lambda: plugins.discover(self.name))
        if not found:
            raise Broken(f"no distribution provides a platform {self.name!r} in the entry-point group core.platforms")
        return found[0]

    @property
    def chosen(self) -> ChosenPlatform:
        """The choice, as a command makes it with --platform. Raises what it does not find."""
        options = {"platform": self.name, "platform_opt": self.platform_opt}
        return self.kept("chosen", lambda: plugins.choose(parse_options(options)))

    @property
    def platform(self) -> Platform:
        """The platform itself, in this process."""
        if self._platform is None:
            self._platform = plugins.create(self.chosen)
        return self._platform

    @property
    def capabilities(self) -> Capabilities:
        """What the platform declares."""
        return self.kept("capabilities", self.platform.capabilities)

    def release(self) -> None:
        """Close the platform: engines make one of their own, and a device may admit one only."""
        self.tidy()
        platform, self._platform = self._platform, None
        if platform is not None:
            platform.close()

    # --- buffers ---

    @property
    def buffers(self) -> Buffers:
        """Device memory for the check that runs; `tidy` gives it back."""
        if self._buffers is None:
            self._buffers = Buffers(self.platform.memory())
        return self._buffers

    def tidy(self) -> None:
        """Give back what a check left."""
        buffers, self._buffers = self._buffers, None
        if buffers is not None:
            buffers.free()

    def shapes(self) -> list[Bucket]:
        """Step shapes to test: the declared buckets, or odd ones where any can run."""
        declared = [b for b in sorted(self.capabilities.buckets) if b.num_tokens <= _LARGEST_TESTED]
        if not self.capabilities.buckets:
            return list(_ANY_SHAPE)
        return declared or [min(self.capabilities.buckets)]

    # --- models ---

    @property
    def dtype(self) -> DType:
        """The most exact element type that both weights and KV can have: what whole models are compared in."""
        for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
            if dtype in self.capabilities.dtypes and dtype in self.capabilities.kv_dtypes:
                return dtype
        raise Broken(
            f"capabilities() has dtypes {list(self.capabilities.dtypes)} and kv_dtypes "
            f"{list(self.capabilities.kv_dtypes)}: there is no float type that both have"
        )

    def checkpoint(self, family: str = "llama") -> checkpoints.Checkpoint:
        """A tiny random model of a family (`core.conformance.checkpoints.FAMILIES`)."""
        return self.kept(f"checkpoint.{family}", lambda: checkpoints.write(family, self.directory / family))

    def options(self, **more: Any) -> dict[str, Any]:
        """Options of every engine that the kit makes."""
        return {
            "platform": self.name,
            "platform_opt": self.platform_opt,
            "dtype": str(self.dtype),
            "kv_cache_dtype": str(self.dtype),
            **more,
        }

    def config(self, family: str = "llama", **more: Any) -> Config:
        """The resolved, not yet planned configuration of a tiny model on this platform."""
        return resolve(str(self.checkpoint(family).path), parse_options(self.options(**more)))

    def planned(self, family: str = "llama", **more: Any) -> Plan:
        """The platform's plan for a tiny model."""
        return self.platform.plan(self.config(family, **more))

    @contextlib.contextmanager
    def llm(self, family: str = "llama", *, path: Path | None = None, **more: Any) -> Iterator[LLM]:
        """An engine of its own in this process, through the offline door; of the model at `path`, if one is given."""
        options = self.options(**{"max_model_len": _CONTEXT, **more})
        self.release()
        with LLM(str(path or self.checkpoint(family).path), progress=False, **options) as llm:
            yield llm

    def require(self, claimed: object, what: str) -> None:
        """Raises NotClaimed unless `claimed`."""
        if not claimed:
            raise NotClaimed(f"{what} is not declared")
