"""examples/online_serving/chart-helm: linted and rendered by Helm itself, its objects held against Kubernetes' schemas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.deploy

CHART = Path(__file__).parents[2] / "examples" / "online_serving" / "chart-helm"
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
KUBERNETES = "1.31"

#: Everything that can be switched on.
FULL: dict[str, Any] = {
    "servedModelName": "small",
    "args": ["--max-model-len=2048"],
    "chatTemplate": "{% for message in messages %}{{ message.content }}{% endfor %}",
    "imagePullSecrets": [{"name": "registry"}],
    "extraInit": {"s3modelpath": "s3://bucket/team/llama", "s3endpoint": "http://minio:9000", "region": "eu-west-1"},
    "downloadJob": {"enabled": True},
    "persistence": {"accessModes": ["ReadWriteMany"], "storageClassName": "shared"},
    "secret": {"HF_TOKEN": "t", "CORE_API_KEY": "k", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"},
    "serviceAccount": {"name": "reader"},
    "podAnnotations": {"a": "b"},
    "podLabels": {"team": "x"},
    "affinity": {"nodeAffinity": {}},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "x", "operator": "Exists"}],
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}, "authorizationKey": "CORE_API_KEY"},
    "ingress": {"enabled": True, "className": "nginx", "host": "llm.example.com", "tlsSecret": "tls"},
    "networkPolicy": {"enabled": True},
}
CASES: dict[str, dict[str, Any]] = {
    **{profile: {"profile": profile} for profile in VALUES["profiles"]},
    "full": FULL,
    "gguf": {"model": "org/name/file.gguf"},
    "bare": {
        "extraInit": {"enabled": False},
        "persistence": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}


def render(values: dict[str, Any], name: str = "llm") -> dict[tuple[str, str], dict[str, Any]]:
    """The objects, by kind and name."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values)
        files = chart.render(values, name=name, namespace="serving")
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    objects = [each for text in texts for each in yaml.safe_load_all(text) if each]
    found = {(each["kind"], each["metadata"]["name"]): each for each in objects}
    assert len(found) == len(objects)
    return found


def the(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The one object of that kind."""
    (found,) = (each for (each_kind, _), each in render(values).items() if each_kind == kind)
    return found


def container(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = the("Deployment", values)["spec"]["template"]["spec"]["containers"][0]
    return found


def test_helm_s_linter_has_nothing_to_say() -> None:
    import helm_python

    result = helm_python.lint(str(CHART))
    messages = result.get("messages", []) if isinstance(result, dict) else result
    assert [each for each in messages if "icon is recommended" not in str(each)] == []


@pytest.mark.parametrize("case", CASES)
def test_every_object_is_what_kubernetes_knows(case: str) -> None:
    import kubernetes_validate

    objects = render(CASES[case])
    assert len(objects) >= 4
    for (kind, _), each in objects.items():
        if kind != "ServiceMonitor":  # the Prometheus operator's own
            kubernetes_validate.validate(each, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", ["full", "bare"])
def test_what_is_rendered_is_tidy_yaml(case: str, tmp_path: Path) -> None:
    (tmp_path / "all.yaml").write_text("---\n" + yaml.safe_dump_all(render(CASES[case]).values(), indent=2))
    tool = Path(sys.executable).with_name("yamllint")
    command = [str(tool), "-d", "{extends: relaxed, rules: {line-length: disable, indentation: disable}}", "."]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert checked.returncode == 0, checked.stdout


def test_everything_switched_on_is_there() -> None:
    kinds = {kind for kind, _ in render(FULL)}
    assert kinds == {
        "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "PersistentVolumeClaim", "ConfigMap",
        "Secret", "Job", "ServiceMonitor", "Ingress", "NetworkPolicy", "Pod",
    }  # fmt: skip


@pytest.mark.parametrize("profile", VALUES["profiles"])
def test_a_profile_asks_for_its_device(profile: str) -> None:
    resources = container({"profile": profile})["resources"]
    devices = [name for name in resources["limits"] if "/" in name]
    assert len(devices) == (0 if profile == "cpu" else 1)
    assert resources == VALUES["profiles"][profile]["resources"]


def test_probes_and_the_end_fit_the_server() -> None:
    spec = the("Deployment", {"shutdownTimeout": 300, "startup": {"timeout": 600}})["spec"]["template"]["spec"]
    server = spec["containers"][0]
    assert server["startupProbe"]["httpGet"]["path"] == server["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert server["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert server["startupProbe"]["failureThreshold"] * server["startupProbe"]["periodSeconds"] >= 600
    pause = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > pause + 300
    assert "--shutdown-timeout=300" in server["args"]


def test_the_arguments_are_those_of_core_serve() -> None:
    import argparse

    from core.cli import serve
    from core.cli.main import Parser

    parser = Parser()
    commands: argparse._SubParsersAction[Any] = parser.add_subparsers()
    serve.add_parser(commands)
    parsed = parser.parse_args(["serve", *container(FULL)["args"]])
    assert parsed.model == "/models/bucket--team--llama" and parsed.served_model_name == "small"
    assert parsed.max_model_len == 2048 and parsed.shutdown_timeout == 120.0


@pytest.mark.parametrize(
    ("values", "source", "served"),
    [
        ({"model": "org/name"}, "org/name", "/models/org--name"),
        ({"model": "org/name/file.gguf"}, "org/name/file.gguf", "/models/org--name--file.gguf/file.gguf"),
        ({"extraInit": {"s3modelpath": "s3://b/p/x"}}, "s3://b/p/x", "/models/b--p--x"),
    ],
)
def test_the_model_is_brought_before_the_server_starts(values: dict[str, Any], source: str, served: str) -> None:
    spec = the("Deployment", values)["spec"]["template"]["spec"]
    (download,) = spec["initContainers"]
    assert download["command"] == ["core", "download"] and download["args"][0] == source
    assert spec["containers"][0]["args"][0] == served
    assert served.startswith(download["args"][2])


def test_without_an_init_container_the_server_fetches_it() -> None:
    spec = the("Deployment", CASES["bare"])["spec"]["template"]["spec"]
    assert "initContainers" not in spec and spec["containers"][0]["args"][0] == VALUES["model"]


def test_another_secret_or_configuration_replaces_the_pods() -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        found: dict[str, str] = the("Deployment", values)["spec"]["template"]["metadata"]["annotations"]
        return found

    plain = annotations({})
    assert annotations({"secret": {"HF_TOKEN": "t"}})["checksum/secret"] != plain["checksum/secret"]
    assert annotations({"env": {"CORE_LOG_LEVEL": "debug"}})["checksum/config"] != plain["checksum/config"]


def test_no_secret_lies_elsewhere_than_in_the_secret() -> None:
    secrets = {"HF_TOKEN": "s3cret-a", "CORE_API_KEY": "s3cret-b", "AWS_SECRET_ACCESS_KEY": "s3cret-c"}
    for (kind, _), each in render({**FULL, "secret": secrets}).items():
        assert ("s3cret" in yaml.safe_dump(each)) == (kind == "Secret"), kind


def test_nothing_runs_as_root_or_writes_outside_its_volumes() -> None:
    for (kind, name), each in render(FULL).items():
        pod = each["spec"] if kind == "Pod" else each.get("spec", {}).get("template", {}).get("spec")
        if pod is None or "containers" not in pod:
            continue
        assert pod["securityContext"]["runAsNonRoot"], name
        for one in [*pod["containers"], *pod.get("initContainers", [])]:
            context = one["securityContext"]
            assert context["readOnlyRootFilesystem"] and not context["allowPrivilegeEscalation"], name


def test_a_long_name_is_cut_where_kubernetes_wants_it() -> None:
    assert all(len(name) <= 63 for _, name in render(FULL, name="a" * 53))


@pytest.mark.parametrize(
    "values",
    [
        {"modle": "x"},
        {"model": ""},
        {"replicas": -1},
        {"replicas": "two"},
        {"image": {"pullPolicy": "Sometimes"}},
        {"args": ["max-model-len"]},
        {"env": {"lower": "x"}},
        {"secret": {"PASSWORD": "x"}},
        {"service": {"port": 70_000}},
        {"extraInit": {"s3modelpath": "https://bucket/x"}},
        {"persistence": {"size": "much"}},
        {"persistence": {"accessModes": ["ReadOnly"]}},
        {"profiles": {"mine": {}}},
        {"ingress": {"enabled": True}},
        {"downloadJob": {"enabled": True}, "persistence": {"enabled": False}},
        {"serviceMonitor": {"interval": "often"}},
    ],
    ids=str,
)
def test_wrong_values_are_refused_by_the_schema(values: dict[str, Any]) -> None:
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart, pytest.raises(helm_python.HelmError):
        chart.validate_schema(chart.merge_values(values))


def test_an_unknown_profile_is_refused() -> None:
    import helm_python

    with pytest.raises(helm_python.HelmError, match=r"profile: there is no .*gpu.*; choose amd-gpu, cpu"):
        render({"profile": "gpu"})
