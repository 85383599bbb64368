"""Bundles as targets, and partial sources."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mirror.commands.options import ReferenceFilter
from mirror.errors import LocalError, MirrorError, NotFound, worst_exit_code
from mirror.limits import Limits
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_MANIFEST, parse_manifest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.output.report import Report, RunCost
from mirror.selection.tag_rules import TagRules
from mirror.store import ExpectedImage
from mirror.sync.copy_queue import CopyQueue
from mirror.sync.deadline_estimate import DeadlineEstimate
from mirror.sync.image_copier import ImageCopier
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from mirror.sync.planner import Planner
from mirror.sync.recorder import ResultRecorder
from mirror.sync.signature_checker import SignatureChecker
from mirror.sync.tag_protection import TagProtection
from mirror.sync.target_lifecycle import TargetLifecycle
from mirror.transfer.blob_copier import BlobCopier
from mirror.transfer.blob_locations import BlobLocations
from mirror.transfer.blob_recorder import BlobRecorder
from mirror.transfer.calls import Calls, new_loop
from mirror.transfer.routes import Routes
from mirror.transfer.spool import Spool
from mirror.util.cancellation import Stop, Work
from tests.support.stores import AttachmentTags, MemoryStore
from tests.sync.test_planner import Hints


class BundleTarget(MemoryStore):
    """A target that must know all images before the first write, and publishes them when it is finished."""

    needs_all_images = True
    on_disk = True
    expected_images: tuple[ExpectedImage, ...] | None = None
    finished: bool | None = None
    finish_error: MirrorError | None = None

    missing: Collection[str] = ()
    existed = False  # before the run

    def repositories(self, prefix: str, work: Work) -> Iterable[str | MirrorError]:
        if not self.existed:
            raise NotFound(f"{self.host} does not exist")
        return super().repositories(prefix, work)

    def begin(self, images: Sequence[ExpectedImage], work: Work, *, missing: Collection[str] = ()) -> None:
        assert self.expected_images is None or self.finished is False, "once, or again with the complete images"
        self.missing, self.finished = missing, None
        assert self.expected_images is not None or not self.verbs("put") + self.verbs("send"), "before the first write"
        self.expected_images = tuple(images)

    def finish(self, *, whole: bool, work: Work) -> None:
        assert self.finished is None, "once"
        self.finished = whole
        if self.finish_error:
            raise self.finish_error


class PartialSource(MemoryStore):
    """A source that leaves out the blobs in `base`."""

    partial = True
    base: frozenset[Digest] = frozenset()

    def omits_blob(self, blob: Descriptor) -> bool:
        return blob.digest in self.base


@dataclass
class Notes(Hints):
    """Implements the protocols for hints and notes of all parts of a run."""

    def record_tag(self, side: str, repository: str, tag: str, digest: Digest | None) -> None:
        if digest is not None:
            self.tags[repository, tag] = digest
        else:
            self.tags.pop((repository, tag), None)

    def delete_tag_record(self, repository: str, tag: str, *, was_recorded: bool) -> None:
        self.tags.pop((repository, tag), None)

    def record(
        self, repository: str, reference: str, digest: Digest, source: str, subject: Digest | None = None
    ) -> None:
        pass

    def record_image_blobs(self, repository: str, root: Digest, blobs: object) -> None:
        pass

    def record_attachments(self, source: str, repository: str, digest: Digest, time: float) -> None:
        self.checked[source, repository, digest] = time

    def record_transform_digest(self, identity: str, digest: Digest) -> None:
        pass

    def record_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: object) -> None:
        pass

    def update_sparse_image(self, repository: str, tag: str, digest: Digest, platforms: object) -> None:
        pass

    def record_other_platform(self, key: str, reason: str) -> None:
        pass

    def had_blob(self, repository: str, digest: Digest) -> bool:
        return False

    def repositories_with_blob(self, host: str, digest: Digest) -> list[str]:
        return []

    def forget(self, repository: str) -> None:
        pass


@dataclass
class RunResult:
    """The results and messages of images, by their names on the target; and the exit code."""

    results: dict[str, str]
    messages: dict[str, str]
    codes: dict[str, str]
    exit_code: int


class World:
    """A source and a bundle as its target, or others that a test sets."""

    def __init__(self, tmp_path: Path) -> None:
        self.source: MemoryStore = MemoryStore("source")
        self.target: MemoryStore = BundleTarget("/media/out.tar")
        self.tmp_path = tmp_path
        self.notes = Notes()

    def image(self, store: MemoryStore, tag: str, *layers: bytes, repository: str = "app") -> Digest:
        """Add an image to a store and return its digest."""
        config = store.add(repository, f"config of {layers}".encode())
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": "application/x", "digest": config.digest, "size": config.size},
            "layers": [
                {"mediaType": "application/x", "digest": blob.digest, "size": blob.size}
                for blob in (store.add(repository, layer) for layer in layers)
            ],
        }
        root = parse_manifest(json.dumps(document).encode())
        store.manifests[repository][tag] = store.manifests[repository][root.digest] = root
        return root.digest

    def sync(self, *, deep: bool = False) -> RunResult:
        """Copy `app` to `copy` on the target, and read the results from the report."""
        with Report(self.tmp_path, run="run", started=datetime.now(UTC)) as report:
            recorder = ResultRecorder(report, Progress())
            self._run(recorder, deep=deep)
            code = worst_exit_code(recorder.codes)
            report.finish(code, ended=datetime.now(UTC), cost=RunCost())
            images = json.loads(report.path.read_bytes())["images"]
        failures = {image["target"]: image["error"] for image in images if "error" in image}
        assert "internal_error" not in {error["code"] for error in failures.values()}
        results = {image["target"]: image["result"] for image in images}
        assert len(images) == len(results), "one result for each image"
        return RunResult(
            results,
            {name: error["message"] for name, error in failures.items()},
            {name: error["code"] for name, error in failures.items()},
            code,
        )

    def _run(self, recorder: ResultRecorder, *, deep: bool) -> None:
        host = self.target.host
        entry = MirrorEntry(self.source, "app", TagRules(), (TargetEntry(self.target, Repository(host, "copy")),))
        targets = {host: self.target}
        spool = Spool(self.tmp_path, None)
        spool.prepare()
        locations = BlobLocations(self.notes, {host: ["copy", "sibling"]})
        loop = new_loop()
        calls = Calls(loop, Limits(), Stop())
        try:
            blob_recorder = BlobRecorder(lambda request, result, error: None)
            blob_copier = BlobCopier(
                calls,
                locations,
                Routes([(self.source.host, host)], mounting={}, parallel={}),
                spool,
                recorder=blob_recorder,
                progress=Progress(),
                before_write=lambda repository: None,
            )
            manifests = ManifestCache(calls)
            protection = TagProtection(calls, manifests, AttachmentTags(), lambda source: True)
            copier = ImageCopier(
                calls,
                blob_copier,
                locations,
                self.notes,
                self.notes,
                targets,
                blob_recorder,
                protection,
                DeadlineEstimate(locations, lambda: None),
                check_all=deep,
                before_write=lambda repository: None,
            )
            reader = ImageReader(calls, self.notes, manifests, SignatureChecker(calls, manifests), protection)
            queue = CopyQueue(
                calls,
                reader,
                copier,
                locations,
                self.notes,
                recorder,
                targets,
                TargetLifecycle(calls, reader, targets),
                images=2,
                deep=deep,
                fail_fast=False,
            )
            planner = Planner(calls, self.notes, queue, only=ReferenceFilter(None), parallel={})
            loop.run_until_complete(queue.run(planner.plan_all([entry])))
        finally:
            calls.close()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def bundle(world: World) -> BundleTarget:
    assert isinstance(world.target, BundleTarget)
    return world.target


def test_a_bundle_knows_all_images_before_the_first_write(world: World) -> None:
    for number in range(5):
        world.image(world.source, f"v{number}", b"base", bytes([number]))
    result = world.sync()
    assert {"copied"} == set(result.results.values())
    expected_images = bundle(world).expected_images
    assert expected_images is not None
    assert {f"v{number}" for number in range(5)} == {image.reference for image in expected_images}
    assert all(image.manifests for image in expected_images)
    assert {3} == {len(image.blobs) for image in expected_images}
    assert bundle(world).finished is True


def test_a_bundle_is_not_opened_if_nothing_changed(world: World) -> None:
    digest = world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    assert {"/media/out.tar:copy:v1": "up-to-date"} == world.sync().results
    assert bundle(world).expected_images is None
    assert world.notes.tags["/media/out.tar:copy", "v1"] == digest


def test_all_images_are_written_to_a_bundle_if_one_changed(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    world.image(world.source, "v2", b"base", b"more")
    assert {"copied"} == set(world.sync().results.values())
    expected_images = bundle(world).expected_images
    assert expected_images is not None
    assert {"v1", "v2"} == {image.reference for image in expected_images}


def test_an_image_that_cannot_be_read_is_missing_in_the_bundle(world: World) -> None:
    world.image(world.source, "v1", b"base")
    bad = world.image(world.source, "bad", b"other")
    world.source.fault = lambda verb, repository, reference: (
        MirrorError("gone") if verb == "manifest" and reference in ("bad", bad) else None
    )
    result = world.sync()
    assert {"/media/out.tar:copy:v1": "copied", "/media/out.tar:copy:bad": "failed"} == result.results
    assert (True, ["copy:bad"]) == (bundle(world).finished, list(bundle(world).missing))


def test_a_new_bundle_is_published_without_an_image_whose_blob_is_missing(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    result = world.sync()
    assert {"/media/out.tar:copy:v1": "copied", "/media/out.tar:copy:bad": "failed"} == result.results
    expected_images = bundle(world).expected_images
    assert expected_images is not None
    assert ["v1"] == [image.reference for image in expected_images]
    assert (True, ["copy:bad"]) == (bundle(world).finished, list(bundle(world).missing))


def test_a_bundle_without_any_complete_image_is_not_published(world: World) -> None:
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    assert {"/media/out.tar:copy:bad": "failed"} == world.sync().results
    assert bundle(world).finished is False


def test_an_existing_bundle_is_not_replaced_by_an_incomplete_one(world: World) -> None:
    world.image(world.source, "v1", b"base")
    bundle(world).existed = True
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    result = world.sync()
    assert {"failed"} == set(result.results.values())
    assert bundle(world).finished is False
    assert "/media/out.tar stays as it is" in result.messages["/media/out.tar:copy:v1"]


@pytest.mark.parametrize("partial", [False, True])
def test_an_equal_image_in_a_bundle_that_is_not_replaced_is_up_to_date_unless_the_bundle_is_partial(
    world: World, partial: bool
) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    world.image(world.source, "bad", b"lost")
    del world.source.blobs["app"][Digest.of(b"lost")]
    world.target.partial, bundle(world).existed = partial, True
    result = world.sync()
    equal = "failed" if partial else "up-to-date"
    assert {"/media/out.tar:copy:v1": equal, "/media/out.tar:copy:bad": "failed"} == result.results


def test_an_incomplete_bundle_is_written_again_when_it_can_be_complete(world: World) -> None:
    world.image(world.source, "v1", b"base")
    world.target.manifests["copy"]["v1"] = world.source.manifests["app"]["v1"]
    bundle(world).incomplete = True
    assert {"/media/out.tar:copy:v1": "copied"} == world.sync().results
    assert (True, []) == (bundle(world).finished, list(bundle(world).missing))


def test_all_images_fail_if_a_bundle_cannot_be_finished(world: World) -> None:
    world.image(world.source, "v1", b"base")
    bundle(world).finish_error = LocalError("no space left", code="local_full")
    result = world.sync()
    assert {"/media/out.tar:copy:v1": "failed"} == result.results
    assert 4 == result.exit_code


def use_partial_source(world: World, *base: bytes) -> MemoryStore:
    """Replace the source by one without the blobs in `base`, and the target by a registry. Return the target."""
    source = PartialSource("/media/in.tar")
    source.base = frozenset(Digest.of(data) for data in base)
    world.source, world.target = source, MemoryStore("target")
    world.image(source, "v1", b"base", b"new")
    for data in base:
        del source.blobs["app"][Digest.of(data)]
    return world.target


def test_blobs_that_a_partial_source_leaves_out_are_not_copied_if_the_target_has_them(world: World) -> None:
    target = use_partial_source(world, b"base")
    target.add("copy", b"base")
    assert {"target/copy:v1": "copied"} == world.sync().results
    assert [("copy", Digest.of(b"base"))] == target.verbs("head"), "asked once"


def test_blobs_that_a_partial_source_leaves_out_are_mounted_from_another_repository(world: World) -> None:
    target = use_partial_source(world, b"base")
    target.add("sibling", b"base")
    assert {"target/copy:v1": "copied"} == world.sync().results
    assert [("copy", Digest.of(b"base"))] == target.verbs("mount")


def test_nothing_is_written_if_the_target_lacks_the_base_and_the_error_names_the_missing_blobs(world: World) -> None:
    target = use_partial_source(world, b"base")
    world.image(world.source, "whole", b"whole")
    result = world.sync()
    assert {"failed"} == set(result.results.values())
    assert ("bundle_incomplete", 3) == (result.codes["target/copy:v1"], result.exit_code)
    assert Digest.of(b"base") in result.messages["target/copy:v1"]
    assert [] == target.verbs("begin") + target.verbs("send") + target.verbs("put") + target.verbs("mount")
