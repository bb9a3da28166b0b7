"""Plugins: found through entry points, loaded in isolation, asked once. Torch-free.

Hardware platforms are in the group `core.platforms`, everything else in `core.plugins`. The process that starts the
engine asks them (`choose`, `extensions`); every other one receives what came of it.
"""

from __future__ import annotations

from core.plugins.extensions import Surveyed, extensions, survey
from core.plugins.loading import FoundPlugin, LoadedPlugin
from core.plugins.platforms import Candidate, choose, create, discover, probe, probe_all

__all__ = [
    "Candidate",
    "FoundPlugin",
    "LoadedPlugin",
    "Surveyed",
    "choose",
    "create",
    "discover",
    "extensions",
    "probe",
    "probe_all",
    "survey",
]
