"""The command as a person runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent / "simulate_faults.py"


def run_script(*arguments: str, hash_seed: str = "random") -> subprocess.CompletedProcess[bytes]:
    """`simulate_faults.py` in an interpreter of its own, whose sets of strings have the order of `hash_seed`."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], check=False, capture_output=True, env=environment)
