"""Which kernel serves each op of a program."""

from __future__ import annotations

from core import ops
from core.errors import Unsupported
from core.logs import get_logger
from core.platform import AttentionBackend, Kernel, Platform
from core.program import OpProgram

log = get_logger("runner")


def resolve_kernels(
    platform: Platform, attention: AttentionBackend, program: OpProgram, *, fallback: str
) -> dict[str, Kernel]:
    """A kernel for every op used. Raises Unsupported where the platform has none and `fallback` is `error`."""
    table = platform.kernels()
    kernels: dict[str, Kernel] = {"kv_write": attention.write_kv, "attention": attention.forward}
    for op in sorted(program.ops_used() - ops.ATTENTION_OPS):
        support = table.supports(op)
        if support:
            kernels[op] = table.get(op)
        elif fallback == "reference":
            log.warning("op %s runs on its reference: %s", op, support.reason)
            kernels[op] = ops.REFERENCE[op]
        else:
            raise Unsupported(f"op {op}", f"{support.reason}; --op-fallback reference runs it in plain torch, slowly")
    return kernels
