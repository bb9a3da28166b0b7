"""A base image without a registry: Debian by debootstrap, with this machine's certificates and package settings.

Nothing of them is in the tree of the project: they are read here from pip's own configuration.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

#: Debian's release, and the Python that it has.
SUITE, PYTHON_VERSION = "bookworm", "3.11"
MIRROR = "http://deb.debian.org/debian"

_CERTIFICATES = Path("usr/local/share/ca-certificates")


def make_tree(tree: Path) -> None:
    """Debootstrap a minimal Debian into `tree`, unless it is there, and give it this machine's settings."""
    if not (tree / "etc" / "debian_version").is_file():
        subprocess.run(
            ["debootstrap", "--variant=minbase", "--include=ca-certificates", SUITE, str(tree), MIRROR],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    if Path("/", _CERTIFICATES).is_dir():
        shutil.copytree(Path("/", _CERTIFICATES), tree / _CERTIFICATES, dirs_exist_ok=True)
        subprocess.run(["chroot", str(tree), "update-ca-certificates"], check=True, stdout=subprocess.DEVNULL)
    settings = _pip_settings()
    (tree / "etc" / "pip.conf").write_text(
        "[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())
    )
    (tree / "etc" / "uv").mkdir(exist_ok=True)
    (tree / "etc" / "uv" / "uv.toml").write_text(uv_settings(settings))


def local_folders() -> list[str]:
    """Folders of this machine that packages come from: to be mounted while an image is built."""
    words = " ".join(_pip_settings().values()).split()
    paths = [urlsplit(word).path if word.startswith("file://") else word for word in words]
    folders = {path.removesuffix("/simple") for path in paths if path.startswith("/")}
    return sorted(folder for folder in folders if Path(folder).is_dir())


def _pip_settings() -> dict[str, str]:
    """Where packages come from, as pip is set here."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    settings = {}
    for line in listed.splitlines():
        name, _, value = line.partition("=")
        key = name.rpartition(".")[2]
        if key in ("index-url", "extra-index-url", "find-links", "cert"):
            settings[key] = value.strip("'\"").replace("\\n", " ")
    for key in ("index-url", "extra-index-url", "find-links"):
        if value := os.environ.get(f"PIP_{key.upper().replace('-', '_')}"):
            settings[key] = value
    return settings


def uv_settings(settings: dict[str, str]) -> str:
    """The same in uv's words."""
    lines = ["system-certs = true", 'index-strategy = "unsafe-best-match"']
    if links := settings.get("find-links"):
        lines.append(f"find-links = [{', '.join(repr(link) for link in links.split())}]")
    for url in settings.get("extra-index-url", "").split():
        if not url.startswith("file://") or Path(urlsplit(url).path).is_dir():
            lines += ["[[index]]", f'url = "{url}"']
    if url := settings.get("index-url"):
        lines += ["[[index]]", f'url = "{url}"', "default = true"]
    return "\n".join(lines) + "\n"
