"""The scripted registry without faults: strict, stateful, accepted by skopeo."""

from __future__ import annotations

import socket
import ssl

import pytest

from tests.conftest import ScriptedFactory
from tests.registries.certificates import Authority
from tests.registries.client import sha256
from tests.registries.scripted import ScriptedRegistry
from tests.registries.storage import digest_of
from tests.support.images import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, Graph, oddly, tag_of
from tests.support.oracle import assert_equal, assert_whole, skopeo
from tests.support.seeding import push, seed

USERS = {"acme": "password"}


def filled(registry: ScriptedRegistry, name: str = "scripted") -> Graph:
    graph = Graph(name)
    index = graph.platforms("v1", "latest")
    graph.image("docker", oci=False, twice=True)
    graph.signature(index)
    graph.referrer(index)
    registry.load("app", graph)
    return graph


def test_pushed_and_loaded_content_is_the_same(scripted: ScriptedFactory) -> None:
    one, two = scripted(), scripted()
    graph = filled(one)
    push(two, "app", graph)
    assert_equal(one, "app", two)
    assert [] == two.requests()
    assert [] == two.uploads


@pytest.mark.parametrize(
    "options",
    [{}, {"users": USERS}, {"users": USERS, "bearer": True}, {"fresh_locations": False}, {"mounts": False}],
    ids=str,
)
def test_skopeo_copies_into_and_out_of_the_registry(scripted: ScriptedFactory, options: dict[str, object]) -> None:
    source, target = scripted(**options), scripted(**options)
    filled(source)
    login = ["--src-creds", "acme:password", "--dest-creds", "acme:password"] if "users" in options else []
    for tag in ("v1", "docker"):
        there = [f"docker://{registry.host}/app:{tag}" for registry in (source, target)]
        skopeo("copy", "--all", *login, "--src-tls-verify=false", "--dest-tls-verify=false", *there)
    assert_equal(source, "app", target, tags=["v1", "docker"])
    assert [] == target.uploads


def test_skopeo_copies_over_tls(scripted: ScriptedFactory, authority: Authority) -> None:
    registry = scripted(tls=authority, users=USERS, bearer=True)
    filled(registry)
    folder = authority.ca.parent / "skopeo"
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    source = f"docker://{registry.host}/app:v1"
    skopeo("inspect", "--raw", "--cert-dir", str(folder), "--creds", "acme:password", source)
    assert {"GET ping", "GET token", "GET manifest"} == set(registry.counts())


def test_many_images_can_be_seeded_and_walked(scripted: ScriptedFactory) -> None:
    registry = scripted()
    seeded = seed(registry, "app", repositories=2, images=2, index=True)
    assert seeded.tags == assert_whole(registry).tags


def test_the_log_has_all_properties_of_a_request(scripted: ScriptedFactory) -> None:
    registry = scripted()
    filled(registry)
    with registry.client(agent="somebody") as client:
        client.manifest("app", "v1")
        client.put_blob("app", b"12345")
    entries = registry.log
    assert ["GET manifest", "POST upload", "PUT upload"] == [entry.kind for entry in entries]
    assert [200, 202, 201] == [entry.status for entry in entries]
    assert [0, 0, 5] == [entry.body_length for entry in entries]
    assert {1} == {entry.connection for entry in entries}
    assert ("app", sha256(b"12345")) == (entries[2].repository, entries[2].reference)
    assert ("somebody", "5") == (entries[2].header("user-agent"), entries[2].header("content-length"))
    assert entries[0].time <= entries[0].ended <= entries[1].time
    assert 1 == registry.journal.most_in_flight
    registry.mark()
    assert [] == registry.log


def test_a_chunked_upload_follows_the_locations(scripted: ScriptedFactory) -> None:
    registry = scripted()
    with registry.client() as client:
        first = client.ask("POST", "/v2/app/blobs/uploads/", want=(202,)).headers["location"]
        response = client.ask("PATCH", first, headers={"Content-Range": "0-2"}, body=b"abc", want=(202,))
        second = response.headers["location"]
        assert "0-2" == response.headers["range"]
        assert 404 == client.ask("PATCH", first, headers={"Content-Range": "3-3"}, body=b"d").status
        assert 416 == client.ask("PATCH", second, headers={"Content-Range": "4-4"}, body=b"e").status
        status = client.ask("GET", second, want=(204,))
        assert "0-2" == status.headers["range"]
        assert 400 == client.ask("PUT", f"{second}&digest={sha256(b'abcX')}", body=b"d").status


def test_a_blob_can_be_uploaded_by_one_post_and_with_sha512(scripted: ScriptedFactory) -> None:
    registry = scripted()
    digest = digest_of(b"abc", "sha512")
    with registry.client() as client:
        client.ask("POST", f"/v2/app/blobs/uploads/?digest={digest}", body=b"abc", want=(201,))
        assert b"abc" == client.blob("app", digest).body


def test_a_mount_links_an_existing_blob_or_opens_a_session(scripted: ScriptedFactory) -> None:
    registry = scripted()
    blob = next(iter(filled(registry).blobs))
    with registry.client() as client:
        assert client.mount("other", blob, "app")
        assert client.has_blob("other", blob)
        assert not client.mount("other", sha256(b"unknown"), "app")
    assert [] == registry.uploads  # the session was cancelled


def test_everything_that_a_manifest_refers_to_must_exist(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph = Graph("lonely")
    made = graph.image("v1")
    with registry.client() as client:
        path = "/v2/app/manifests/v1"
        sent = {"Content-Type": OCI_MANIFEST}
        refused = client.ask("PUT", path, headers=sent, body=graph.manifests[made.digest].data)
        assert (400, "MANIFEST_BLOB_UNKNOWN") == (refused.status, refused.json()["errors"][0]["code"])
        sent = {"Content-Type": DOCKER_MANIFEST}
        assert 400 == client.ask("PUT", path, headers=sent, body=graph.manifests[made.digest].data).status
        assert 400 == client.ask("PUT", path, headers=sent, body=b"{").status


def test_the_referrers_api_lists_manifests_by_subject(scripted: ScriptedFactory) -> None:
    registry, graph = scripted(referrers=True), Graph("subject")
    subject = graph.image("v1")
    sbom = graph.referrer(subject, kind="application/vnd.example.sbom.v1")
    signature = graph.artifact(kind="application/vnd.example.signature.v1", subject=subject)
    registry.load("app", graph)
    with registry.client() as client:
        every = client.ask("GET", f"/v2/app/referrers/{subject.digest}", want=(200,))
        assert OCI_INDEX == every.headers["content-type"]
        assert {sbom.digest, signature.digest} == {entry["digest"] for entry in every.json()["manifests"]}
        path = f"/v2/app/referrers/{subject.digest}?artifactType=application/vnd.example.sbom.v1"
        some = client.ask("GET", path, want=(200,))
        assert "artifactType" == some.headers["oci-filters-applied"]
        assert [sbom.digest] == [entry["digest"] for entry in some.json()["manifests"]]
        body = oddly({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "subject": subject.bare()})
        sent = {"Content-Type": OCI_INDEX}
        put = client.ask("PUT", "/v2/app/manifests/another", headers=sent, body=body, want=(201,))
        assert subject.digest == put.headers["oci-subject"]
    assert tag_of(subject) in registry.tags("app")


def test_deleting_a_manifest_deletes_its_tags(scripted: ScriptedFactory) -> None:
    registry = scripted()
    graph = filled(registry)
    with registry.client() as client:
        assert 405 == client.delete("app", "v1")
        assert 202 == client.delete("app", graph.tags["v1"])
        assert 404 == client.delete("app", graph.tags["v1"])
        registry.features.tag_delete = True
        assert 202 == client.delete("app", "docker")
    assert [tag for tag in sorted(graph.tags) if tag.startswith("sha256")] == registry.tags("app")


def test_a_stopped_registry_refuses_connections_and_restarts_on_its_port(scripted: ScriptedFactory) -> None:
    registry = scripted()
    filled(registry)
    host = registry.host
    registry.stop()
    with pytest.raises(ConnectionRefusedError), registry.client() as client:
        client.tags("app")
    registry.start()
    assert host == registry.host
    assert "v1" in registry.tags("app")


def test_stopping_ends_idle_connections_and_half_handshakes(scripted: ScriptedFactory, authority: Authority) -> None:
    registry = scripted(tls=authority)
    address = registry.host.split(":")
    with socket.create_connection((address[0], int(address[1]))) as idle, registry.client() as client:
        client.ask("GET", "/v2/", want=(200,))
        registry.stop()
        assert b"" == idle.recv(1)


def test_another_loopback_address_is_another_host(scripted: ScriptedFactory, authority: Authority) -> None:
    registry = scripted(address="127.0.0.3")
    assert registry.host.startswith("127.0.0.3:")
    filled(registry)
    assert "v1" in registry.tags("app")
    with pytest.raises(ssl.SSLCertVerificationError), scripted(tls=authority, address="127.0.0.3").client() as client:
        client.tags("app")  # its certificate is for 127.0.0.1
