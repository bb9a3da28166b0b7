"""`make site`: the documentation builds without a warning, and every page of docs/ is on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]


def test_the_site_builds_without_a_warning_and_has_every_page(tmp_path: Path) -> None:
    mkdocs = Path(sys.executable).with_name("mkdocs")
    built = subprocess.run(
        [str(mkdocs), "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix("")
        folder = name.parent if name.name == "index" else name
        assert (tmp_path / folder / "index.html").is_file(), page
    assert "SamplingParams" in (tmp_path / "reference" / "api" / "index.html").read_text()
    text = (tmp_path / "index.html").read_text()
    assert "fonts.googleapis.com" not in text and "https://unpkg.com" not in text, "a page fetches something elsewhere"
