"""Targets that gather, and sources that are partial."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from mirror.commands.options import ReferenceFilter
from mirror.errors import LocalError, MirrorError, NotFound
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, parse_manifest
from mirror.oci.reference import Repository
from mirror.selection.tag_rules import TagRules
from mirror.store import ExpectedImage
from mirror.sync.copy_queue import CopyQueue
from mirror.sync.image_copier import ImageCopier
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, PlanEntry, TargetEntry
from mirror.sync.planner import Planner
from mirror.sync.recorder import BlobCounts
from mirror.sync.target_lifecycle import TargetLifecycle
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import BlobLocations, Routes
from mirror.transfer.blob_outcomes import BlobRecorder
from mirror.transfer.calls import Calls, new_loop
from mirror.transfer.spool import Spool
from mirror.util.cancellation import Stop, Work
from tests.support.stores import MemoryStore
from tests.sync.test_planner import Memory


class Gathering(MemoryStore):
    """Must know all that comes; shows what it holds when it is finished whole."""

    needs_all_images = True
    on_disk = True
    begun: tuple[ExpectedImage, ...] | None = None
    finished: bool | None = None
    broken: MirrorError | None = None

    missing: Collection[str] = ()
    there = False  # before the run

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        if not self.there:
            raise NotFound(f"{self.host} does not exist")
        return super().repositories(prefix, work)

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        assert self.begun is None or self.finished is False, "once, or again with what is whole"
        self.missing, self.finished = missing, None
        assert self.begun is not None or not self.verbs("put") + self.verbs("send"), "before the first write"
        self.begun = tuple(images)

    def finish(self, *, whole: bool, work: Work) -> None:
        assert self.finished is None, "once"
        self.finished = whole
        if self.broken:
            raise self.broken


class Partial(MemoryStore):
    """Has left out what `base` names."""

    partial = True
    base: frozenset[Digest] = frozenset()

    def leaves_out(self, blob: Descriptor) -> bool:
        return blob.digest in self.base


@dataclass
class Notes(Memory):
    """Implements everybody's Memory."""

    def note_tag(self, side: str, repository: str, tag: str, digest: Digest | None) -> None:
        if digest is not None:
            self.tags[repository, tag] = digest
        else:
            self.tags.pop((repository, tag), None)

    def withdraw_tag(self, repository: str, tag: str, *, noted: bool) -> None:
        self.tags.pop((repository, tag), None)

    def note_graph(self, repository: str, root: Digest, members: object) -> None:
        pass

    def note_transform_digest(self, identity: str, digest: Digest) -> None:
        pass

    def was_held(self, repository: str, digest: Digest) -> bool:
        return False

    def holders(self, host: str, digest: Digest) -> list[str]:
        return []

    def forget(self, repository: str) -> None:
        pass


@dataclass
class Told:
    """Implements sync's Results."""

    results: dict[str, str] = field(default_factory=dict)
    errors: dict[str, MirrorError] = field(default_factory=dict)
    troubles: list[MirrorError] = field(default_factory=list)

    def _tell(self, plan_entry: PlanEntry, result: str) -> None:
        assert plan_entry.name not in self.results, "each once"
        self.results[plan_entry.name] = result

    def record_up_to_date(self, plan_entry: PlanEntry, digest: Digest) -> None:
        self._tell(plan_entry, "up-to-date")

    def record_copied(self, plan_entry: PlanEntry, digest: Digest, tally: BlobCounts) -> None:
        self._tell(plan_entry, "copied")

    def record_failure(self, plan_entry: PlanEntry, error: MirrorError, tally: BlobCounts) -> None:
        self._tell(plan_entry, "failed")
        self.errors[plan_entry.name] = error

    def record_skipped(self, plan_entry: PlanEntry, reason: str) -> None:
        self._tell(plan_entry, "skipped")

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        self.errors[entry.name] = error

    def expect_images(self, entry: MirrorEntry, count: int) -> None:
        pass

    def record_crash(self, plan_entry: PlanEntry, error: BaseException) -> None:
        raise AssertionError from error

    def record_error(self, error: MirrorError) -> None:
        self.troubles.append(error)

    def record_bug(self, error: BaseException) -> None:
        raise AssertionError from error


class World:
    def __init__(self, tmp_path: Path) -> None:
        self.source: MemoryStore = MemoryStore("source")
        self.target: MemoryStore = Gathering("/media/out.tar")
        self.tmp_path = tmp_path
        self.memory = Notes()

    def image(self, store: MemoryStore, tag: str, *layers: bytes, repository: str = "app") -> Digest:
        config = store.add(repository, f"config of {layers}".encode())
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/x", "digest": config.digest, "size": config.size},
            "layers": [
                {"mediaType": "application/x", "digest": made.digest, "size": made.size}
                for made in (store.add(repository, layer) for layer in layers)
            ],
        }
        made = parse_manifest(json.dumps(document).encode())
        store.manifests[repository][tag] = store.manifests[repository][made.digest] = made
        return made.digest

    def sync(self, *, deep: bool = False) -> Told:
        told = Told()
        host = self.target.host
        entry = MirrorEntry(self.source, "app", TagRules(), (TargetEntry(self.target, Repository(host, "copy")),))
        targets = {host: self.target}
        spool = Spool(self.tmp_path, None)
        spool.prepare()
        locations = BlobLocations(self.memory, {host: ["copy", "sibling"]})
        loop = new_loop()
        calls = Calls(loop, Limits(), Stop())
        try:
            recorder = BlobRecorder(lambda order, what, cost: None)
            blob_copier = BlobCopier(
                calls,
                locations,
                Routes([(self.source.host, host)], mounting={}, parallel={}),
                spool,
                recorder=recorder,
                moved=lambda count: None,
                before_write=lambda repository: None,
            )
            sync = ImageCopier(
                calls,
                blob_copier,
                locations,
                self.memory,
                targets,
                recorder,
                certain=deep,
                writing=lambda repository: None,
            )
            reader = ImageReader(calls, self.memory, ManifestCache(calls))
            agenda = CopyQueue(
                calls,
                reader,
                sync,
                locations,
                self.memory,
                told,
                targets,
                TargetLifecycle(calls, reader, targets),
                images=2,
                deep=deep,
                fail_fast=False,
            )
            planner = Planner(calls, self.memory, agenda, only=ReferenceFilter(None), parallel={})
            loop.run_until_complete(agenda.run(planner.plan_all([entry])))
        finally:
            calls.close()
        return told


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def gathering(world: World) -> Gathering:
    assert isinstance(world.target, Gathering)
    return world.target


def test_a_store_that_gathers_is_told_of_everything_before_the_first_byte(world: World) -> None:
    for number in range(5):
        world.image(world.source, f"v{number}", b"base", bytes([number]))
    told = world.sync()
    assert {"copied"} == set(told.results.values())
    begun = gathering(world).begun
    assert begun is not None
    assert {f"v{number}" for number in range(5)} == {one.reference for one in begun}
    assert all(one.manifests for one in begun)
    assert {3} == {len(one.blobs) for one in begun}
    assert gathering(world).finished is True


def test_nothing_is_begun_where_nothing_changed(world: World) -> None:
    digest = world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    assert {"/media/out.tar:copy:v1": "up-to-date"} == world.sync().results
    assert gathering(world).begun is None
    assert world.memory.tags["/media/out.tar:copy", "v1"] == digest


def test_where_one_image_changed_all_come_again(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    world.image(world.source, "v2", b"base", b"more")
    assert {"copied"} == set(world.sync().results.values())
    begun = gathering(world).begun
    assert begun is not None
    assert {"v1", "v2"} == {one.reference for one in begun}


def test_an_image_that_cannot_be_read_is_left_out_and_told(world: World) -> None:
    world.image(world.source, "v1", b"base")
    bad = world.image(world.source, "bad", b"other")
    world.source.fault = lambda verb, repository, reference: (
        MirrorError("gone") if verb == "manifest" and reference in ("bad", bad) else None
    )
    told = world.sync()
    assert {"/media/out.tar:copy:v1": "copied", "/media/out.tar:copy:bad": "failed"} == told.results
    assert (True, ["copy:bad"]) == (gathering(world).finished, list(gathering(world).missing))


def test_where_a_blob_does_not_come_the_rest_is_shown_and_says_that_it_is_incomplete(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    told = world.sync()
    assert {"/media/out.tar:copy:v1": "copied", "/media/out.tar:copy:bad": "failed"} == told.results
    begun = gathering(world).begun
    assert begun is not None
    assert ["v1"] == [one.reference for one in begun]
    assert (True, ["copy:bad"]) == (gathering(world).finished, list(gathering(world).missing))


def test_where_no_blob_comes_nothing_is_shown(world: World) -> None:
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    assert {"/media/out.tar:copy:bad": "failed"} == world.sync().results
    assert gathering(world).finished is False


def test_where_something_does_not_come_nothing_is_replaced_and_nothing_counts_as_copied(world: World) -> None:
    world.image(world.source, "v1", b"base")
    gathering(world).there = True
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    told = world.sync()
    assert {"failed"} == set(told.results.values())
    assert gathering(world).finished is False
    assert "/media/out.tar stays as it is" in str(told.errors["/media/out.tar:copy:v1"])


@pytest.mark.parametrize("partial", [False, True])
def test_what_a_store_that_is_not_replaced_has_already_is_up_to_date_unless_it_is_partial(
    world: World, partial: bool
) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    world.target.partial, gathering(world).there = partial, True
    told = world.sync()
    equal = "failed" if partial else "up-to-date"
    assert {"/media/out.tar:copy:v1": equal, "/media/out.tar:copy:bad": "failed"} == told.results


def test_an_incomplete_store_is_made_anew_once_it_can_be_complete(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    gathering(world).incomplete = True
    assert {"/media/out.tar:copy:v1": "copied"} == world.sync().results
    assert (True, []) == (gathering(world).finished, list(gathering(world).missing))


def test_a_store_that_cannot_be_finished_fails_all_that_it_was_to_hold(world: World) -> None:
    world.image(world.source, "v1", b"base")
    gathering(world).broken = LocalError("no space left", code="local_full")
    told = world.sync()
    assert {"/media/out.tar:copy:v1": "failed"} == told.results
    assert 4 == told.errors["/media/out.tar:copy:v1"].exit_code


def partial(world: World, *base: bytes) -> MemoryStore:
    source = Partial("/media/in.tar")
    source.base = frozenset(Digest.of(data) for data in base)
    world.source, world.target = source, MemoryStore("target")
    world.image(source, "v1", b"base", b"new")
    for data in base:
        del source.blobs["app"][Digest.of(data)]
    return world.target


def test_a_partial_source_is_completed_by_what_the_target_has(world: World) -> None:
    target = partial(world, b"base")
    target.add("copy", b"base")
    assert {"target/copy:v1": "copied"} == world.sync().results
    assert [("copy", Digest.of(b"base"))] == target.verbs("head"), "asked once"


def test_what_a_sibling_repository_has_is_mounted_from_there(world: World) -> None:
    target = partial(world, b"base")
    target.add("sibling", b"base")
    assert {"target/copy:v1": "copied"} == world.sync().results
    assert [("copy", Digest.of(b"base"))] == target.verbs("mount")


def test_where_the_base_is_not_there_nothing_is_written_and_what_is_missing_is_listed(world: World) -> None:
    target = partial(world, b"base")
    world.image(world.source, "whole", b"whole")
    told = world.sync()
    assert {"failed"} == set(told.results.values())
    error = told.errors["target/copy:v1"]
    assert ("bundle_incomplete", 3) == (error.code, error.exit_code)
    assert Digest.of(b"base") in str(error)
    assert [] == target.verbs("begin") + target.verbs("send") + target.verbs("put") + target.verbs("mount")
