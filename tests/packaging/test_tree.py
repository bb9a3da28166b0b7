"""Nothing in the tree knows the machine it was written on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PUBLIC_HOSTS = {"pypi.org", "files.pythonhosted.org", "download.pytorch.org"}


def source_files() -> list[Path]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        pytest.fail(f"git cannot list the tree's files: {listing.stderr}")
    return [path for name in listing.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def package_index_hosts() -> set[str]:
    """Hosts and folders that this machine's pip takes packages from."""
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    words = [word.strip("'\"") for word in configured.replace("=", " ").split()]
    words += [word for name, value in os.environ.items() if name.startswith("PIP_") for word in value.split()]
    hosts = {urlsplit(word).hostname or "" for word in words if "://" in word}
    folders = {urlsplit(word).path for word in words if word.startswith("file:///")}
    return (hosts | folders) - PUBLIC_HOSTS - {""}


def test_no_path_or_index_of_this_machine() -> None:
    private = {f"{Path.home()}/", f"{ROOT}/", f"{ROOT.parent}/", *package_index_hosts()}
    private = {text for text in private if len(text.strip("/")) > 1}
    found = []
    for path in source_files():
        text = path.read_bytes().decode("utf-8", errors="replace")
        found += [f"{path.relative_to(ROOT)}: {word}" for word in private if word in text]
    assert not found


def test_no_index_but_the_public_ones() -> None:
    flags = ("--index-url ", "--extra-index-url ", "--find-links ")
    files = [path for path in source_files() if path.suffix in {".txt", ".toml", ".yml", ".yaml", ".md", ".cfg", ""}]
    assert ROOT / "Makefile" in files
    for path in files:
        for line in path.read_bytes().decode("utf-8", errors="replace").splitlines():
            for flag in flags:
                value = line.partition(flag)[2].split(" ")[0]
                host = urlsplit(value).hostname
                assert host is None or host in PUBLIC_HOSTS, f"{path.relative_to(ROOT)}: {line.strip()}"
