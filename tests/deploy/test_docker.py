"""docker/, and the scripts and YAML of the tree: by their linters, and by what they name."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile*"))
SCRIPTS = [*sorted((ROOT / "docker").glob("*.sh")), *sorted((ROOT / "examples").rglob("*.sh")), ROOT / ".ci" / "run"]
BAKE = (ROOT / "docker" / "docker-bake.hcl").read_text()

_STAGE = re.compile(r"^FROM (\S+)(?: AS (\S+))?$", re.MULTILINE)
#: Of the whole set; the others have what an accelerator's image needs.
_STAGES = {"base", "build", "dev", "core-base", "test", "core-openai-base", "core-sagemaker", "core-openai",
           "core-openai-nonroot"}  # fmt: skip
#: Triton compiles what launches its kernels when they first run.
_TRITON = {"Dockerfile", "Dockerfile.rocm", "Dockerfile.xpu"}


def lint(*command: str) -> None:
    tool = Path(sys.executable).with_name(command[0])
    checked = subprocess.run([str(tool), *command[1:]], capture_output=True, text=True, check=False, cwd=ROOT)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def stages(dockerfile: Path) -> list[str]:
    return [name for _, name in _STAGE.findall(dockerfile.read_text()) if name]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_passes(dockerfile: Path) -> None:
    lint("hadolint", "--no-color", str(dockerfile))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_each_ignored_rule_is_explained(dockerfile: Path) -> None:
    lines = dockerfile.read_text().splitlines()
    for number, line in enumerate(lines):
        if "hadolint ignore" in line:
            assert lines[number - 1].startswith("# "), f"line {number + 1} does not say why"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_passes(script: Path) -> None:
    lint("shellcheck", str(script))


def test_yamllint_passes() -> None:
    lint("yamllint", "--strict", ".")


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(dockerfile: Path) -> None:
    ignored = {line.strip("/") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    for line in dockerfile.read_text().splitlines():
        if line.startswith("COPY ") and "--from=" not in line:
            sources = [word for word in line.split()[1:-1] if not word.startswith("--")]
            assert sources and all((ROOT / source).exists() for source in sources), line
            assert not ignored & set(sources), line


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_runs_has_no_compiler_but_triton_s_is_not_root_and_drains(dockerfile: Path) -> None:
    text = dockerfile.read_text()
    _, runs = text.split("# --- what runs ---")
    assert "FROM build" not in runs and "FROM install" not in runs
    compiler, headers = re.search(r"(gcc|g\+\+) ", runs), "libpython${PYTHON_VERSION}-dev" in runs
    assert bool(compiler) == headers == ("TRITON_CACHE_DIR=/tmp/" in runs) == (dockerfile.name in _TRITON)
    assert re.search(r"^USER 1001$", runs, re.MULTILINE) and "USER root" not in runs
    assert "STOPSIGNAL SIGTERM" in runs and "/readyz" in runs
    assert 'ENTRYPOINT ["core", "serve"' in runs  # in exec form: the server gets the signal itself
    assert "VOLUME /home/core/.cache/huggingface" in runs and "EXPOSE 8000" in runs


def test_the_images_have_their_stages() -> None:
    for name in ("Dockerfile", "Dockerfile.cpu"):
        assert set(stages(ROOT / "docker" / name)) >= _STAGES
    for dockerfile in DOCKERFILES:
        assert {"build", "core-base", "core-openai-base", "core-openai"} <= set(stages(dockerfile))


def test_each_target_of_bake_is_a_stage_of_its_dockerfile() -> None:
    targets = {
        name: dict(re.findall(r"^  (\w+) += (.+)$", body, re.MULTILINE))
        for name, body in re.findall(r'^target "([\w-]+)" \{\n(.*?)^\}', BAKE, re.MULTILINE | re.DOTALL)
    }
    common = targets.pop("_common")
    assert common["context"] == '"."'
    built = set()
    for name, body in targets.items():
        parent = re.findall(r'"([\w-]+)"', body["inherits"])[0]
        dockerfile = body.get("dockerfile") or targets[parent]["dockerfile"]
        path = ROOT / dockerfile.strip('"')
        built.add(path)
        assert body["target"].strip('"') in stages(path), name
    assert built == set(DOCKERFILES)
    grouped = set(re.findall(r'"([\w-]+)"', "".join(re.findall(r"targets = (\[.*\])", BAKE))))
    assert targets.keys() <= grouped


def test_an_image_s_tests_are_those_of_test_fast() -> None:
    selection = re.compile(r'python -m pytest -m ("not slow[^"]*")')
    (fast,) = selection.findall((ROOT / "Makefile").read_text())
    for name in ("Dockerfile", "Dockerfile.cpu"):
        assert selection.findall((ROOT / "docker" / name).read_text()) == [fast]


def test_uv_is_the_same_everywhere() -> None:
    found = {version for path in DOCKERFILES for version in re.findall(r"UV_VERSION=(\S+)", path.read_text())}
    assert len(found) == 1
    for path in DOCKERFILES:
        assert "UV_HTTP_TIMEOUT=500" in path.read_text()
