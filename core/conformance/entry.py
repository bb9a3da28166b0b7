"""Found by pytest in every environment with core (entry-point group `pytest11`): brings the kit in when it is asked for.

pytest reads no conftest.py of a package that is named with --pyargs before it reads the command line, so the kit's
options come this way. It adds nothing to anyone else's run.
"""

from __future__ import annotations

from typing import Any

PACKAGE = "core.conformance"


def pytest_load_initial_conftests(early_config: Any, args: list[str]) -> None:
    """Load the kit's own plugin, which has its options, where its package is among the arguments."""
    if any(arg.partition("::")[0] == PACKAGE for arg in args):
        early_config.pluginmanager.import_plugin("core.conformance.pytest_plugin")
