"""The conformance kit: what a platform has to show before anyone relies on it.

    pip install 'core[conformance]'
    pytest --pyargs core.conformance --platform X [--level boot|ops|serve|perf] [--report out.json]
    core conformance X

The checks are in `core.conformance.checks`, each with the reason it matters; docs/conformance.md explains the rest.
"""
