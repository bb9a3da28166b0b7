"""Level boot: the plan, which decides everything that the user left open, and says why."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import msgspec

from core.config import Config
from core.conformance.failures import expect, expect_none
from core.conformance.registry import check
from core.conformance.subject import Subject
from core.errors import ConfigError, Unsupported
from core.platform import Plan
from core.types import DType

#: Fields of the configuration whose option has another name.
_OPTION_OF = {
    "model.dtype": "dtype",
    "cache.dtype": "kv_cache_dtype",
    "cache.memory_bytes": "kv_cache_memory",
    "parallel.tensor": "tensor_parallel_size",
    "parallel.pipeline": "pipeline_parallel_size",
}


@check("plan.pure", "boot", "`core plan` asks for it to show it, and restarts ask for it again")
def pure(subject: Subject) -> None:
    """The same answer every time, nothing allocated, the given configuration left as it was."""
    config = subject.config()
    before, in_use = msgspec.to_builtins(config), dict(subject.platform.memory().in_use())
    first, second = (subject.platform.plan(config) for _ in range(2))
    expect(isinstance(first, Plan), f"plan() gave {first!r}")
    expect(msgspec.to_builtins(config) == before, "plan() changed the configuration that it was given")
    expect(first == second, f"plan() said {first.overrides} and then {second.overrides}, or another configuration")
    expect(dict(subject.platform.memory().in_use()) == in_use, "plan() allocated device memory")


@check("plan.travels", "boot", "the plan's configuration goes to other processes and to every frontend")
def travels(subject: Subject) -> None:
    """The plan survives pickle, and its configuration msgpack."""
    plan = subject.planned()
    expect(pickle.loads(pickle.dumps(plan)) == plan, "the plan is another one after pickle")
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(plan.config), type=Config)
    expect(sent == plan.config, "the plan's configuration is another one after msgpack")


@check("plan.explained", "boot", "a user who finds an option changed must find out why from the log")
def explained(subject: Subject) -> None:
    """Whatever the plan changes has an Override with the option's name and a reason."""
    for config in _open_questions(subject):
        plan = subject.platform.plan(config)
        by_option = {override.option: override for override in plan.overrides}
        broken = [
            f"plan() changes {field} from {old} to {new} and has no Override of {option!r}"
            for field, option, old, new in _changes(config, plan.config)
            if option not in by_option
        ]
        broken += [f"the Override of {o.option!r} has no reason" for o in plan.overrides if not o.reason.strip()]
        expect_none(broken)


def _open_questions(subject: Subject) -> Iterator[Config]:
    """Configurations that leave the platform something to decide, also the type of weights that it may not have."""
    yield subject.config()
    yield subject.config(kv_cache_memory="8MiB", max_num_seqs=1)
    left_open = subject.config(dtype="auto", kv_cache_dtype="auto")
    for stored in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        model = msgspec.structs.replace(left_open.model, dtype=stored)
        cache = msgspec.structs.replace(left_open.cache, dtype=stored)
        yield msgspec.structs.replace(left_open, model=model, cache=cache)


def _changes(before: Config, after: Config) -> Iterator[tuple[str, str, Any, Any]]:
    """(field, option, old, new) of what differs, but for a KV type that follows the model's, as `auto` promises."""
    for part in ("model", "cache", "scheduler", "platform", "parallel"):
        old, new = getattr(before, part), getattr(after, part)
        for name in type(old).__struct_fields__:
            field, change = f"{part}.{name}", (getattr(old, name), getattr(new, name))
            follows = (
                field == "cache.dtype" and before.options.kv_cache_dtype == "auto" and change[1] == after.model.dtype
            )
            if change[0] != change[1] and not follows:
                yield field, _OPTION_OF.get(field, name), *change


@check("plan.keeps_promises", "boot", "an option that the user set and that is quietly ignored is worse than an error")
def keeps_promises(subject: Subject) -> None:
    """What the user asked for by name is in the plan, for every declared type; other types are refused."""
    for dtype in (DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16):
        declared = dtype in subject.capabilities.dtypes and dtype in subject.capabilities.kv_dtypes
        try:
            plan = subject.planned(dtype=str(dtype), kv_cache_dtype=str(dtype), kv_cache_memory="8MiB", max_num_seqs=1)
        except (Unsupported, ConfigError) as error:
            expect(not declared, f"capabilities() declares {dtype} and plan() refuses it: {error}")
            continue
        if declared:
            config = plan.config
            expect(config.model.dtype is dtype, f"--dtype {dtype} became {config.model.dtype}")
            expect(config.cache.dtype is dtype, f"--kv-cache-dtype {dtype} became {config.cache.dtype}")
            expect(config.cache.memory_bytes == 8 << 20, f"--kv-cache-memory 8MiB became {config.cache.memory_bytes}")
            expect(config.scheduler.max_num_seqs == 1, f"--max-num-seqs 1 became {config.scheduler.max_num_seqs}")


@check("plan.decides", "boot", "memory is planned from these numbers before a weight is read")
def decides(subject: Subject) -> None:
    """After the plan the types are declared ones, the KV cache has a size, and a step fits the largest bucket."""
    config, declared = subject.planned(dtype="auto", kv_cache_dtype="auto").config, subject.capabilities
    expect(config.model.dtype in declared.dtypes, f"the plan's dtype {config.model.dtype} is not declared")
    expect(config.cache.dtype in declared.kv_dtypes, f"the plan's KV dtype {config.cache.dtype} is not declared")
    expect(config.cache.memory_bytes, "the plan leaves the size of the KV cache open")
    if declared.buckets:
        step, seqs = config.scheduler.max_num_batched_tokens, config.scheduler.max_num_seqs
        fits = any(b.num_tokens >= step and b.num_seqs >= seqs for b in declared.buckets)
        expect(fits, f"the plan allows steps of {step} tokens and {seqs} sequences, which no bucket holds")
