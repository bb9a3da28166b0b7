"""The checks, a file for each part of the contract. Importing one of them registers its checks."""

MODULES = (
    "core.conformance.checks.plugin",
    "core.conformance.checks.planning",
    "core.conformance.checks.memory",
    "core.conformance.checks.kernels",
    "core.conformance.checks.attention",
    "core.conformance.checks.attention",
    "core.conformance.checks.programs",
)
