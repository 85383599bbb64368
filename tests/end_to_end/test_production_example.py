"""configs/prod.yaml, the example of a production configuration, copies what its comments promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.support.images import Graph
from tests.support.oracle import assert_whole
from tests.support.tool import MirrorTool

EXAMPLE = Path(__file__).resolve().parents[2] / "configs" / "prod.yaml"
PASSWORDS = {"HUB_TOKEN": "password-of-the-hub", "QUAY_TOKEN": "password-of-quay", "REGISTRY_PASSWORD": "of-the-target"}
SIX = ("linux/amd64", "linux/arm/v6", "linux/arm/v7", "linux/arm64/v8", "linux/ppc64le", "linux/s390x")


def seed(hub: ScriptedRegistry, quay: ScriptedRegistry) -> None:
    alpine = Graph("alpine")
    for tag in ("3.17.0", "3.18.0", "3.19.0", "3.19.1", "3.20.0", "3.21.0", "edge"):
        alpine.index(tag, children=[alpine.image(platform=platform, label=tag) for platform in SIX])
    hub.load("library/alpine", alpine)
    prometheus = Graph("prometheus")
    for tag in ("v1.8.2", "v2.55.1", "v3.0.0", "v3.0.0-rc.0", "main"):
        prometheus.platforms(tag)
    quay.load("prometheus/prometheus", prometheus)
    for name in ("app-signed", "app-unsigned", "app-test", "docs"):
        graph = Graph(name)
        image = graph.platforms("v1", "latest")
        if name != "app-unsigned":
            graph.signature(image)
        quay.load(f"acme/{name}", graph)
    nginx = Graph("nginx")
    for tag in ("1.26", "1.27", "stable"):
        nginx.platforms(tag)
    hub.load("library/nginx", nginx)


def write_example(tool: MirrorTool, hosts: dict[str, ScriptedRegistry]) -> None:
    """Write the example with the names of local registries instead of its hosts, and without a rate limit."""
    text = EXAMPLE.read_text()
    for name, registry in hosts.items():
        text = text.replace(name, registry.host)
    document: dict[str, Any] = yaml.safe_load(text)
    for settings in document["registries"].values():
        settings["plain-http"] = True
        settings.pop("rate", None)  # the run would take a quarter of a minute
    document |= {"state": str(tool.state), "log": {**document["log"], "file": str(tool.state / "mirror.log")}}
    tool.config_file.write_text(yaml.safe_dump(document, sort_keys=False))


def tags_of(registry: ScriptedRegistry, repository: str) -> set[str]:
    """Return the tags of a repository, without those of attachments."""
    return {tag for tag in registry.tags(repository) if not tag.startswith("sha256-")}


def test_the_production_example_copies_what_its_comments_promise(
    scripted: ScriptedFactory, mirror_run: MirrorTool
) -> None:
    hub = scripted("hub", users={"acme": PASSWORDS["HUB_TOKEN"]})
    quay = scripted("quay")
    target = scripted("target", users={"mirror": PASSWORDS["REGISTRY_PASSWORD"]})
    dr = scripted("dr")
    seed(hub, quay)
    write_example(mirror_run, {"docker.io": hub, "quay.io": quay, "registry.example.com": target, "dr.example.com": dr})

    mirror_run.sync(expect=3, environment=PASSWORDS)

    failures = [image for image in mirror_run.report()["images"] if image["result"] != "copied"]
    assert [(f"{quay.host}/acme/app-unsigned:v1", "failed")] == [(one["source"], one["result"]) for one in failures]
    copied = {name: tags_of(target, name) for name in target.storage.repositories}
    newest = {"3.19.0", "3.19.1", "3.20.0", "3.21.0"}
    assert copied == {
        "hub/alpine": newest,
        "hub/nginx": {"1.27-hub", "stable-hub"},
        "prometheus": {"v2.55.1", "v3.0.0"},
        "acme/app-signed": {"v1"},
    }
    assert newest == tags_of(dr, "hub/alpine")
    for registry in (target, dr):
        assert_whole(registry)
        index = json.loads(registry.manifest("hub/alpine", "3.21.0").body)
        assert ["amd64", "arm64"] == [entry["platform"]["architecture"] for entry in index["manifests"]]
    assert 1 == len([tag for tag in target.tags("acme/app-signed") if tag.endswith(".sig")])

    written = [len(registry.requests()) for registry in (target, dr)]
    mirror_run.sync(expect=3, environment=PASSWORDS)
    assert not [seen.kind for seen in target.requests()[written[0] :] if seen.kind.startswith(("PUT", "POST"))]
    assert [] == dr.requests()[written[1] :], "an exclusive target is not asked again"
    mirror_run.sweep(*PASSWORDS.values())
