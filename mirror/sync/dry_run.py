"""Determines which images a sync would copy, and how many bytes and manifest requests this would take. Read-only."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial

from mirror.errors import MirrorError, OtherPlatform, Refused
from mirror.oci.descriptor import unique_descriptors
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.output.progress import Progress
from mirror.output.report import FailedImage
from mirror.selection.locations import is_bundle, is_registry
from mirror.selection.tag_rules import SelectionSummary
from mirror.store import Target
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.copy_preview import preview_copy
from mirror.sync.image_reader import ImageReader
from mirror.sync.manifest_graph import ManifestGraph
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry
from mirror.sync.platform_reader import PlatformReader
from mirror.sync.report_entries import image_failure, mirror_failure, run_failure
from mirror.sync.unrecorded_tags import UnrecordedTags
from mirror.transfer.tasks import Coro, run_group, task_group
from mirror.util.structs import Struct, field


class PlannedCopy(Struct, frozen=True):
    """An image that a sync would copy.

    source, target: the names of the image at the source and on the target.
    digest: the digest of the image. size: the total size of its blobs, in bytes. Both are None if the image needs a
    transform.
    old_digest: the digest that the tag on the target refers to now.
    protocol: the protocol of the source registry. reason: why this protocol is used, if there is a choice.
    manifests: the number of manifests that a sync would read from a registry, without deduplication.
    attachments: the number of attachments that a sync would copy. only_attachments: whether a sync would copy only
    attachments.
    to_compare: whether the target may already have the transformed image. A sync would run the transform and copy the
    result only if its digest differs."""

    source: str
    target: str
    digest: Digest | None
    old_digest: Digest | None
    size: int | None
    protocol: str = "v2"
    reason: str = ""
    to_compare: bool = False
    attachments: int = 0
    only_attachments: bool = False
    manifests: int = 0

    @property
    def kind(self) -> str:
        """The kind of the change: `new`, `changed`, `compare`, or `attach` if only attachments are copied."""
        if self.old_digest is None:
            return "new"
        if self.only_attachments:
            return "attach"
        return "compare" if self.to_compare else "changed"


class PlanSummary(Struct):
    """The result of a dry run: the images that a sync would copy, the failures, and the totals.

    bundles_to_rebuild: the bundles that a sync would write again although all their images are up to date, and why.
    up_to_date: the number of images that are up to date.
    other_platforms: the number of images that are skipped because they are for platforms that are not wanted.
    failures: the images, mirrors and sources that failed.
    selections: a summary of the tags that each mirror selects, by the name of the mirror, with wildcards expanded.
    mirrors: the source of the mirror in the configuration, by the same name.
    rejected_repositories: for each wildcard, the number of repositories that each rule rejects.
    bytes_to_read: the number of bytes to read from sources.
    bytes_to_send: the maximum number of bytes to send. A sync may send less, because a dry run does not check which
    blobs the targets have.
    manifests: the number of manifests to read from registries with GET.
    unrecorded: the numbers of tags on targets that no sync with this configuration wrote."""

    changes: list[PlannedCopy] = field(default_factory=list)
    bundles_to_rebuild: dict[str, str] = field(default_factory=dict)
    up_to_date: int = 0
    other_platforms: int = 0
    failures: list[FailedImage] = field(default_factory=list)
    selections: dict[str, SelectionSummary] = field(default_factory=dict)
    mirrors: dict[str, str] = field(default_factory=dict)
    rejected_repositories: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_to_read: int = 0
    bytes_to_send: int = 0
    manifests: int = 0
    unrecorded: Sequence[UnrecordedTags] = ()


class DryRun:
    """Reads the manifests of the images that a sync would copy, and adds up their sizes. Implements PlanReceiver.

    progress: the progress of the run, in which images are counted.
    deep: whether the sync would also check the signatures of images that are up to date.
    summary: the result, which is complete after `run` and `find_bundles_to_rebuild`."""

    def __init__(
        self,
        platforms: PlatformReader,
        bases: BundleBases,
        reader: ImageReader,
        progress: Progress,
        *,
        deep: bool,
    ) -> None:
        self._progress = progress
        self._reader = reader
        self.summary = PlanSummary()
        self._platforms = platforms
        self._bases = bases
        self._deep = deep
        self._from_partial: defaultdict[str, list[PlanEntry]] = defaultdict(list)  # by source host
        self._tasks: asyncio.TaskGroup
        # What has already been counted, by host.
        self._blobs_read: set[tuple[str, Digest]] = set()
        self._blobs_sent: set[tuple[str, Digest]] = set()
        self._manifests_read: set[tuple[str, Digest]] = set()
        self._bundles: set[str] = set()
        self._failed_hosts: set[str] = set()

    async def run(self, plan: Coro[None]) -> None:
        """Run the coroutine `plan`, and read the images that a sync would copy."""
        async with task_group() as self._tasks:
            await plan
            for source, plan_entries in self._from_partial.items():
                task = self._tasks.create_task(self._measure_partial_source(source, plan_entries))
                task.add_done_callback(partial(self._count_images, len(plan_entries)))

    # ---- the methods of PlanReceiver

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        """Count an image that is up to date or failed. Read any other image to determine its size."""
        target, source = plan_entry.target, plan_entry.reference.entry.source
        to_bundle = is_bundle(target.repository.host)
        if to_bundle:
            self._bundles.add(target.repository.host)
        if plan_entry.error is not None:
            self._record_failure(plan_entry, plan_entry.error)
            self._progress.count_image(failed=True)
            self._reader.release(plan_entry.reference)
        elif plan_entry.action is Action.SKIP and plan_entry.recheck and plan_entry.old_digest is not None:
            self._start_task(self._measure_attachments(plan_entry, plan_entry.old_digest))
        elif plan_entry.action is Action.SKIP:
            if self._deep and plan_entry.reference.entry.signature_policy is not None:
                self._start_task(self._check_unchanged(plan_entry))
            else:
                self.summary.up_to_date += 1
                self._progress.count_image()
                self._reader.release(plan_entry.reference)
        elif source.partial and not to_bundle:
            self._from_partial[source.host].append(plan_entry)
        else:
            self._start_task(self._measure(plan_entry))

    def record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record that a mirror cannot be planned."""
        self._record_mirror_failure(entry, error)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record an invalid tag or repository name."""
        self._record_mirror_failure(entry, error)

    def record_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """Do nothing, because a dry run does not write to the state."""

    def record_selection(self, entry: MirrorEntry, selection: SelectionSummary) -> None:
        """Record which tags a mirror selects, as a summary, and allow mounts between its target repositories."""
        self._progress.add_images(selection.count * len(entry.targets))
        self._bases.allow_mounts(target.repository for target in entry.targets)
        self.summary.selections[entry.name] = selection
        self.summary.mirrors[entry.name] = entry.mirror_name

    def record_repositories(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        """Record the number of repositories that each rule of a wildcard leaves out."""
        if rejected:
            self.summary.rejected_repositories[entry.name] = dict(rejected)

    # ---- summing up

    def _count_images(self, count: int, task: object) -> None:
        """Count images as done. task: the task for these images, which has ended."""
        for _ in range(count):
            self._progress.count_image()

    def _start_task(self, coroutine: Coro[None]) -> None:
        """Start a coroutine for one image. When it ends, count the image as done."""
        self._tasks.create_task(coroutine).add_done_callback(partial(self._count_images, 1))

    async def _measure_partial_source(self, source: str, plan_entries: Sequence[PlanEntry]) -> None:
        """Read the images of a partial source. If targets lack blobs that the source leaves out, record one failure.

        In this case, a sync copies none of the images."""
        try:
            errors = await self._bases.find_missing(plan_entries)
        except MirrorError as error:
            errors = dict.fromkeys(plan_entries, error)
        refusals = [error for error in dict.fromkeys(errors.values()) if isinstance(error, Refused)]
        if len(errors) == len(plan_entries) and len(refusals) == 1:
            self.summary.failures.append(run_failure(source, refusals[0]))
            self._failed_hosts.update(plan_entry.target.repository.host for plan_entry in plan_entries)
            return
        for plan_entry, reason in errors.items():
            self._record_failure(plan_entry, reason)
        await run_group(self._measure(plan_entry) for plan_entry in plan_entries if plan_entry not in errors)

    def _record_failure(self, plan_entry: PlanEntry, error: MirrorError) -> None:
        """Record the failure of an image, and mark its target host as failed.

        An image for a platform that is not wanted is only counted."""
        if isinstance(error, OtherPlatform):
            self.summary.other_platforms += 1
            return
        self.summary.failures.append(image_failure(plan_entry, error))
        self._failed_hosts.add(plan_entry.target.repository.host)

    def _record_mirror_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        """Record the failure of a mirror, and mark the hosts of its targets as failed."""
        self.summary.failures.append(mirror_failure(entry, error))
        self._failed_hosts.update(target.repository.host for target in entry.targets)

    def find_bundles_to_rebuild(self, targets: Mapping[str, Target]) -> None:
        """Add to the summary the bundles that a sync would write again although all their images are up to date.

        Call this after `run`."""
        for host in sorted(self._bundles - self._failed_hosts):
            if targets[host].incomplete:
                self.summary.bundles_to_rebuild[host] = "it is incomplete"
            elif targets[host].partial:
                self.summary.bundles_to_rebuild[host] = "it lacks blobs, or was written with a different base"

    async def _check_unchanged(self, plan_entry: PlanEntry) -> None:
        """Check the signature of an image that is up to date, and add the image to the summary."""
        reference = plan_entry.reference
        try:
            await self._reader.check_signature(reference)
        except MirrorError as error:
            self._record_failure(plan_entry, error)
        else:
            self.summary.up_to_date += 1
        finally:
            self._reader.release(reference)

    async def _measure(self, plan_entry: PlanEntry) -> None:
        """Read the manifests of an image that a sync would copy, and add the image to the summary."""
        reference = plan_entry.reference
        try:
            image = await preview_copy(self._reader, plan_entry)
            version = await self._reader.resolve(reference)
            if version.transform is not None:
                change = PlannedCopy(
                    reference.name,
                    plan_entry.name,
                    None,
                    plan_entry.old_digest,
                    None,
                    version.protocol,
                    version.reason,
                    to_compare=version.is_unknown and plan_entry.old_digest is not None,
                )
                self.summary.changes.append(change)
                return
        except MirrorError as error:
            self._record_failure(plan_entry, error)
            return
        finally:
            self._reader.release(reference)
        if image is None:
            self.summary.up_to_date += 1
            return
        graph, attachments = image.graph, image.attachments
        self._add_copy(plan_entry, graph.root.digest, [graph, *(one.graph for one in attachments)], len(attachments))

    async def _measure_attachments(self, plan_entry: PlanEntry, digest: Digest) -> None:
        """Add the attachments that a target lacks to the summary. digest: the digest of the image on the target."""
        reader = self._reader.attachments
        try:
            missing = await reader.find_missing(plan_entry, await reader.find_for_target(plan_entry, digest))
            attachments = await reader.read(plan_entry.reference, missing)
        except MirrorError as error:
            self._record_failure(plan_entry, error)
            return
        finally:
            self._reader.release(plan_entry.reference)
        if attachments:
            self._add_copy(plan_entry, digest, [one.graph for one in attachments], len(attachments))
            return
        self.summary.up_to_date += 1

    def _add_copy(
        self, plan_entry: PlanEntry, digest: Digest, graphs: Sequence[ManifestGraph], attachments: int
    ) -> None:
        """Add an image that a sync would copy to the summary.

        digest: the digest of the image. graphs: the graphs to copy. attachments: how many of them are attachments."""
        summary = self.summary
        source, target = plan_entry.reference.entry.source.host, plan_entry.target.repository.host
        blobs = unique_descriptors((blob for graph in graphs for blob in graph.blobs), plan_entry.name)
        for blob in blobs:
            size = blob.size or 0
            if (source, blob.digest) not in self._blobs_read:
                self._blobs_read.add((source, blob.digest))
                summary.bytes_to_read += size
            if (target, blob.digest) not in self._blobs_sent:
                self._blobs_sent.add((target, blob.digest))
                summary.bytes_to_send += size
        # Only registries have quotas.
        manifests = [one for graph in graphs for one in graph.manifests()] if is_registry(source) else []
        for manifest in manifests:
            if (source, manifest.digest) not in self._manifests_read:
                self._manifests_read.add((source, manifest.digest))
                summary.manifests += 1
        size = sum(blob.size or 0 for blob in blobs)
        copy = PlannedCopy(
            plan_entry.reference.name,
            plan_entry.name,
            digest,
            plan_entry.old_digest,
            size,
            attachments=attachments,
            only_attachments=len(graphs) == attachments,
            manifests=len(manifests),
        )
        summary.changes.append(copy)
