"""The bundle as a Source and a Target, without a run."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from mirror.errors import LocalError, LockBusy, NetworkError, NotFound, Refused, RemoteError
from mirror.layout.base_inventory import BaseInventory
from mirror.layout.bundle.store import BundleStore
from mirror.layout.bundle.writer import BundleWriter
from mirror.layout.inventory import Inventory, ManifestInfo, parse_inventory
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.store import ExpectedImage, Mount, Version
from tests.support.bundles import Bytes, bring, comings, export, manifests_of, opened, stock, work
from tests.support.images import Graph


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "media").mkdir()
    return tmp_path / "media" / "bundle.tar"


def members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {one.name: tar.extractfile(one).read() for one in tar}  # type: ignore[union-attr]


def listing(directory: Path) -> list[str]:
    return sorted(one.name for one in directory.iterdir())


def read(bundle: BundleStore, blob: str, repository: str = "app") -> bytes:
    data = b""
    with bundle.open_blob(repository, Descriptor(Digest(blob), None), work()) as reader:
        buffer = memoryview(bytearray(700))
        while count := reader.readinto(buffer):
            data += bytes(buffer[:count])
    return data


# ---- what is written


def test_a_bundle_is_a_layout_of_all_images_with_its_inventory_first(path: Path) -> None:
    graph = stock()
    export(path, graph)
    found = members(path)
    names = list(found)
    assert ["mirror-inventory.json", "oci-layout", "index.json"] == names[:3]
    manifests = [f"blobs/sha256/{digest[7:]}" for digest in sorted(graph.manifests)]
    blobs = [f"blobs/sha256/{digest[7:]}" for digest in sorted(graph.blobs)]
    assert manifests + blobs == names[3:]
    for digest, data in graph.blobs.items():
        assert data == found[f"blobs/sha256/{digest[7:]}"]
    index = json.loads(found["index.json"])
    tags = {one["annotations"]["org.opencontainers.image.ref.name"]: one["digest"] for one in index["manifests"]}
    assert {f"app:{tag}": digest for tag, digest in graph.tags.items()} == tags
    inventory = parse_inventory(found["mirror-inventory.json"], "inventory")
    assert graph.tags == inventory.repositories["app"].tags
    assert {digest: len(data) for digest, data in graph.blobs.items()} == inventory.blobs
    assert found["mirror-inventory.json"] == inventory.render()
    assert ["bundle.tar"] == listing(path.parent)


def test_equal_content_gives_equal_bytes_in_any_order(path: Path, tmp_path: Path) -> None:
    graph, other = stock(), tmp_path / "other.tar"
    export(path, graph)
    images = list(reversed(comings(graph)))
    bundle = opened(other)
    bundle.begin(images, work())
    bring(bundle, images, graph.blobs)
    bundle.finish(whole=True, work=work())
    assert path.read_bytes() == other.read_bytes()


def test_gnu_tar_and_skopeo_read_a_bundle(path: Path, tmp_path: Path) -> None:
    graph = stock()
    export(path, graph, team_web=stock("web"))
    subprocess.run(["tar", "-xf", path, "-C", tmp_path], check=True)
    assert (tmp_path / "index.json").is_file()
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for name, made in (("app", graph), ("team/web", stock("web"))):
        command = ["skopeo", "inspect", "--raw", f"oci-archive:{path}:{name}:v1"]
        ran = subprocess.run(command, capture_output=True, check=True, env=environment)
        assert made.manifests[made.tags["v1"]].data == ran.stdout


def test_an_image_by_digest_is_in_the_index_without_a_name(path: Path) -> None:
    graph = stock()
    root = graph.tags["v2"]
    bundle = opened(path)
    images = [*comings(graph, references=["v1"]), *comings(graph, references=[root])]
    bundle.begin(images, work())
    bring(bundle, images, graph.blobs)
    bundle.finish(whole=True, work=work())
    entries = json.loads(members(path)["index.json"])["manifests"]
    assert [graph.tags["v1"], root] == [one["digest"] for one in entries]
    assert {"mirror.repository": "app"} == entries[1]["annotations"]
    again = opened(path)
    assert [Digest(root)] == [one.digest for one in again.resolve("app", [root], work()) if isinstance(one, Version)]
    again.close()


def test_the_bundle_gets_its_name_only_when_it_is_complete(path: Path) -> None:
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    assert not path.exists()
    bring(bundle, images[:2], graph.blobs)
    with pytest.raises(Refused, match="missing blobs: sha256:") as caught:
        bundle.finish(whole=True, work=work())
    assert ("bundle_incomplete", "export again") == (caught.value.code, caught.value.hint)
    assert not path.exists()


def test_a_failed_run_keeps_its_blobs_and_does_not_replace_the_bundle(path: Path) -> None:
    old, new = stock("old"), stock("new")
    export(path, old)
    before = path.read_bytes()
    images = comings(new)
    bundle = opened(path)
    bundle.begin(images, work())
    came = bring(bundle, images[:2], new.blobs)
    bundle.finish(whole=False, work=work())
    bundle.close()
    assert before == path.read_bytes()
    assert set(new.blobs) - set(came) - set(old.blobs) == set(export(path, new))
    assert ["bundle.tar"] == listing(path.parent)


def test_a_manifest_is_refused_before_its_blobs(path: Path) -> None:
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    with pytest.raises(RemoteError) as caught:
        bundle.put_manifest("app", "v2", manifests_of(graph)[graph.tags["v2"]], work())
    assert "blob_missing" == caught.value.code
    bundle.finish(whole=False, work=work())


@pytest.mark.parametrize("data", [b"too short", b"x" * 100_000])
def test_a_blob_of_a_wrong_length_is_refused_and_does_not_overwrite_other_members(path: Path, data: bytes) -> None:
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    blob = next(blob for blob in images[0].blobs if blob.size and 1000 < blob.size < 50_000)
    with pytest.raises(Refused) as caught, bundle.begin_upload("app", blob, work()) as session:
        session.send(lambda offset: Bytes(data), work())
    assert "size_mismatch" == caught.value.code
    assert not bundle.has_blob("app", blob, work())
    bring(bundle, images, graph.blobs)
    bundle.finish(whole=True, work=work())
    found = members(path)
    assert graph.blobs == {digest: found[f"blobs/sha256/{digest[7:]}"] for digest in graph.blobs}


def test_an_upload_can_be_repeated_after_its_body_failed(path: Path) -> None:
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    blob = images[0].blobs[-1]
    with pytest.raises(NetworkError), bundle.begin_upload("app", blob, work()) as session:
        session.send(lambda offset: Bytes(graph.blobs[blob.digest], error=NetworkError("cut"), after=2000), work())
    bring(bundle, images, graph.blobs)
    bundle.finish(whole=True, work=work())
    assert graph.blobs[blob.digest] == members(path)[f"blobs/sha256/{blob.digest[7:]}"]


def test_two_uploads_of_the_same_blob_do_not_overwrite_each_other(path: Path) -> None:
    graph = stock()
    images = comings(graph)
    blob = images[0].blobs[-1]
    bundle = opened(path)
    bundle.begin(images, work())
    started, go = threading.Event(), threading.Event()

    class Slow(Bytes):
        def readinto(self, buffer: memoryview) -> int:
            started.set()
            assert go.wait(60)
            return super().readinto(buffer)

    def first() -> None:
        with bundle.begin_upload("app", blob, work()) as session:
            session.send(lambda offset: Slow(graph.blobs[blob.digest]), work())

    def second() -> None:
        with bundle.begin_upload("app", blob, work()) as session:
            session.send(lambda offset: pytest.fail("read for nothing"), work())

    threads = [threading.Thread(target=first, name="first"), threading.Thread(target=second, name="second")]
    threads[0].start()
    assert started.wait(60)
    threads[1].start()
    go.set()
    for thread in threads:
        thread.join(60)
    assert bundle.has_blob("app", blob, work())
    assert Mount.MOUNTED is bundle.mount_blob("other", blob, "app", work())
    bundle.finish(whole=False, work=work())


def test_a_second_run_that_writes_the_same_bundle_fails_at_once(path: Path) -> None:
    images = comings(stock())
    one, two = opened(path), opened(path)
    one.begin(images, work())
    with pytest.raises(LockBusy):
        two.begin(images, work())
    two.close()
    one.finish(whole=False, work=work())
    three = opened(path)
    three.begin(images, work())
    three.close()


def test_an_image_with_blobs_of_unknown_size_cannot_be_bundled(path: Path) -> None:
    manifest = manifests_of(stock())[stock().tags["v2"]]
    schema1 = ExpectedImage("app", "old", (manifest,), (Descriptor(Digest.of(b"layer"), None),))
    with pytest.raises(RemoteError, match="schema 1"):
        opened(path).begin([schema1], work())
    assert [] == listing(path.parent)


# ---- what is there already


def test_an_unchanged_export_writes_nothing(path: Path) -> None:
    graph = stock()
    export(path, graph)
    before = path.stat()
    assert [] == export(path, graph)
    assert (before.st_ino, before.st_mtime_ns) == (path.stat().st_ino, path.stat().st_mtime_ns)


def test_blobs_of_the_old_bundle_are_not_fetched_again(path: Path) -> None:
    old = stock()
    export(path, old)
    new = stock()
    new.image("v2", layers=[new.layer("base"), new.layer("three")])
    fresh = set(new.blobs) - set(old.blobs)
    assert fresh == set(export(path, new))
    assert new.tags == parse_inventory(members(path)["mirror-inventory.json"], "").repositories["app"].tags


def test_a_damaged_blob_of_the_old_bundle_is_fetched_again(path: Path) -> None:
    old = stock()
    export(path, old)
    digest = next(digest for digest, data in old.blobs.items() if len(data) > 3000)
    with tarfile.open(path) as tar:
        place = tar.getmember(f"blobs/sha256/{digest[7:]}").offset_data
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"\xff")
    new = stock()
    new.image("more")
    assert {digest} | (set(new.blobs) - set(old.blobs)) == set(export(path, new))


def test_a_target_that_is_not_a_bundle_is_not_overwritten(path: Path) -> None:
    path.write_bytes(b"something that somebody wants to keep" * 100)
    with pytest.raises(Refused) as caught:
        export(path, stock())
    assert "bundle_invalid" == caught.value.code
    assert path.read_bytes().startswith(b"something")


def test_blobs_of_another_unfinished_bundle_are_reused(path: Path) -> None:
    graph = stock()
    images = comings(graph)
    bundle = opened(path)
    bundle.begin(images, work())
    came = bring(bundle, images[:3], graph.blobs)
    bundle.close()  # the state after a kill, except for the open files
    graph.image("more")
    assert set(graph.blobs) - set(came) == set(export(path, graph))
    assert ["bundle.tar"] == listing(path.parent)


# ---- differential


def base_of(path: Path) -> BaseInventory:
    return BaseInventory(parse_inventory(members(path)["mirror-inventory.json"], "base"))


def test_a_differential_export_has_all_manifests_and_only_new_blobs(path: Path, tmp_path: Path) -> None:
    old = stock()
    export(path, old)
    new = stock()
    new.image("v2", layers=[new.layer("base"), new.layer("three")])
    fresh = set(new.blobs) - set(old.blobs)
    second = tmp_path / "second.tar"
    assert fresh == set(export(second, new, base=base_of(path)))
    inventory = parse_inventory(members(second)["mirror-inventory.json"], "")
    assert fresh == set(inventory.blobs)
    wanted = {layer for coming in comings(new) for layer in [blob.digest for blob in coming.blobs]} - fresh
    assert wanted == set(inventory.base)
    assert {("app",)} == {one.repositories for one in inventory.base.values()}
    bundle = opened(second)
    assert sorted(new.tags) == sorted(map(str, bundle.tags("app", work())))
    assert bundle.partial
    lacking = {blob.digest for coming in comings(new) for blob in coming.blobs if bundle.omits_blob(blob)}
    assert wanted == lacking
    bundle.close()
    assert len(second.read_bytes()) - sum(len(new.blobs[digest]) for digest in fresh) < 64 << 10


def test_a_root_manifest_in_a_base_that_was_made_from_a_report_implies_its_blobs(path: Path) -> None:
    graph = stock()
    inventory = Inventory()
    for coming in comings(graph, references=["v1"]):
        inventory.add(ExpectedImage("hub/app", "v1", coming.manifests[-1:], ()), BaseInventory())
    listed = export(path, graph, base=BaseInventory(inventory))
    assert set(graph.blobs) == set(listed), "an inventory with sizes lists everything that the base has"
    path.unlink()
    inventory.manifests = {digest: ManifestInfo("", None) for digest in inventory.manifests}
    read = export(path, graph, base=BaseInventory(inventory))
    of_v1 = {blob.digest for coming in comings(graph, references=["v1"]) for blob in coming.blobs}
    assert set(graph.blobs) - of_v1 == set(read)


def test_a_complete_bundle_is_not_partial(path: Path) -> None:
    graph = stock()
    export(path, graph)
    bundle = opened(path)
    assert sorted(graph.tags) == sorted(map(str, bundle.tags("app", work())))
    assert not bundle.partial
    bundle.close()


# ---- reading


def test_a_bundle_is_read_as_a_source(path: Path) -> None:
    graph = stock()
    image = next(one for one in manifests_of(graph).values() if one.digest == graph.tags["v2"])
    export(path, graph, team_web=stock("web"))
    bundle = opened(path)
    assert ["app", "team/web"] == list(bundle.repositories("", work()))
    assert ["team/web"] == list(bundle.repositories("team/", work()))
    answers = list(bundle.resolve("app", ["v2", "nothing", image.digest], work()))
    assert [image.digest, image.digest] == [one.digest for one in answers if isinstance(one, Version)]
    assert isinstance(answers[1], NotFound)
    found = bundle.read("app", "v2", work()).manifest
    assert found is not None
    assert (image.body, image.media_type) == (found.body, found.media_type)
    for digest, data in graph.blobs.items():
        assert data == read(bundle, digest)
    with bundle.open_blob("app", image.blobs[-1], work(), offset=100) as reader:
        buffer = memoryview(bytearray(50))
        assert 50 == reader.readinto(buffer)
        assert graph.blobs[image.blobs[-1].digest][100:150] == bytes(buffer)
    with pytest.raises(NotFound):
        bundle.tags("team/other", work())
    with pytest.raises(NotFound):
        bundle.open_blob("app", Descriptor(Digest.of(b"never"), 5), work())
    bundle.close()


def test_referrers_are_found_by_their_subject(path: Path) -> None:
    graph = Graph("referrers")
    subject = graph.image("v1")
    referrer = graph.referrer(subject)
    export(path, graph)
    bundle = opened(path)
    found = list(bundle.referrers("app", Digest(subject.digest), work()))
    assert [referrer.digest] == [one.digest for one in found]
    assert [] == list(bundle.referrers("app", Digest(referrer.digest), work()))
    bundle.close()


def test_a_missing_file_has_no_repositories(path: Path) -> None:
    bundle = opened(path)
    with pytest.raises(NotFound):
        bundle.tags("app", work())
    assert [NotFound] == [type(one) for one in bundle.resolve("app", ["v1"], work())]
    assert not bundle.has_blob("app", Descriptor(Digest.of(b""), 0), work())
    bundle.close()


def test_a_bundle_written_by_another_tool_is_read_by_its_index(path: Path, tmp_path: Path) -> None:
    graph = stock()
    export(path, graph)
    foreign = tmp_path / "foreign.tar"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = ["skopeo", "copy", "-q", "--all", "--preserve-digests", f"oci-archive:{path}:app:v1"]
    subprocess.run([*command, f"oci-archive:{foreign}:v1"], check=True, env=environment)
    bundle = BundleStore(foreign, str(foreign), spool=tmp_path, adopts=["whatever"])
    assert ["v1"] == list(bundle.tags("whatever", work()))
    found = bundle.manifest("whatever", "v1", work())
    assert graph.tags["v1"] == found.digest
    assert bundle.partial  # without an inventory it is not known to be complete
    assert not any(bundle.omits_blob(blob) for coming in comings(graph, references=["v1"]) for blob in coming.blobs)
    bundle.close()


def test_a_pipe_is_read_to_its_end_before_it_is_used(path: Path, tmp_path: Path) -> None:
    graph = stock()
    export(path, graph)
    fifo = tmp_path / "pipe.tar"
    os.mkfifo(fifo)
    data = path.read_bytes()
    for cut in (len(data), len(data) - 1):
        writer = threading.Thread(target=fifo.write_bytes, args=(data[:cut],), name="writer")
        writer.start()
        bundle = BundleStore(fifo, "pipe", spool=tmp_path / "spool")
        if cut == len(data):
            assert sorted(graph.tags) == sorted(map(str, bundle.tags("app", work())))
            assert graph.blobs == {digest: read(bundle, digest) for digest in graph.blobs}
        else:
            with pytest.raises(Refused) as caught:
                bundle.tags("app", work())
            assert "bundle_incomplete" == caught.value.code
        bundle.close()
        writer.join(60)
    assert [] == listing(tmp_path / "spool")


def test_a_blob_that_is_not_a_manifest_is_refused_as_one(path: Path) -> None:
    graph = stock()
    export(path, graph)
    root = graph.tags["v2"]
    with tarfile.open(path) as tar:
        place = tar.getmember(f"blobs/sha256/{root[7:]}").offset_data
    with path.open("r+b") as file:
        file.seek(place + 5)
        file.write(b"?")
    bundle = opened(path)
    with pytest.raises(Refused) as caught:
        bundle.manifest("app", "v2", work())
    assert "digest_mismatch" == caught.value.code
    assert isinstance(bundle.manifest("app", "v1", work()), Manifest)
    bundle.close()


def test_an_output_pipe_that_gets_only_a_part_of_the_file_is_an_error(path: Path) -> None:
    """A read error of the disk looks like an end of the file: the bundle is then incomplete, and is kept."""
    writer = BundleWriter(path, Inventory(), [])
    writer.prepare(None, work())
    os.truncate(writer.partial_path, writer.tar_map.total - 1)
    reading, writing = os.pipe()
    try:
        with pytest.raises(LocalError, match=f"of {writer.tar_map.total} bytes"):
            writer.write_to_pipe(writing, work())
        assert writer.partial_path.exists()
    finally:
        os.close(reading)
        os.close(writing)
        writer.close()
