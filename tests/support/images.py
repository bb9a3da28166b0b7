"""Builds the images for real, with buildah on a debootstrap tree, and runs what was built: `make test-images`.

Needs root, buildah and debootstrap, 25 GB of disk and some minutes, so it is no part of the other tests. With --keep DIR what was built
stays there and the next run goes on from it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from base_image import PYTHON_VERSION, local_folders, make_tree
from free_ports import free_ports
from real_server import RealServer, events, until

from core.weights.source import default_model

ROOT = Path(__file__).parents[2]

#: What an image may take on top of its base, in bytes.
LIMIT = 1_000_000_000
USER = 1001
_MODEL = "/model"
_SECONDS = 300.0


class Buildah:
    """buildah with a storage of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._environment = {**os.environ, "BUILDAH_ISOLATION": "chroot"}

    def command(self, *arguments: str) -> list[str]:
        storage = self.directory / "storage"
        # vfs: it leaves no mounts behind, which would keep the directory from being removed.
        return [
            "buildah", "--root", str(storage), "--runroot", str(self.directory / "run"), "--storage-driver", "vfs", *arguments,
        ]  # fmt: skip

    def run(self, *arguments: str) -> str:
        """Its standard output. Raises CalledProcessError, with what it said on the terminal."""
        return subprocess.run(
            self.command(*arguments), env=self._environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.strip()

    def start(self, *arguments: str, log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(self.command(*arguments), env=self._environment, stdout=output, stderr=output)

    def import_tree(self, tree: Path, name: str) -> None:
        """An image of one layer."""
        if name in self.run("images", "--format", "{{.Name}}").split():
            return
        container = self.run("from", "scratch")
        self.run("add", "--quiet", container, str(tree), "/")
        self.run("config", "--cmd", "/bin/bash", container)
        self.run("commit", "--quiet", "--rm", "--format", "docker", container, name)

    def build(self, dockerfile: str, target: str, name: str) -> None:
        """The stages of a Dockerfile, up to its target."""
        arguments = {
            "BASE_IMAGE": "localhost/core-base",
            "BUILD_IMAGE": "localhost/core-base",
            "PYTHON_VERSION": PYTHON_VERSION,
            "TORCH_INDEX": "",
        }
        given = [word for key, value in arguments.items() for word in ("--build-arg", f"{key}={value}")]
        given += [word for folder in local_folders() for word in ("--volume", f"{folder}:{folder}:ro")]
        started = time.monotonic()
        subprocess.run(
            self.command(
                "bud", "--network", "host", "--format", "docker", "--layers", "--quiet", "--target", target, *given,
                "--ignorefile", str(ROOT / ".dockerignore"), "--file", str(ROOT / "docker" / dockerfile),
                "--tag", name, str(ROOT),
            ),
            env=self._environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        print(f"built {name} ({dockerfile}, {target}) in {time.monotonic() - started:.0f} s", flush=True)

    def configuration(self, name: str) -> dict[str, Any]:
        described: dict[str, Any] = json.loads(self.run("inspect", "--type", "image", name))["Docker"]["config"]
        return described

    def _stored(self, what: str) -> list[dict[str, Any]]:
        """The storage's own records."""
        file = self.directory / "storage" / f"vfs-{what}" / f"{what}.json"
        stored: list[dict[str, Any]] = json.loads(file.read_text())
        return stored

    def layers(self, name: str) -> list[int]:
        """Bytes of each layer, the base's first."""
        layers = {layer["id"]: layer for layer in self._stored("layers")}
        images = self._stored("images")
        (top,) = (
            image["layer"]
            for image in images
            if any(each.endswith(f"/{name}:latest") for each in image.get("names") or ())
        )
        sizes: list[int] = []
        while top:
            sizes.insert(0, layers[top].get("diff-size", 0))
            top = layers[top].get("parent", "")
        return sizes


def check_machine() -> None:
    """Ends with a sentence that says what is missing."""
    if os.geteuid() != 0:
        sys.exit(
            "make test-images builds images in a chroot, which only root may: run it as root, or in a machine of its own"
        )
    missing = [tool for tool in ("buildah", "debootstrap") if not shutil.which(tool)]
    if missing:
        sys.exit(f"make test-images needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")


def check_size(buildah: Buildah, name: str) -> None:
    sizes = buildah.layers(name)
    for number, size in enumerate(sizes):
        print(f"  layer {number}: {size / 1e6:8.1f} MB{'  (the base)' if number == 0 else ''}")
    on_top = sum(sizes[1:])
    print(f"{name}: {on_top / 1e6:.1f} MB on top of its base", flush=True)
    assert on_top <= LIMIT, f"{name} is larger than {LIMIT} bytes"


def check_configuration(configuration: dict[str, Any], port: int, health: str) -> None:
    assert configuration["User"] == str(USER)
    assert list(configuration["ExposedPorts"]) == [f"{port}/tcp"]
    assert health in " ".join(configuration["Healthcheck"]["Test"])
    assert list(configuration["Volumes"]) == ["/home/core/.cache/huggingface"]
    assert "org.opencontainers.image.title" in configuration["Labels"]


@contextmanager
def running(buildah: Buildah, name: str, *arguments: str, **environment: str) -> Iterator[RealServer]:
    """The image's entry point, as its user, with a model mounted."""
    entrypoint = buildah.configuration(name)["Entrypoint"]
    container = buildah.run("from", "--pull-never", name)
    directory = Path(tempfile.mkdtemp(prefix="core-image-", dir=buildah.directory))
    model = directory / "model"
    model.mkdir()
    shutil.copy(default_model(), model / "model.gguf")
    given = [word for key, value in environment.items() for word in ("--env", f"{key}={value}")]
    log = directory / "log"
    process = buildah.start(
        "run",
        "--network",
        "host",
        "--volume",
        f"{model}:{_MODEL}:ro",
        *given,
        container,
        "--",
        *entrypoint,
        *arguments,
        log=log,
    )
    server = RealServer(process, directory, log)
    try:
        server.wait_ready()
        yield server
    finally:
        if process.poll() is None:
            for each in [*psutil.Process(process.pid).children(recursive=True), process]:
                each.kill()
            process.wait()
        buildah.run("rm", container)
        print("  ", "\n   ".join(log.read_text().splitlines()[-6:]), flush=True)


def supervisor(server: RealServer) -> psutil.Process:
    """`core serve` itself, below buildah."""
    processes = psutil.Process(server.process.pid).children(recursive=True)
    (found,) = (process for process in processes if process.cmdline()[1:3] == ["/opt/core/bin/core", "serve"]
                and process.cmdline()[0] == "/opt/core/bin/python")  # fmt: skip
    return found


def refuses(server: RealServer) -> bool:
    """Whether it drains, or has done so: what it streams may all be on the way already."""
    try:
        return server.get("/readyz")[0] == 503
    except OSError:
        return True


def check_serving(server: RealServer, path: str, source: str) -> None:
    """It answers as it should, as a user that is not root, and SIGTERM drains it."""
    assert server.get("/readyz")[0] == 200
    assert server.get("/version")[1]["usage_source"] == source
    process = supervisor(server)
    assert {each.uids().effective for each in [process, *process.children(recursive=True)]} == {USER}
    body = {"prompt": "The capital of France is", "max_tokens": 100, "temperature": 0, "ignore_eos": True}
    connection, response = server.stream(path, {**body, "stream_options": {"include_usage": True}})
    process.send_signal(signal.SIGTERM)
    until(lambda: refuses(server))
    received = list(events(response))
    assert received[-1]["usage"]["completion_tokens"] == 100, "the stream was cut"
    connection.close()
    assert server.process.wait(_SECONDS) == 0, server.log.read_text()
    text = "".join(choice["text"] for event in received for choice in event["choices"])
    print(f"  a completion, finished after SIGTERM: {text[:60]!r}", flush=True)


def test_images(directory: Path) -> None:
    buildah = Buildah(directory)
    make_tree(directory / "tree")
    buildah.import_tree(directory / "tree", "localhost/core-base")
    port, other = free_ports(2)
    small = ("--max-model-len", "1024", "--kv-cache-memory", "64MiB")

    buildah.build("Dockerfile.cpu", "core-openai", "core-cpu")
    check_size(buildah, "core-cpu")
    check_configuration(buildah.configuration("core-cpu"), 8000, "/readyz")
    with running(buildah, "core-cpu", f"{_MODEL}/model.gguf", "--port", str(port), *small) as server:
        check_serving(server, "/v1/completions", "production-docker-image")

    buildah.build("Dockerfile.cpu", "core-sagemaker", "core-sagemaker")
    check_size(buildah, "core-sagemaker")
    check_configuration(buildah.configuration("core-sagemaker"), 8080, "/ping")
    options = {
        "SM_CORE_MODEL": f"{_MODEL}/model.gguf",
        "SM_CORE_MAX_MODEL_LEN": "1024",
        "SM_CORE_KV_CACHE_MEMORY": "64MiB",
    }
    with running(buildah, "core-sagemaker", "serve", SAGEMAKER_BIND_TO_PORT=str(other), **options) as server:
        check_serving(server, "/invocations", "production-sagemaker-image")

    buildah.build("Dockerfile.neuron", "build", "core-neuron-build")
    print("all images were built, and those that run here did", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", metavar="DIR", help="build there, and leave it there")
    keep = parser.parse_args().keep
    check_machine()
    if keep:
        Path(keep).mkdir(parents=True, exist_ok=True)
        test_images(Path(keep).resolve())
        return
    with tempfile.TemporaryDirectory(prefix="core-images-", dir="/var/tmp") as directory:
        test_images(Path(directory))


if __name__ == "__main__":
    main()
