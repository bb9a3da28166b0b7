"""The checks, a file for each part of the contract. Importing one of them registers its checks."""

MODULES = (
    "core.conformance.checks.plugin",
    "core.conformance.checks.planning",
    "core.conformance.checks.memory",
    "core.conformance.checks.kernels",
    "core.conformance.checks.quantization",
    "core.conformance.checks.attention",
    "core.conformance.checks.programs",
    "core.conformance.checks.logits",
    "core.conformance.checks.executors",
    "core.conformance.checks.engine",
    "core.conformance.checks.invariance",
    "core.conformance.checks.sampling",
    "core.conformance.checks.parallel",
    "core.conformance.checks.serving",
    "core.conformance.checks.perf",
)
