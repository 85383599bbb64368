"""Real registries: they start, log requests, can be damaged, and leave nothing behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import RegistryFactory
from tests.registries.access import Seen
from tests.registries.certificates import Authority
from tests.registries.client import Client, sha256
from tests.registries.real import RealRegistry
from tests.registries.tokens import TokenService
from tests.support.images import Graph
from tests.support.oracle import assert_equal, assert_whole, skopeo, skopeo_copy_to_dir, skopeo_digest, walk_tag
from tests.support.schema1 import payload
from tests.support.seeding import push, seed


def everything(name: str = "everything") -> Graph:
    """A graph with every kind of content that docker-registry accepts."""
    graph = Graph(name)
    index = graph.platforms("v1", "latest")
    graph.index("nested", children=[index])
    graph.image("docker", oci=False, twice=True)
    graph.platforms("list", oci=False)
    graph.artifact("notes")
    graph.image("hollow", layers=[graph.empty_blob()])
    graph.signature(index)
    graph.referrer(index, "one")
    graph.referrer(index, "two")
    return graph


def test_pushed_content_is_stored_byte_for_byte(source: RealRegistry) -> None:
    graph = everything()
    push(source, "team/app", graph)
    found = assert_whole(source)
    assert {("team/app", tag): digest for tag, digest in graph.tags.items()} == found.tags
    assert graph.manifests[graph.tags["v1"]].data == source.manifest("team/app", "v1").body


def test_a_signed_schema1_manifest_is_accepted_and_signed_again(registry_factory: RegistryFactory) -> None:
    registry, graph = registry_factory(schema1=True), Graph("old")
    made = graph.schema1("v1", name="app")
    push(registry, "app", graph)
    response = registry.manifest("app", "v1")
    assert made.digest == response.headers["docker-content-digest"] == sha256(payload(response.body))
    assert graph.manifests[made.digest].data != response.body
    assert payload(graph.manifests[made.digest].data) == payload(response.body)
    assert made.digest == walk_tag(registry, "app", "v1").digest
    assert_equal(registry, "app", registry)


def test_the_log_has_all_requests_except_those_of_the_tests_own_client(source: RealRegistry) -> None:
    push(source, "app", everything())
    assert [] == source.requests()
    with Client(source.host, agent="somebody") as client:
        client.tags("app")
        client.manifest("app", "latest")
        client.put_blob("app", b"a blob")
    digest = sha256(b"a blob")
    assert ["GET tags", "GET manifest", "POST upload", "PUT upload"] == [seen.kind for seen in source.requests()]
    assert Seen("PUT", source.requests()[-1].path, 201, 0, "PUT upload", "app", digest) == source.requests()[-1]
    assert ["POST upload", "PUT upload"] == [seen.kind for seen in source.writes()]
    assert Counter({"GET tags": 1, "GET manifest": 1}) == source.counts(status=200)
    source.mark()
    assert Counter() == source.counts()


def test_a_restart_keeps_port_and_content(source: RealRegistry) -> None:
    push(source, "app", everything())
    port = source.port
    source.restart()
    assert port == source.port
    assert 9 == len(source.tags("app"))
    source.stop()
    assert not source.running
    with pytest.raises(ConnectionRefusedError), source.client() as client:
        client.tags("app")


def test_a_registry_that_cannot_start_reports_why(tmp_path: Path) -> None:
    broken = RealRegistry(tmp_path, settings={"storage": {"filesystem": {"maxthreads": "many"}}})
    with pytest.raises(RuntimeError, match="maxthreads"):
        broken.start()
    assert not broken.running
    broken.close()
    assert not broken.storage.exists()


def test_a_port_in_use_is_replaced_by_another(registry_factory: RegistryFactory) -> None:
    ports = {registry_factory().port for _ in range(4)}
    assert 4 == len(ports)


@pytest.mark.parametrize("damage", ["blob", "bytes", "manifest", "truncated", "flipped"])
def test_damage_is_detected_by_the_oracle_and_can_be_repaired(source: RealRegistry, damage: str) -> None:
    graph = Graph("damage")
    index = graph.platforms("v1")
    push(source, "app", graph)
    blob, child = next(iter(graph.blobs)), next(iter(graph.manifests))
    kept = source.blob_file(blob).read_bytes()
    does: dict[str, Callable[[], Callable[[], None] | None]] = {
        "blob": lambda: source.drop_blob("app", blob),
        "bytes": lambda: source.drop_bytes(blob),
        "manifest": lambda: source.drop_manifest("app", child),
        "truncated": lambda: source.truncate_blob(blob, 10),
        "flipped": lambda: source.flip_byte(blob, -5),
    }
    mend = does[damage]()
    assert 1 == len(walk_tag(source, "app", "v1").problems)
    if mend:
        mend()
    else:
        source.blob_file(blob).write_bytes(kept)
    assert index.digest == walk_tag(source, "app", "v1").digest
    assert [] == walk_tag(source, "app", "v1").problems


def test_tags_can_be_dropped_and_everything_wiped(source: RealRegistry) -> None:
    push(source, "app", everything())
    put_back = source.drop_tag("app", "v1")
    assert "v1" not in source.tags("app")
    put_back()
    assert "v1" in source.tags("app")
    source.wipe()
    assert [] == source.tags("app")


def test_open_upload_sessions_are_counted(source: RealRegistry) -> None:
    with source.client() as client:
        opened = client.ask("POST", "/v2/app/blobs/uploads/", want=(202,))
        assert 1 == len(source.uploads("app"))
        client.ask("DELETE", opened.headers["location"], want=(204,))
    assert [] == source.uploads("app")


def test_basic_authentication_admits_only_users(registry_factory: RegistryFactory) -> None:
    registry = registry_factory(users={"acme": "correct horse"})
    push(registry, "app", everything())
    with Client(registry.host) as nobody:
        refused = nobody.ask("GET", "/v2/app/tags/list")
    assert (401, 'Basic realm="registry"') == (refused.status, refused.headers["www-authenticate"])
    skopeo("inspect", "--tls-verify=false", "--creds", "acme:correct horse", f"docker://{registry.host}/app:v1")
    assert "correct horse" not in (registry.folder / "users.htpasswd").read_text()


def test_tokens_are_issued_counted_and_accepted(tmp_path: Path, registry_factory: RegistryFactory) -> None:
    with TokenService(tmp_path, users={"acme": "secret"}) as tokens:
        registry = registry_factory(tokens=tokens)
        push(registry, "app", everything())
        assert [] == tokens.asked  # the tests' own requests do not need the token service
        skopeo("inspect", "--tls-verify=false", "--creds", "acme:secret", f"docker://{registry.host}/app:v1")
        assert {("acme", ("repository:app:pull",))} == {(asked.user, asked.scopes) for asked in tokens.asked}
        with pytest.raises(AssertionError, match=r"unauthorized|authentication|denied|401"):
            skopeo("inspect", "--tls-verify=false", "--creds", "acme:wrong", f"docker://{registry.host}/app:v1")
        assert 401 == tokens.asked[-1].status


def test_a_token_expires_at_its_stated_time(tmp_path: Path, registry_factory: RegistryFactory) -> None:
    with TokenService(tmp_path, life=-1) as tokens, Client(tokens.realm.split("/")[2]) as service:
        registry = registry_factory(tokens=tokens)
        push(registry, "app", everything())
        statuses = []
        for life in (-1, 30):
            tokens.life = life
            token = service.ask("GET", "/auth/token?service=x&scope=repository:app:pull").json()["token"]
            with Client(registry.host) as client:
                response = client.ask("GET", "/v2/app/tags/list", headers={"Authorization": f"Bearer {token}"})
            statuses.append(response.status)
    assert [401, 200] == statuses


def test_tls_and_client_certificates(tmp_path: Path, registry_factory: RegistryFactory, authority: Authority) -> None:
    graph = everything()
    plain, mutual = registry_factory(tls=authority), registry_factory(tls=authority, client_certificates=True)
    push(plain, "app", graph)
    push(mutual, "app", graph)
    assert_equal(plain, "app", mutual)
    folder = tmp_path / "certificates"
    folder.mkdir()
    (folder / "ca.crt").write_bytes(authority.ca.read_bytes())
    skopeo_copy_to_dir(plain, "app", "v1", tmp_path / "copy", certificates=folder)
    with (
        Client(mutual.host, tls=authority.client_context(certificate=False)) as nobody,
        pytest.raises(OSError, match=r"certificate"),
    ):
        nobody.tags("app")


def test_skopeo_gets_the_same_digests_as_the_tests_own_client(source: RealRegistry, tmp_path: Path) -> None:
    graph = everything()
    push(source, "app", graph)
    for tag in ("v1", "docker", "list", "hollow"):
        assert graph.tags[tag] == skopeo_digest(source, "app", tag)
        copied = skopeo_copy_to_dir(source, "app", tag, tmp_path / tag)
        assert graph.manifests[graph.tags[tag]].data == (copied / "manifest.json").read_bytes()


def test_many_images_share_layers_across_repositories(source: RealRegistry) -> None:
    seeded = seed(source, "team/app", repositories=3, images=2, tags=4, layers=4, shared=0.5, index=True)
    assert ["team/app-0", "team/app-1", "team/app-2"] == seeded.repositories
    assert 12 == len(seeded.tags)
    assert seeded.tags["team/app-0", "v0"] == seeded.tags["team/app-0", "v2"]
    # For each platform: 2 layers shared by all images, and 2 layers and a config of each image's own.
    assert 2 * (2 + 6 * 2 + 6) == len(seeded.blobs)
    assert 4 == len(seeded.shared)
    found = assert_whole(source)
    assert seeded.tags == found.tags
    sizes = seeded.blobs | seeded.manifests
    assert seeded.bytes == sum(sizes[digest] for digest in {digest for _, digest in found.objects})
