"""Lists of referrers: the referrers API with pages, registries without it, and invalid lists."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from mirror.errors import MirrorError, NotFound, Refused, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, parse_manifest
from mirror.registry.client import RegistryV2
from mirror.util.cancellation import Stop, Work
from tests.conftest import ScriptedFactory
from tests.registries.scripted import ScriptedRegistry
from tests.registry import stores
from tests.support.images import DOCKER_LIST, Graph, Made

WORK = Work(Stop())
store = partial(stores.store, attempts=2)
OTHER = Digest(f"sha256:{'0' * 64}")


def signed(registry: ScriptedRegistry, count: int = 1) -> tuple[Digest, list[Made]]:
    """Put an image with `count` referrers into the repository `app`. Return its digest, and the referrers."""
    graph = Graph("signed")
    subject = graph.image("v1")
    made = [
        graph.artifact(subject=subject, texts=[f"{number}".encode()], kind=f"application/vnd.example.{number}")
        for number in range(count)
    ]
    registry.load("app", graph)
    return Digest(subject.digest), made


def referrers(client: RegistryV2, digest: Digest, repository: str = "app") -> set[str] | None:
    found = client.referrers(repository, digest, WORK)
    return None if found is None else {one.digest for one in found}


def test_the_referrers_on_all_pages_are_listed_with_their_types(scripted: ScriptedFactory) -> None:
    registry = scripted(referrers=True, referrers_page=2)
    digest, made = signed(registry, 5)
    with store(registry) as client:
        found = client.referrers("app", digest, WORK) or ()
    assert {(one.digest, one.extra["artifactType"], one.size) for one in made} == {
        (one.digest, one.artifact_type, one.size) for one in found
    }
    assert 3 == registry.counts()["GET referrers"]


def test_an_image_without_referrers_has_an_empty_list(scripted: ScriptedFactory) -> None:
    with store(scripted(referrers=True)) as client:
        assert set() == referrers(client, OTHER)


@pytest.mark.parametrize("status", [400, 404, 405, 501])
def test_a_registry_without_the_api_is_asked_once_for_each_repository(scripted: ScriptedFactory, status: int) -> None:
    registry = scripted()
    registry.fault("GET referrers", status=status)
    with store(registry) as client:
        assert [None, None, None] == [referrers(client, OTHER, name) for name in ("app", "app", "other")]
        assert referrers(client.as_target(), OTHER) is None
    assert 2 == registry.counts()["GET referrers"]


@pytest.mark.parametrize("code", ["NAME_UNKNOWN", "MANIFEST_UNKNOWN"])
def test_a_missing_repository_or_manifest_does_not_show_that_the_registry_lacks_the_api(
    scripted: ScriptedFactory, code: str
) -> None:
    registry = scripted(referrers=True)
    digest, made = signed(registry)
    body = json.dumps({"errors": [{"code": code, "message": "unknown"}]}).encode()
    registry.fault("GET referrers", nth=1, status=404, body=body)
    with store(registry) as client:
        assert referrers(client, OTHER) is None
        assert {made[0].digest} == referrers(client, digest)


def test_a_404_from_a_repository_that_has_listed_referrers_is_an_error(scripted: ScriptedFactory) -> None:
    registry = scripted(referrers=True)
    digest, made = signed(registry)
    registry.fault("GET referrers", nth=2, status=404)
    with store(registry) as client:
        assert {made[0].digest} == referrers(client, digest)
        with pytest.raises(NotFound, match="referrers: false"):
            referrers(client, digest)
        assert {made[0].digest} == referrers(client, digest)


def test_a_repository_without_the_api_does_not_concern_the_others_of_its_host(scripted: ScriptedFactory) -> None:
    registry = scripted(referrers=True)
    digest, made = signed(registry)
    registry.fault("GET referrers", repository="cache", status=404, times=100)
    with store(registry) as client:
        assert [None, {made[0].digest}] == [referrers(client, digest, name) for name in ("cache", "app")]


def test_callers_wait_for_the_first_response(scripted: ScriptedFactory) -> None:
    registry = scripted()
    going_on = threading.Event()
    fault = registry.fault("GET referrers", stall=going_on, status=404)
    with store(registry) as client, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(referrers, client, OTHER) for _ in range(4)]
        assert fault.fired.wait(10)
        going_on.set()
        assert [None] * 4 == [future.result() for future in futures]
    assert 1 == registry.counts()["GET referrers"]


@pytest.mark.parametrize("status", [403, 500])
def test_an_error_is_not_an_empty_list_and_does_not_concern_other_images(
    scripted: ScriptedFactory, status: int
) -> None:
    registry = scripted(referrers=True)
    digest, made = signed(registry)
    registry.fault("GET referrers", reference=OTHER, status=status, times=10)
    with store(registry) as client:
        with pytest.raises(RemoteError, match="referrers: false"):
            referrers(client, OTHER)
        assert {made[0].digest} == referrers(client, digest)


def entry(number: int, media_type: str = "application/vnd.oci.image.manifest.v1+json") -> dict[str, object]:
    return {"mediaType": media_type, "digest": f"sha256:{number:064x}", "size": 10}


def index(*entries: dict[str, object], media_type: str = OCI_INDEX) -> bytes:
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()


def test_a_list_of_null_is_empty(scripted: ScriptedFactory) -> None:
    """ociregistry sends this list."""
    registry = scripted(referrers=True)
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": None}).encode()
    registry.fault("GET referrers", status=200, headers=(("Content-Type", OCI_INDEX),), body=body)
    with store(registry) as client:
        assert set() == referrers(client, OTHER)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>a login page</html>", "HTML page"),
        (b"{}", "neither a manifest nor an index"),
        (index(media_type=DOCKER_LIST), "is not an OCI index"),
        (index(entry(1, "application/vnd.example.thing")), "not the type of a manifest"),
        (index({"mediaType": OCI_INDEX, "digest": "sha256:../../x", "size": 1}), "not a digest"),
        (index({"mediaType": OCI_INDEX, "digest": OTHER, "size": -1}), "expected a number of bytes"),
        (index(*(entry(number) for number in range(10_001))), "more than 10000"),
        (index({**entry(1), "annotations": {"a": "x" * (8 << 20)}}), "at most 8388608 bytes"),
    ],
    ids=["html", "empty", "docker-list", "no-manifest", "digest", "size", "many", "huge"],
)
def test_an_invalid_list_is_an_error(scripted: ScriptedFactory, body: bytes, message: str) -> None:
    registry = scripted(referrers=True)
    registry.fault("GET referrers", status=200, body=body, times=5)
    with store(registry) as client, pytest.raises(MirrorError, match=message):
        referrers(client, OTHER)


def test_a_list_over_many_pages_is_limited(scripted: ScriptedFactory) -> None:
    registry = scripted(referrers=True)
    pages = [index(*(entry(page * 4000 + number) for number in range(4000))) for page in range(3)]
    for page, body in enumerate(pages, 1):
        link = (("Link", f'</v2/app/referrers/{OTHER}?page={page}>; rel="next"'),)
        registry.fault("GET referrers", status=200, headers=link, body=body)
    with store(registry) as client, pytest.raises(Refused, match="more than 10000 entries"):
        referrers(client, OTHER)
    assert 3 == registry.counts()["GET referrers"]


@pytest.mark.parametrize(
    ("link", "code"),
    [
        (f"/v2/app/referrers/{OTHER}?page=1", "too_many"),
        (f"/v2/other/referrers/{OTHER}", "unsafe_link"),
        ("http://127.0.0.9:1/v2/app/referrers/x", "unsafe_link"),
    ],
)
def test_links_that_loop_or_lead_elsewhere_are_refused(scripted: ScriptedFactory, link: str, code: str) -> None:
    registry = scripted(referrers=True)
    registry.fault("GET referrers", status=200, headers=(("Link", f'<{link}>; rel="next"'),), body=index(), times=5)
    with store(registry) as client, pytest.raises(Refused) as caught:
        referrers(client, OTHER)
    assert code == caught.value.code


def test_a_push_tells_whether_the_registry_lists_the_manifest(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph = Graph("pushed")
    subject = graph.image("v1")
    made = graph.artifact(subject=subject)
    registry.load("app", graph)
    image, artifact = (parse_manifest(graph.manifests[one.digest].data) for one in (subject, made))
    with store(registry) as client:
        assert client.put_manifest("app", image.digest, image, WORK)
        assert not client.put_manifest("app", artifact.digest, artifact, WORK)
        registry.features.referrers = True
        assert client.put_manifest("app", artifact.digest, artifact, WORK)
        assert {made.digest} == referrers(client, image.digest)
