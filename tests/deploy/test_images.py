"""What `make test-images` says where it cannot run, and how it hands this machine's package settings to an image."""

from __future__ import annotations

import tomllib
from pathlib import Path

import base_image
import images
import pytest


def test_only_root_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(SystemExit, match="which only root may: run it as root"):
        images.check_machine()


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(SystemExit, match="needs buildah and debootstrap: apt-get install buildah debootstrap"):
        images.check_machine()


def test_pip_s_settings_in_uv_s_words(tmp_path: Path) -> None:
    settings = {
        "index-url": "https://index.example/simple",
        "extra-index-url": f"file://{tmp_path} file:///no/such/folder",
        "find-links": "/wheels /more",
    }
    read = tomllib.loads(base_image.uv_settings(settings))
    assert read["find-links"] == ["/wheels", "/more"]
    assert read["index"] == [
        {"url": f"file://{tmp_path}"},
        {"url": "https://index.example/simple", "default": True},
    ]
