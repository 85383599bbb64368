"""The output of the Helm chart equals the files in tests_real/helm, and is valid for Kubernetes.

`make test-helm` installs helm and the checker in tests_real/kubernetes, with Go. After a change of the chart,
`MIRROR_TESTS_WRITE=1 make test-helm` writes the files again."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror.cli import make_parser
from tests.support.tool import ROOT, MirrorTool
from tests_real.installed import FOLDER, find_tool, program

CHART = ROOT / "contrib" / "helm" / "mirror"
CASES = ROOT / "tests_real" / "helm"
NAMES = sorted(path.name.removesuffix(".values.yaml") for path in CASES.glob("*.values.yaml"))
CONFIG = {"config": {"mirrors": [{"source": "docker.io/library/alpine", "targets": ["registry.example.com/alpine"]}]}}
# helm does not run against a cluster, and `go install` leaves its default version of Kubernetes at 1.20.
KUBERNETES = ("--kube-version", "1.33.0")


def helm(folder: Path, command: str, *arguments: str | Path, expect: int = 0) -> str:
    """Run helm. Return its output, or its messages if it is expected to fail."""
    done = subprocess.run(
        [find_tool("helm", FOLDER, "test-helm"), command, *map(str, arguments), *KUBERNETES],
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert expect == done.returncode, done.stdout + done.stderr
    return done.stderr if expect else done.stdout


def render(folder: Path, name: str) -> str:
    """Return the objects of a release that is named `prod`, with the values of a case."""
    return helm(folder, "template", "prod", CHART, "--namespace", "mirror", "--values", CASES / f"{name}.values.yaml")


def objects(name: str) -> dict[str, dict[str, Any]]:
    """Return the objects in the file of a case, by kind."""
    return {one["kind"]: one for one in yaml.safe_load_all((CASES / f"{name}.yaml").read_text())}


def pod(name: str) -> dict[str, Any]:
    """Return the specification of the pods of a case."""
    found = objects(name)
    for kind in ("CronJob", "Job", "Deployment"):
        if kind in found:
            spec = found[kind]["spec"]
            template: dict[str, Any] = spec.get("jobTemplate", {"spec": spec})["spec"]["template"]["spec"]
            return template
    raise AssertionError(f"{name} has no pods")


@pytest.mark.parametrize("name", NAMES)
def test_the_chart_renders_the_expected_objects(name: str, tmp_path: Path) -> None:
    rendered, path = render(tmp_path, name), CASES / f"{name}.yaml"
    if os.environ.get("MIRROR_TESTS_WRITE"):
        path.write_text(rendered)
    assert path.read_text() == rendered
    linted = helm(tmp_path, "lint", "--strict", CHART, "--values", CASES / f"{name}.values.yaml")
    assert "0 chart(s) failed" in linted


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_valid_for_kubernetes(name: str) -> None:
    done = subprocess.run(
        [program("kubernetes")],
        input=(CASES / f"{name}.yaml").read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (0, "") == (done.returncode, done.stderr)
    unchecked = [line for line in done.stdout.splitlines() if line.startswith("not checked")]
    expected = ["not checked: monitoring.coreos.com/v1 ServiceMonitor"] if "ServiceMonitor" in objects(name) else []
    assert expected == unchecked


@pytest.mark.parametrize("name", NAMES)
def test_the_pods_are_restricted_and_their_arguments_are_accepted(name: str) -> None:
    """The restrictions are those of the Pod Security Standard "restricted", and a root that is read-only."""
    spec = pod(name)
    (container,) = spec["containers"]
    assert (True, 65532) == (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"])
    assert {"type": "RuntimeDefault"} == spec["securityContext"]["seccompProfile"]
    restricted = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    assert restricted == container["securityContext"]
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert {one["name"] for one in spec["volumes"]} == mounted
    words = [word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in container["args"]]
    assert Path("/etc/mirror/mirror.yaml") == make_parser().parse_args(words).config


@pytest.mark.parametrize("name", [name for name in NAMES if name != "job"])
def test_the_configuration_in_the_config_map_is_valid(name: str, mirror_run: MirrorTool, tmp_path: Path) -> None:
    data = objects(name)["ConfigMap"]["data"]
    (path := tmp_path / "mirror.yaml").write_text(data["mirror.yaml"])
    ran = mirror_run("validate", path)
    assert 0 == ran.code, str(ran)
    assert yaml.safe_load(data["mirror.yaml"])["state"].startswith("/var/lib/mirror/")


def test_each_shard_gets_its_index_from_kubernetes() -> None:
    for name, count in (("shards", 4), ("job", 3)):
        (container,) = pod(name)["containers"]
        assert f"--shard=$(JOB_COMPLETION_INDEX)/{count}" in container["args"]
    job = objects("shards")["CronJob"]["spec"]["jobTemplate"]["spec"]
    assert ("Indexed", 4, 4) == (job["completionMode"], job["completions"], job["parallelism"])
    assert "FailIndex" == job["podFailurePolicy"]["rules"][0]["action"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({}, "set `config` with the key `mirrors`"),
        (CONFIG | {"kind": "StatefulSet"}, "kind"),
        (CONFIG | {"shedule": "0 * * * *"}, "shedule"),
        (CONFIG | {"image": {"digest": "sha256:12"}}, "digest"),
        (CONFIG | {"secretEnv": [{"name": "HUB_TOKEN", "value": "secret"}]}, "secretEnv"),
        (CONFIG | {"shards": 0}, "shards"),
        (CONFIG | {"shards": 2}, "ReadWriteMany"),
        (CONFIG | {"shards": 2, "kind": "Deployment"}, "`shards` needs the kind CronJob or Job"),
        (CONFIG | {"serviceMonitor": {"enabled": True}}, "`serviceMonitor` needs the kind Deployment"),
    ],
)
def test_values_without_a_meaning_are_errors(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    (path := tmp_path / "values.yaml").write_text(json.dumps(values))
    assert says in helm(tmp_path, "template", "prod", CHART, "--values", path, expect=1)


def test_the_values_in_the_documentation_are_accepted(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "installation.md").read_text()
    (block,) = re.findall(r"^```yml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (path := tmp_path / "values.yaml").write_text(block)
    rendered = list(yaml.safe_load_all(helm(tmp_path, "template", "mirror", CHART, "--values", path)))
    assert {"CronJob", "ConfigMap", "PersistentVolumeClaim", "ServiceAccount"} == {one["kind"] for one in rendered}
    assert {"mirror"} == {one["metadata"]["name"] for one in rendered}


def test_every_value_is_in_the_schema() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert set(values) == set(schema) - {"global"}
    for name, value in values.items():
        if "properties" in schema[name]:
            assert set(value) == set(schema[name]["properties"])
