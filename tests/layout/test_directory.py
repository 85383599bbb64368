"""Layouts in directories: which are refused for reading, and what is guaranteed while one is written."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirror.errors import Cancelled, LocalError, LockBusy, MirrorError, NotFound, Refused
from mirror.layout.directory import LayoutStore
from mirror.layout.files import LayoutFiles
from mirror.layout.index_file import PUBLISH_EVERY
from mirror.layout.inventory import REF_NAME
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import parse_manifest
from mirror.store import Version
from mirror.util.cancellation import Stop, Work
from tests.support.bundles import Bytes, manifests_of
from tests.support.images import Graph
from tests.support.layouts import bring, lay
from tests.support.oracle import skopeo

WORK = Work(Stop())


@contextmanager
def opened(path: Path, **options: Any) -> Iterator[LayoutStore]:
    store = LayoutStore(path, **options)
    try:
        yield store
    finally:
        store.close()


@pytest.fixture
def graph() -> Graph:
    graph = Graph("layout")
    graph.platforms("v1", "latest")
    graph.image("v2", oci=False)
    return graph


@pytest.fixture
def layout(tmp_path: Path, graph: Graph) -> Path:
    return lay(tmp_path / "layout", app=graph)


def index_of(layout: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((layout / "index.json").read_text())
    return document


def edit(layout: Path, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the entries of index.json."""
    document = index_of(layout)
    change(document["manifests"])
    (layout / "index.json").write_text(json.dumps(document))


def named(layout: Path) -> set[str]:
    return {entry["annotations"][REF_NAME] for entry in index_of(layout)["manifests"]}


def file_of(layout: Path, digest: str) -> Path:
    return layout / "blobs" / digest.replace(":", "/")


def read_all(layout: Path, graph: Graph) -> None:
    """Read everything that the layout has in the repository `app`. Raises the layout's errors."""
    with opened(layout) as store:
        for name in store.tags("app", WORK):
            if isinstance(name, MirrorError):
                raise name
        for found in store.resolve("app", list(graph.tags), WORK):
            if isinstance(found, MirrorError):
                raise found
        for digest in (*graph.tags.values(), *graph.manifests):
            store.manifest("app", digest, WORK)
        for digest, data in graph.blobs.items():
            with store.open_blob("app", Descriptor(Digest(digest), len(data)), WORK) as reader:
                buffer = memoryview(bytearray(1 << 16))
                while reader.readinto(buffer):
                    pass


def refusal(layout: Path, graph: Graph) -> MirrorError:
    with pytest.raises(MirrorError) as caught:
        read_all(layout, graph)
    assert 3 == caught.value.exit_code
    return caught.value


# ---- LAY-01, LAY-02, LAY-03: what is no layout


def names_in(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def _empty(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir()


def _file(path: Path) -> None:
    shutil.rmtree(path)
    path.write_text("no directory")


def _replaced(name: str, data: bytes | str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        (path / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def _large(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with (path / name).open("wb") as file:
            file.truncate(1 << 30)

    return change


NO_LAYOUT: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (shutil.rmtree, "no oci-layout file found"),
    "empty": (_empty, "no oci-layout file found"),
    "file": (_file, "no oci-layout file found"),
    "no-version-file": (lambda path: (path / "oci-layout").unlink(), "no oci-layout file found"),
    "empty-version": (_replaced("oci-layout", ""), "oci-layout"),
    "version-not-json": (_replaced("oci-layout", "1.0.0"), "oci-layout"),
    "version-2": (_replaced("oci-layout", '{"imageLayoutVersion": "2.0.0"}'), "2.0.0"),
    "version-10": (_replaced("oci-layout", '{"imageLayoutVersion": "10.0.0"}'), "10.0.0"),
    "version-a-number": (_replaced("oci-layout", '{"imageLayoutVersion": 1}'), "imageLayoutVersion"),
    "version-large": (_large("oci-layout"), "oci-layout"),
    "no-index": (lambda path: (path / "index.json").unlink(), "index.json is missing"),
    "index-empty-object": (_replaced("index.json", "{}"), "index.json"),
    "index-empty": (_replaced("index.json", ""), "index.json"),
    "index-cut": (_replaced("index.json", '{"schemaVersion":2,"manifests":[{"medi'), "index.json"),
    "index-large": (_large("index.json"), "index.json"),
    "index-twice-a-key": (_replaced("index.json", '{"schemaVersion":2,"manifests":[],"manifests":[]}'), "duplicate"),
    "index-is-an-image": (
        _replaced("index.json", '{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}'),
        "an image",
    ),
    "index-list": (_replaced("index.json", "[]"), "index.json"),
    "index-manifests-no-list": (_replaced("index.json", '{"schemaVersion":2,"manifests":{}}'), "index.json"),
    "index-version": (_replaced("index.json", '{"schemaVersion":1,"manifests":[]}'), "index.json"),
    "index-deep": (_replaced("index.json", "[" * 100_000), "index.json"),
}


@pytest.mark.parametrize("case", NO_LAYOUT)
def test_a_directory_that_is_not_a_layout_is_refused(layout: Path, graph: Graph, case: str) -> None:
    spoil, words = NO_LAYOUT[case]
    spoil(layout)
    error = refusal(layout, graph)
    assert "bundle_invalid" == error.code
    assert words in str(error)


@pytest.mark.parametrize("text", ['{"imageLayoutVersion": "1.0.0", "more": []}', '{"imageLayoutVersion": "1.1.0"}'])
def test_any_version_1_of_the_layout_is_read(layout: Path, graph: Graph, text: str) -> None:
    (layout / "oci-layout").write_text(text)
    read_all(layout, graph)


# ---- LAY-04: names


def _named_as(name: object) -> Callable[[list[dict[str, Any]]], object]:
    return lambda entries: entries.append({**entries[0], "annotations": {REF_NAME: name}})


@pytest.mark.parametrize(
    "name", ["../../x", "latest\n", "a b", "", ":v1", "App:v1", "app:.v1", "a" * 5000, 7, None, "é"]
)
def test_an_invalid_name_is_an_error_in_the_list_of_tags(layout: Path, graph: Graph, name: object) -> None:
    edit(layout, _named_as(name))
    with opened(layout) as store:
        found = list(store.tags("app", WORK))
    errors = [one for one in found if isinstance(one, MirrorError)]
    assert sorted(graph.tags) == sorted(str(one) for one in found if not isinstance(one, MirrorError))
    if name is None:
        assert [] == errors, "that is an entry without a name"
    else:
        assert [3] == [error.exit_code for error in errors]
        assert "\n" not in str(errors[0])


def test_a_name_that_occurs_twice_is_ambiguous(layout: Path, graph: Graph) -> None:
    def twice(entries: list[dict[str, Any]]) -> None:
        other = next(one for one in entries if one["annotations"][REF_NAME] == "app:v2")
        entries.append({**other, "annotations": {REF_NAME: "app:v1"}})

    edit(layout, twice)
    with opened(layout) as store:
        found = list(store.tags("app", WORK))
        (resolved,) = store.resolve("app", ["v1"], WORK)
        assert isinstance(resolved, Refused)
        with pytest.raises(Refused) as caught:
            store.manifest("app", "v1", WORK)
        assert {"latest", "v2"} == {one for one in found if isinstance(one, str)}, "the others can be read"
        assert isinstance(next(iter(store.resolve("app", ["v2"], WORK))), Version)
    assert "bundle_invalid" == caught.value.code
    assert "several entries" in str(caught.value)


def test_a_root_without_a_name_is_read_by_its_digest(layout: Path, graph: Graph) -> None:
    edit(layout, lambda entries: [entry.pop("annotations") for entry in entries])
    with opened(layout) as store:
        with pytest.raises(NotFound):
            list(store.tags("app", WORK))
        digest = graph.tags["v1"]
        assert digest == store.read("app", digest, WORK).digest


def test_names_without_a_repository_belong_to_the_adopting_repository(tmp_path: Path) -> None:
    graph = Graph("bare")
    graph.image("v1")
    layout = lay(tmp_path / "layout", lib=graph)
    edit(layout, _named_as("v1"))
    edit(layout, _named_as("v2"))
    with opened(layout, adopts=["app", "lib"]) as store:
        assert ["v1", "v2"] == list(store.tags("app", WORK))
        assert ["v1", "v2"] == list(store.tags("lib", WORK)), "its own v1 comes first"
        assert ["lib"] == list(store.repositories("", WORK))
    with opened(layout) as store:
        assert ["v1"] == list(store.tags("lib", WORK))
        with pytest.raises(NotFound) as caught:
            list(store.tags("app", WORK))
        assert "existing repositories: lib; some tags have no repository name" == caught.value.hint


def test_an_empty_repository_name_means_the_only_repository(layout: Path, graph: Graph, tmp_path: Path) -> None:
    with opened(layout, adopts=[""]) as store:
        assert sorted(graph.tags) == list(store.tags("", WORK))
        assert graph.tags["v1"] == store.read("", "v1", WORK).digest
    several = lay(tmp_path / "several", app=graph, lib=graph)
    with opened(several, adopts=[""]) as store, pytest.raises(NotFound) as caught:
        list(store.tags("", WORK))
    assert "existing repositories: app, lib" == caught.value.hint


@pytest.mark.parametrize("name", ["localhost:5000/app:v1", "docker.io/library/alpine@" + Digest.of(b""), "h.example/a"])
def test_names_of_other_forms_are_preserved(layout: Path, graph: Graph, name: str) -> None:
    edit(layout, _named_as(name))
    read_all(layout, graph)
    with opened(layout, new=True) as store:
        bring(store, graph, "lib")
        store.finish(whole=True, work=WORK)
    assert name in named(layout), "and kept when the index is written again"


def test_an_invalid_entry_does_not_hide_the_others(layout: Path, graph: Graph) -> None:
    bad: list[Any] = [
        7,
        {},
        {"mediaType": "x", "digest": "sha256:short", "size": 1},
        {"digest": Digest.of(b""), "size": -1},
    ]
    edit(layout, lambda entries: entries.extend(bad))
    with opened(layout) as store:
        found = list(store.tags("app", WORK))
    assert len(bad) == sum(isinstance(one, Refused) for one in found)
    assert set(graph.tags) == {one for one in found if isinstance(one, str)}


# ---- LAY-05, LAY-06, LAY-07: blobs that are missing or wrong


def test_a_missing_blob_is_reported_as_a_damaged_layout(layout: Path, graph: Graph) -> None:
    digest = next(iter(graph.blobs))
    file_of(layout, digest).unlink()
    assert "bundle_incomplete" == refusal(layout, graph).code
    with opened(layout) as store, pytest.raises(NotFound) as caught:
        store.open_blob("app", Descriptor(Digest(digest), None), WORK)
    assert digest in str(caught.value)


def test_a_missing_root_is_reported_as_a_damaged_layout(layout: Path, graph: Graph) -> None:
    file_of(layout, graph.tags["v1"]).unlink()
    with opened(layout) as store:
        (found,) = store.resolve("app", ["v1"], WORK)
        assert isinstance(found, NotFound)
        assert ("bundle_incomplete", 3) == (found.code, found.exit_code)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"!", lambda data: b""])
def test_a_file_of_a_wrong_size_is_named(layout: Path, graph: Graph, change: Callable[[bytes], bytes]) -> None:
    for digest in (next(iter(graph.blobs)), graph.tags["v1"]):
        kept = file_of(layout, digest).read_bytes()
        file_of(layout, digest).write_bytes(change(kept))
        error = refusal(layout, graph)
        assert error.code in ("size_mismatch", "digest_mismatch")
        assert Digest(digest).hex in str(error)
        file_of(layout, digest).write_bytes(kept)
    read_all(layout, graph)


def test_a_manifest_with_wrong_bytes_is_refused(layout: Path, graph: Graph) -> None:
    file = file_of(layout, graph.tags["v1"])
    file.write_bytes(file.read_bytes().replace(b"linux", b"minix"))
    assert "digest_mismatch" == refusal(layout, graph).code


def test_a_manifest_that_differs_from_its_index_entry_is_refused(layout: Path, graph: Graph) -> None:
    edit(
        layout,
        lambda entries: [entry.update(mediaType="application/vnd.oci.image.manifest.v1+json") for entry in entries],
    )
    with opened(layout) as store, pytest.raises(Refused) as caught:
        store.manifest("app", "v1", WORK)
    assert "type_mismatch" == caught.value.code


@pytest.mark.parametrize("rename", [str.upper, lambda name: name + ".gz", lambda name: name[:-1]])
def test_a_blob_under_another_file_name_does_not_exist(
    layout: Path, graph: Graph, rename: Callable[[str], str]
) -> None:
    file = file_of(layout, next(iter(graph.blobs)))
    file.rename(file.with_name(rename(file.name)))
    assert "bundle_incomplete" == refusal(layout, graph).code


# ---- LAY-08: what is no plain file

ODD: dict[str, Callable[[Path, Path], object]] = {
    "link-inside": lambda path, kept: path.symlink_to(kept),
    "link-outside": lambda path, kept: path.symlink_to(shutil.move(kept, kept.parent.parent / "outside")),
    "link-dangling": lambda path, kept: path.symlink_to("nowhere"),
    "link-loop": lambda path, kept: path.symlink_to(path.name),
    "hard-link": lambda path, kept: path.hardlink_to(kept) if kept.is_file() else path.symlink_to(kept),
    "fifo": lambda path, kept: os.mkfifo(path),
    "socket": lambda path, kept: _bind(path),
    "device": lambda path, kept: path.symlink_to("/dev/zero"),
    "directory-or-file": lambda path, kept: path.mkdir() if kept.is_file() else path.write_text("x"),
}


def _bind(path: Path) -> None:
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir("/")


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "blob", "manifest", "index.json", "oci-layout"])
def test_special_files_and_links_are_not_read(layout: Path, graph: Graph, name: str, odd: str) -> None:
    places = {"blob": file_of(layout, next(iter(graph.blobs))), "manifest": file_of(layout, graph.tags["v1"])}
    path = places.get(name, layout / name)
    kept = path.rename(layout / "kept")
    ODD[odd](path, kept)
    assert "unsafe_path" == refusal(layout, graph).code
    with opened(layout, new=True) as store, pytest.raises(Refused) as caught:
        for digest, data in graph.blobs.items():
            store.has_blob("app", Descriptor(Digest(digest), len(data)), WORK)
        bring(store, graph, "app")
    assert "unsafe_path" == caught.value.code, "nor written to"


def test_a_symbolic_link_to_the_layout_itself_is_followed(layout: Path, graph: Graph) -> None:
    link = layout.parent / "link"
    link.symlink_to(layout)
    read_all(link, graph)


# ---- LAY-09 to LAY-12


def test_a_blob_that_is_replaced_during_a_read_is_read_to_its_end(layout: Path, graph: Graph) -> None:
    digest, data = next((digest, data) for digest, data in graph.blobs.items() if len(data) > 1000)
    with opened(layout) as store, store.open_blob("app", Descriptor(Digest(digest), len(data)), WORK) as reader:
        buffer = memoryview(bytearray(len(data)))
        assert 100 == reader.readinto(buffer[:100])
        file_of(layout, digest).unlink()
        file_of(layout, digest).write_bytes(b"other")
        assert len(data) - 100 == reader.readinto(buffer[100:])
        assert data == buffer


def test_a_blob_that_is_truncated_during_a_read_is_refused(layout: Path, graph: Graph) -> None:
    digest, data = next((digest, data) for digest, data in graph.blobs.items() if len(data) > 1000)
    with opened(layout) as store, store.open_blob("app", Descriptor(Digest(digest), len(data)), WORK) as reader:
        buffer = memoryview(bytearray(len(data)))
        reader.readinto(buffer[:100])
        os.truncate(file_of(layout, digest), 100)
        with pytest.raises(Refused) as caught:
            reader.readinto(buffer[100:])
    assert "size_mismatch" == caught.value.code


def test_files_that_are_not_part_of_a_layout_are_ignored(layout: Path, graph: Graph) -> None:
    (layout / "manifest.json").write_text("[]")
    (layout / ".DS_Store").write_bytes(b"\0")
    (layout / "lost+found").mkdir()
    (layout / "blobs" / "md5").mkdir()
    file_of(layout, Digest.of(b"nobody names me")).write_bytes(b"nobody names me")
    read_all(layout, graph)


@pytest.mark.parametrize("tool", ["skopeo", "umoci"])
def test_layouts_written_by_other_tools_are_read(tmp_path: Path, graph: Graph, tool: str) -> None:
    graph.image("single")
    ours, theirs = lay(tmp_path / "ours", app=graph), tmp_path / "theirs"
    wanted = "single" if tool == "umoci" else "v1"  # umoci does not support indexes
    skopeo("copy", "--all", f"oci:{ours}:app:{wanted}", f"oci:{theirs}:v1")
    if tool == "umoci":
        run = subprocess.run(["umoci", "tag", "--image", f"{theirs}:v1", "again"], check=False, capture_output=True)
        assert 0 == run.returncode, run.stderr
    with opened(theirs, adopts=["app"]) as store:
        assert (["again", "v1"] if tool == "umoci" else ["v1"]) == list(store.tags("app", WORK))
        root = store.manifest("app", "v1", WORK)
        assert graph.manifests[graph.tags[wanted]].data == root.body
        for one in [store.manifest("app", child.digest, WORK) for child in root.children] or [root]:
            for blob in one.blobs:
                with store.open_blob("app", blob, WORK) as reader:
                    assert blob.size == reader.size


@pytest.mark.parametrize("name", ["with spaces", "line\nend", "ümläut", os.fsdecode(b"\xff\xfe"), "a:b"])
def test_a_layout_may_have_any_path(tmp_path: Path, graph: Graph, name: str) -> None:
    read_all(lay(tmp_path / name, app=graph), graph)


# ---- what other tools read


def test_other_tools_read_our_layouts(layout: Path, graph: Graph, tmp_path: Path) -> None:
    skopeo("copy", "--all", f"oci:{layout}:app:v1", f"dir:{tmp_path / 'copied'}")
    assert graph.manifests[graph.tags["v1"]].data == (tmp_path / "copied" / "manifest.json").read_bytes()
    run = subprocess.run(["umoci", "list", "--layout", str(layout)], capture_output=True, text=True, check=True)
    assert {"app:v1", "app:latest"} <= set(run.stdout.split())


def test_equal_content_gives_an_equal_index(tmp_path: Path, graph: Graph) -> None:
    one, other = lay(tmp_path / "one", app=graph, lib=graph), lay(tmp_path / "other", lib=graph, app=graph)
    assert (one / "index.json").read_bytes() == (other / "index.json").read_bytes()


def test_child_manifests_are_not_roots_and_referrers_are(tmp_path: Path) -> None:
    graph = Graph("roots")
    index = graph.platforms("v1")
    about = graph.artifact(subject=index)
    entries = index_of(lay(tmp_path / "layout", team__app=graph))["manifests"]
    assert [(index.digest, {REF_NAME: "team/app:v1"}), (about.digest, {"mirror.repository": "team/app"})] == [
        (entry["digest"], entry["annotations"]) for entry in entries
    ]


@pytest.mark.parametrize("doing", ["put", "delete"])
def test_referrers_read_during_a_change_do_not_hide_the_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, doing: str
) -> None:
    graph = Graph("raced")
    about = graph.referrer(graph.image("v1"), "sbom")
    one = manifests_of(graph)[about.digest]
    assert one.subject is not None
    subject = one.subject.digest
    with opened(lay(tmp_path / "layout", app=graph), new=True) as store:
        change = store._index_file.change

        def asked_meanwhile(*args: Any) -> None:
            list(store.referrers("app", subject, WORK))
            change(*args)

        def referrers() -> list[Digest]:
            return [one.digest for one in store.referrers("app", subject, WORK)]

        store.begin((), WORK)
        for name in (one.digest, *(tag for tag in graph.tags if tag != "v1")):
            store.delete("app", name, WORK)
        if doing == "delete":
            store.put_manifest("app", one.digest, one, WORK)
        monkeypatch.setattr(store._index_file, "change", asked_meanwhile)
        if doing == "delete":
            store.delete("app", one.digest, WORK)
            assert [] == referrers()
        else:
            store.put_manifest("app", one.digest, one, WORK)
            assert [one.digest] == referrers()


def test_a_referrer_written_by_another_process_during_a_read_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph, path = Graph("raced"), tmp_path / "layout"
    image = graph.image("v1")
    lay(path, app=graph)
    about = graph.referrer(image, "sbom")
    with opened(path) as store:
        look, left = store._index_file.query, [None]

        def changed_after(question: Any) -> Any:
            found = look(question)
            if left:
                left.clear()
                lay(path, app=graph)
                look(lambda index: None)  # another thread reads the new index at once
            return found

        monkeypatch.setattr(store._index_file, "query", changed_after)
        list(store.referrers("app", Digest(image.digest), WORK))
        assert [about.digest] == [one.digest for one in store.referrers("app", Digest(image.digest), WORK)]


def test_referrers_belong_to_their_repository(tmp_path: Path) -> None:
    graph, bare = Graph("signed"), Graph("signed")
    index = graph.platforms("v1")
    about = graph.artifact(subject=index)
    bare.platforms("v1")
    with opened(lay(tmp_path / "layout", app=graph, lib=bare)) as store:
        assert [about.digest] == [one.digest for one in store.referrers("app", Digest(index.digest), WORK)]
        assert [] == list(store.referrers("lib", Digest(index.digest), WORK))
        assert [] == list(store.referrers("", Digest(index.digest), WORK))
    with opened(lay(tmp_path / "other", app=graph), adopts=[""]) as store:
        assert [about.digest] == [one.digest for one in store.referrers("", Digest(index.digest), WORK)]


# ---- LAY-13, LAY-14: writing into what is there


@pytest.mark.parametrize("name", ["notes.txt", "index.json", "blobs"])
def test_a_target_directory_with_other_files_is_refused(tmp_path: Path, graph: Graph, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text("mine")
    with opened(tmp_path / "mine", new=True) as store:
        for attempt in (lambda: store.begin((), WORK), lambda: list(store.tags("app", WORK))):
            with pytest.raises(LocalError) as caught:
                attempt()
            assert 4 == caught.value.exit_code
            assert "oci-layout" in str(caught.value)
    assert {name} == names_in(tmp_path / "mine")


def test_a_new_layout_is_created_with_its_parent_directories(tmp_path: Path, graph: Graph) -> None:
    read_all(lay(tmp_path / "a" / "b" / "c", app=graph), graph)


def test_a_new_layout_is_empty_before_the_first_write(tmp_path: Path) -> None:
    with opened(tmp_path / "none", new=True) as store:
        with pytest.raises(NotFound):
            list(store.tags("app", WORK))
        assert isinstance(next(iter(store.resolve("app", ["v1"], WORK))), NotFound)
        assert not store.has_blob("app", Descriptor(Digest.of(b""), 0), WORK)
    assert not (tmp_path / "none").exists()


def test_existing_content_of_a_layout_is_preserved(tmp_path: Path, graph: Graph) -> None:
    ours, layout = lay(tmp_path / "ours", app=graph), tmp_path / "layout"
    skopeo("copy", "--all", f"oci:{ours}:app:v1", f"oci:{layout}:theirs")
    before = index_of(layout)
    before["annotations"] = {"their": "own"}
    before["manifests"][0]["platform"] = {"os": "linux", "architecture": "amd64"}
    (layout / "index.json").write_text(json.dumps(before))
    other = Graph("other")
    other.image("v1")
    lay(layout, lib=other)
    after = index_of(layout)
    assert before["annotations"] == after["annotations"]
    assert before["manifests"][0] in after["manifests"]
    assert {"theirs", "lib:v1"} == named(layout)


def test_a_second_writer_gets_lock_busy(layout: Path, graph: Graph) -> None:
    with opened(layout, new=True) as first, opened(layout, new=True) as second:
        first.begin((), WORK)
        with pytest.raises(LockBusy) as caught:
            second.begin((), WORK)
        assert 75 == caught.value.exit_code
        read_all(layout, graph)
    with opened(layout, new=True) as third:
        third.begin((), WORK)


def test_a_reader_sees_the_changes_of_another_process(layout: Path) -> None:
    with opened(layout) as reader:
        assert ["latest", "v1", "v2"] == list(reader.tags("app", WORK))
        more = Graph("more")
        more.image("v3")
        lay(layout, app=more)
        assert ["latest", "v1", "v2", "v3"] == list(reader.tags("app", WORK))
        assert more.tags["v3"] == reader.read("app", "v3", WORK).digest


def test_a_schema_1_image_is_refused(tmp_path: Path) -> None:
    graph = Graph("old")
    graph.schema1("v1")
    with opened(tmp_path / "layout", new=True) as store, pytest.raises(MirrorError) as caught:
        store.put_manifest("app", "v1", next(iter(manifests_of(graph).values())), WORK)
    assert "schema1: convert" in caught.value.hint


def test_a_tag_is_deleted_and_a_digest_with_all_its_tags(layout: Path, graph: Graph) -> None:
    with opened(layout, new=True) as store:
        store.delete("app", "v2", WORK)
        store.delete("app", "v2", WORK)
        assert ["latest", "v1"] == list(store.tags("app", WORK))
        store.delete("app", graph.tags["v1"], WORK)
        with pytest.raises(NotFound):
            list(store.tags("app", WORK))
        store.finish(whole=True, work=WORK)
    assert [] == index_of(layout)["manifests"]


def test_a_damaged_manifest_is_written_again(layout: Path, graph: Graph) -> None:
    file = file_of(layout, graph.tags["v2"])
    good = file.read_bytes()
    file.write_bytes(b"?" * len(good))
    with opened(layout, new=True) as store:
        store.put_manifest("app", "v2", parse_manifest(good), WORK)
    assert good == file.read_bytes()


# ---- index.json is replaced seldom, and whole


def test_the_index_is_replaced_at_most_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    graph = Graph("many")
    made = graph.image(*(f"v{number}" for number in range(300)))
    seen: set[int] = set()
    with opened(layout, new=True) as store:
        for digest, data in graph.blobs.items():
            with store.begin_upload("app", Descriptor(Digest(digest), len(data)), WORK) as session:
                session.send(lambda offset, data=data: Bytes(data[offset:]), WORK)  # type: ignore[misc]
        manifest = manifests_of(graph)[made.digest]
        for tag in graph.tags:
            store.put_manifest("app", tag, manifest, WORK)
            seen.add((layout / "index.json").stat().st_ino)
            assert graph.tags[tag] == store.read("app", tag, WORK).digest
        store.finish(whole=True, work=WORK)
    assert PUBLISH_EVERY == 1.0
    assert 3 >= len(seen)
    assert 300 == len(index_of(layout)["manifests"])
    assert {"blobs", "index.json", "oci-layout"} == names_in(layout)


def test_many_threads_write_to_one_layout(tmp_path: Path) -> None:
    graphs = [Graph(f"thread {number}") for number in range(8)]
    for graph in graphs:
        graph.platforms("v1", "v2")
    layout = tmp_path / "layout"
    with opened(layout, new=True) as store:
        threads = [threading.Thread(target=bring, args=(store, graph, f"app-{n}")) for n, graph in enumerate(graphs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        store.finish(whole=True, work=WORK)
    with opened(layout) as store:
        for number, graph in enumerate(graphs):
            assert ["v1", "v2"] == list(store.tags(f"app-{number}", WORK))
            assert graph.tags["v1"] == store.read(f"app-{number}", "v1", WORK).digest


def test_a_stopped_upload_leaves_nothing(tmp_path: Path) -> None:
    layout, stop = tmp_path / "layout", Stop()
    data = b"x" * 100_000
    with opened(layout, new=True) as store:
        store.begin((), WORK)

        def body(offset: int) -> Bytes:
            stop.request("enough")
            return Bytes(data)

        with (
            pytest.raises(Cancelled),
            store.begin_upload("app", Descriptor(Digest.of(data), len(data)), WORK) as session,
        ):
            session.send(body, Work(stop))
    assert {"blobs", "index.json", "oci-layout"} == names_in(layout)
    assert set() == names_in(layout / "blobs" / "sha256")


def test_temporary_files_of_a_killed_run_are_removed(layout: Path, graph: Graph) -> None:
    left = layout / f".{'a' * 64}.0123456789abcdef.tmp"
    left.write_bytes(b"half")
    with opened(layout, new=True) as store:
        store.begin((), WORK)
    assert not left.exists()
    read_all(layout, graph)


def test_a_run_that_was_killed_before_writing_the_index_resumes(tmp_path: Path, graph: Graph) -> None:
    layout = tmp_path / "layout"
    layout.mkdir()
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    read_all(lay(layout, app=graph), graph)


def test_concurrent_listings_of_a_directory_are_complete(layout: Path) -> None:
    """Otherwise an existing layout would look as if it had to be created."""
    with closing(LayoutFiles(layout)) as folder, ThreadPoolExecutor(8) as pool:
        seen = set(pool.map(lambda _: tuple(sorted(folder.list_names() or ())), range(2000)))
    assert {("blobs", "index.json", "oci-layout")} == seen


def test_a_blob_can_be_read_while_it_is_written_again(layout: Path, graph: Graph) -> None:
    """The open file of a reader may have no name any more; that is not a hard link."""
    digest, data = next(iter(graph.blobs.items()))
    blob = Descriptor(Digest.parse(digest), len(data))
    with closing(LayoutFiles(layout)) as folder, ThreadPoolExecutor(2) as pool:

        def write() -> None:
            for _ in range(300):
                with folder.write_blob(blob.digest) as file:
                    file.write(data)

        has_lock = pool.submit(write)
        read = {data}
        while not has_lock.done():
            read.add(folder.read_blob(blob.digest, len(data)) or b"")
        has_lock.result()
    assert {data} == read


def test_a_slow_read_does_not_hide_changes_that_another_process_made_before_the_lock_was_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph: Graph
) -> None:
    path = lay(tmp_path / "layout", app=graph)
    with opened(path, new=True) as store:
        ledger = store._index_file
        load, begin = ledger._load, ledger._begin
        loading, begun = threading.Event(), threading.Event()

        def slowly() -> Any:
            found = load()
            loading.set()
            assert begun.wait(60)
            return found

        def and_read(work: Work) -> bool:
            monkeypatch.setattr(ledger, "_load", load)
            done = begin(work)
            begun.set()
            assert ["latest", "v1", "v2"] == reading.result(10)
            return done

        monkeypatch.setattr(ledger, "_load", slowly)
        monkeypatch.setattr(ledger._begin_once, "_factory", and_read)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(lambda: list(store.tags("app", WORK)))
            assert loading.wait(60)
            lay(path, lib=graph)  # another process
            store.begin((), WORK)
        store.delete("app", "latest", WORK)
        store.finish(whole=True, work=WORK)
    assert {"app:v1", "app:v2", "lib:v1", "lib:v2", "lib:latest"} == named(path)
