"""Signatures and SBOMs of an image on real registries: `make test-registries`. Each test is a story with one target:
everything arrives, what is lost there is named and comes back, and what is added at the source later arrives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registries.real import RealRegistry
from tests.support.images import OCI_INDEX, Graph, tag_of
from tests.support.layouts import Served
from tests.support.oracle import assert_whole, skopeo_digest
from tests.support.seeding import push
from tests.support.signed import SIGNATURE, Signed
from tests.support.tool import MirrorTool
from tests_real.conftest import Starter
from tests_real.installed import MAKERS, Distribution, InstalledRegistry

Target = RealRegistry | InstalledRegistry | Served
TARGETS = ("docker-registry", "mirror serve", *(maker.__name__ for maker in MAKERS))


@pytest.fixture(params=TARGETS)
def registry(request: pytest.FixtureRequest, start: Starter, tmp_path: Path) -> Iterator[Target]:
    if request.param == "docker-registry":
        yield request.getfixturevalue("target")
    elif request.param == "mirror serve":
        with Served(tmp_path / "served", writable=True) as served:
            yield served
    else:
        (maker,) = (maker for maker in MAKERS if maker.__name__ == request.param)
        yield start(maker, "taker")


def listed(registry: Target, subject: str) -> set[str]:
    """Return the referrers that a registry lists: with the referrers API, or in the index under the tag."""
    with registry.client() as client:
        response = client.ask("GET", f"/v2/app/referrers/{subject}", repository="app")
        if response.status == 404:
            response = client.manifest("app", subject.replace(":", "-"))
            if response.status == 404:
                return set()
        return {entry["digest"] for entry in json.loads(response.body)["manifests"] or ()}


@pytest.mark.parametrize("from_distribution_3", [False, True], ids=["from-2.8", "from-3"])
def test_everything_that_belongs_to_a_selected_tag_is_kept_complete_on_a_real_registry(
    registry: Target, from_distribution_3: bool, source: RealRegistry, start: Starter, mirror_run: MirrorTool
) -> None:
    giver: RealRegistry | InstalledRegistry = start(Distribution, "giver") if from_distribution_3 else source
    signed = Signed(index_tags=True)
    push(giver, "app", signed.graph)
    mirror = {"source": f"{giver.host}/app", "targets": [f"{registry.host}/app"], "tags": ["3.20"]}

    def configure(**keys: str) -> None:
        mirror_run.config([{**mirror, **keys}], giver, registry)

    def check() -> None:
        """Check that the target is complete, with another client and with `verify`."""
        for subject, digests in signed.listed.items():
            assert digests == listed(registry, subject)
        assert signed.graph.tags[signed.tag] == skopeo_digest(registry, "app", signed.tag)
        assert_whole(registry, ["app"])
        verified = mirror_run("verify", mirror_run.config_file)
        assert (0, True) == (verified.code, f"{len(signed.manifests())} attachments" in verified.out), verified

    configure()
    mirror_run.sync()
    check()

    (of_child,) = signed.listed[signed.child.digest]
    with registry.client() as client:
        assert client.delete("app", of_child) in (200, 202)
    verified = mirror_run("verify", mirror_run.config_file)
    assert (1, True) == (verified.code, f"{SIGNATURE} {of_child} is missing" in verified.out), verified
    mirror_run.sync("--deep")
    check()

    late = Graph("late")
    made = late.artifact(kind=SIGNATURE, texts=[b"late"], subject=signed.image)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [signed.sbom.json(), made.json()]}
    late.raw(json.dumps(document).encode(), OCI_INDEX, tag_of(signed.image))
    push(giver, "app", late)
    requests = giver if isinstance(giver, RealRegistry) else giver.journal
    requests.mark()
    mirror_run.sync()
    assert {"HEAD manifest": 1} == requests.counts(), "nothing is requested before the attachments are due"
    configure(recheck="0 s")
    mirror_run.sync()
    signed.listed[signed.image.digest].add(made.digest)
    check()
