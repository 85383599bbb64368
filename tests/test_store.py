"""The contract of mirror/store.py, run against every store that can be written to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.errors import Cancelled, MirrorError, NotFound, Refused, RemoteError
from mirror.layout.directory import LayoutStore
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest, parse_manifest
from mirror.registry.client import RegistryV2
from mirror.registry.http.host_settings import HostSettings
from mirror.registry.session import Session
from mirror.store import Mount, Target, UploadSession, Version
from mirror.sync.repair import RepairTarget
from mirror.util.cancellation import Stop, Work
from tests.conftest import RegistryFactory, ScriptedFactory
from tests.support.bundles import Bytes, manifests_of
from tests.support.images import Graph
from tests.support.layouts import Served

WORK = Work(Stop())
DATA = bytes(range(256)) * 300
ABSENT = Descriptor(Digest.of(b"absent"), 6)

KINDS = ("docker-registry", "scripted registry", "repair of a registry", "mirror serve", "layout")


@dataclass
class World:
    """A store, and a way to open it again as another process would."""

    store: Target
    reopen: Callable[[], Target]

    def blob(self, data: bytes, repository: str = "app") -> Descriptor:
        blob = Descriptor(Digest.of(data), len(data))
        with self.store.begin_upload(repository, blob, WORK) as session:
            session.send(lambda offset: Bytes(data[offset:]), WORK)
            assert session.committed
        return blob

    def upload_graph(self, graph: Graph, repository: str = "app") -> dict[str, Manifest]:
        for data in graph.blobs.values():
            self.blob(data, repository)
        manifests = manifests_of(graph)
        for digest, manifest in manifests.items():
            self.store.put_manifest(repository, digest, manifest, WORK)
        for tag, digest in graph.tags.items():
            self.store.put_manifest(repository, tag, manifests[digest], WORK)
        return manifests

    def read(self, blob: Descriptor, offset: int = 0, repository: str = "app", piece: int = 1000) -> bytes:
        out, buffer = bytearray(), memoryview(bytearray(piece))
        with self.store.open_blob(repository, blob, WORK, offset=offset) as reader:
            assert reader.size in (None, blob.size)
            while count := reader.readinto(buffer):
                out += buffer[:count]
        return bytes(out)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.replace(" ", "-"))
def world(
    request: pytest.FixtureRequest, tmp_path: Path, registry_factory: RegistryFactory, scripted: ScriptedFactory
) -> Iterator[World]:
    with ExitStack() as stack:

        def client(host: str) -> RegistryV2:
            registry = RegistryV2(Session(HostSettings(host, plain_http=True), Limits()))
            stack.callback(registry.close)
            return registry

        def layout(*, new: bool = False) -> LayoutStore:
            store = LayoutStore(tmp_path / "layout", new=new)
            stack.callback(store.close)
            return store

        if request.param == "layout":
            written = layout(new=True)
            written.begin((), WORK)

            def reopen() -> Target:
                written.finish(whole=True, work=WORK)
                return layout()

            yield World(written, reopen)
            return
        first: Target
        if request.param == "mirror serve":
            host = stack.enter_context(Served(tmp_path / "served", writable=True)).host
        elif request.param == "docker-registry":
            host = registry_factory().host
        else:
            host = scripted().host
        first = RepairTarget(client(host)) if request.param.startswith("repair") else client(host)
        yield World(first, lambda: client(host))


def sorted_names(names: object) -> list[str]:
    return sorted(str(name) for name in names)  # type: ignore[attr-defined]  # an iterable of names


# ---- writing and reading


def test_written_objects_are_read_by_another_process_byte_for_byte(world: World) -> None:
    graph = Graph("contract")
    graph.platforms("v1", "latest")
    graph.image("docker", oci=False)
    graph.artifact("thing")
    manifests = world.upload_graph(graph)
    world.store.finish(whole=True, work=WORK)
    other = world.reopen()
    assert sorted(graph.tags) == sorted_names(other.tags("app", WORK))
    for tag, digest in graph.tags.items():
        assert graph.manifests[digest].data == other.manifest("app", tag, WORK).body
        assert manifests[digest] == other.read("app", tag, WORK).manifest
    for digest, body in graph.manifests.items():
        assert body.data == other.manifest("app", digest, WORK).body
    for digest, data in graph.blobs.items():
        assert data == World(other, world.reopen).read(Descriptor(Digest(digest), len(data)))


def test_a_tag_that_is_written_again_refers_to_the_new_manifest(world: World) -> None:
    graph = Graph("moved")
    first, second = graph.image("v1"), graph.image("v2")
    manifests = world.upload_graph(graph)
    world.store.put_manifest("app", "v1", manifests[second.digest], WORK)
    assert [second.digest] == [
        version.digest for version in world.store.resolve("app", ["v1"], WORK) if isinstance(version, Version)
    ]
    assert manifests[first.digest] == world.store.manifest("app", first.digest, WORK), (
        "the old manifest can still be read"
    )


def test_equal_tags_in_two_repositories_are_independent(world: World) -> None:
    ours, theirs = Graph("ours"), Graph("theirs")
    ours.image("v1")
    theirs.image("v1")
    world.upload_graph(ours, "team/app")
    world.upload_graph(theirs, "team/lib")
    digests = [world.store.read(name, "v1", WORK).digest for name in ("team/app", "team/lib")]
    assert [ours.tags["v1"], theirs.tags["v1"]] == digests
    assert ["team/app", "team/lib"] == sorted_names(world.store.repositories("team/", WORK))
    assert [] == sorted_names(world.store.repositories("other/", WORK))


# ---- missing objects


def test_missing_objects_are_not_found(world: World) -> None:
    graph = Graph("one")
    graph.image("v1")
    world.upload_graph(graph)
    with pytest.raises(NotFound):
        list(world.store.tags("missing", WORK))
    with pytest.raises(NotFound):
        world.store.manifest("app", "missing", WORK)
    with pytest.raises(NotFound):
        world.store.manifest("app", ABSENT.digest, WORK)
    with pytest.raises(NotFound):
        world.read(ABSENT)
    assert not world.store.has_blob("app", ABSENT, WORK)


def test_an_error_for_one_reference_is_yielded_in_its_place(world: World) -> None:
    graph = Graph("places")
    graph.image("v1")
    world.upload_graph(graph)
    first, missing, last = world.store.resolve("app", ["v1", "missing", "v1"], WORK)
    assert isinstance(first, Version)
    assert isinstance(missing, NotFound)
    assert first == last
    assert graph.tags["v1"] == first.digest


def test_a_digest_resolves_to_itself(world: World) -> None:
    graph = Graph("digest")
    root = graph.image("v1")
    world.upload_graph(graph)
    version, missing = world.store.resolve("app", [root.digest, ABSENT.digest], WORK)
    assert isinstance(version, Version)
    assert root.digest == version.digest
    assert isinstance(missing, NotFound)


# ---- blobs


@pytest.mark.parametrize("data", [b"", b"x", DATA], ids=["empty", "one-byte", "many"])
def test_a_blob_exists_with_its_size(world: World, data: bytes) -> None:
    blob = world.blob(data)
    assert world.store.has_blob("app", blob, WORK)
    assert data == world.read(blob)
    longer = Descriptor(blob.digest, len(data) + 1)
    if isinstance(world.store, RepairTarget):  # it sends every blob again
        assert not world.store.has_blob("app", longer, WORK)
        return
    with pytest.raises(Refused) as caught:
        world.store.has_blob("app", longer, WORK)
    assert "size_mismatch" == caught.value.code


@pytest.mark.parametrize("offset", [0, 1, 1000, len(DATA) - 1])
def test_a_blob_is_read_from_any_offset(world: World, offset: int) -> None:
    assert DATA[offset:] == world.read(world.blob(DATA), offset)


def test_a_body_that_fails_at_its_end_leaves_no_blob(world: World) -> None:
    blob = Descriptor(Digest.of(DATA), len(DATA))
    wrong = Refused("other bytes", code="digest_mismatch")
    with pytest.raises(MirrorError), world.store.begin_upload("app", blob, WORK) as session:
        session.send(lambda offset: Bytes(DATA[offset:], error=wrong, after=len(DATA)), WORK)
    assert not session.committed
    assert not world.store.has_blob("app", blob, WORK)
    assert blob == world.blob(DATA), "it can be uploaded after that"


def test_a_session_that_is_closed_without_commit_leaves_no_blob(world: World) -> None:
    blob = Descriptor(Digest.of(DATA), len(DATA))
    with world.store.begin_upload("app", blob, WORK) as session:
        assert not session.committed
    assert not world.store.has_blob("app", blob, WORK)


def test_a_blob_of_another_repository_is_mounted(world: World) -> None:
    graph = Graph("mount")
    graph.image("v1")
    world.upload_graph(graph, "base")
    for digest, data in graph.blobs.items():
        blob = Descriptor(Digest(digest), len(data))
        assert Mount.MOUNTED is world.store.mount_blob("app", blob, "base", WORK)
        assert world.store.has_blob("app", blob, WORK)


def test_a_blob_that_no_other_repository_has_is_not_mounted(world: World) -> None:
    outcome = world.store.mount_blob("app", ABSENT, "base", WORK)
    assert outcome is not Mount.MOUNTED
    if not isinstance(outcome, Mount):
        opened: UploadSession = outcome
        with opened as session:
            session.send(lambda offset: Bytes(b"absent"[offset:]), WORK)
        assert b"absent" == world.read(ABSENT)


# ---- manifests


def test_a_manifest_with_missing_blobs_is_an_error(world: World) -> None:
    graph = Graph("incomplete")
    index = graph.platforms("v1")
    every = manifests_of(graph)
    world.blob(DATA)  # creates the repository
    for digest in (*(child.digest for child in every[index.digest].children), index.digest):
        with pytest.raises(RemoteError) as caught:
            world.store.put_manifest("app", "v1", every[digest], WORK)
        assert "blob_missing" == caught.value.code
    (missing,) = world.store.resolve("app", ["v1"], WORK)
    assert isinstance(missing, NotFound)


def test_a_manifest_with_a_missing_subject_is_accepted(world: World) -> None:
    graph = Graph("subject")
    subject = Graph("elsewhere").image("v1")
    root = graph.artifact("about", subject=subject)
    world.upload_graph(graph)
    assert root.digest == world.store.read("app", "about", WORK).digest


def test_the_media_type_of_a_manifest_without_one_is_determined_from_its_content(world: World) -> None:
    graph = Graph("plain")
    root = graph.image("v1")
    body = graph.manifests[root.digest].data.replace(
        b'"mediaType":  "application/vnd.oci.image.manifest.v1+json" ,\n', b"", 1
    )
    plain = parse_manifest(body, root.media_type)
    assert root.digest != plain.digest
    world.upload_graph(graph)
    world.store.put_manifest("app", "plain", plain, WORK)
    assert body == world.store.manifest("app", "plain", WORK).body
    assert body == world.store.manifest("app", plain.digest, WORK).body


# ---- cancellation


def test_a_stop_ends_a_call(world: World) -> None:
    stop = Stop()
    stop.request("enough")
    with pytest.raises(Cancelled):
        list(world.store.resolve("app", ["v1"], Work(stop)))


def test_progress_counts_sent_bytes(world: World) -> None:
    sent: list[int] = []
    blob = Descriptor(Digest.of(DATA), len(DATA))
    with world.store.begin_upload("app", blob, WORK) as session:
        session.send(lambda offset: Bytes(DATA[offset:]), Work(Stop(), sent.append))
    assert len(DATA) == sum(sent)
