"""What a sync would do: images, bytes after deduplication, requests that count against a quota. Reads only."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mirror.errors import Cancelled, MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.oci.reference import Repository
from mirror.selection.locations import is_bundle, is_registry
from mirror.store import Target, Version
from mirror.sync.bundle_bases import BundleBases
from mirror.sync.image_reader import read_version
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph
from mirror.sync.plan_model import Action, MirrorEntry, PlanEntry, TargetEntry
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import Steps, run_group, task_group
from mirror.util.structs import Struct, field


class PlannedCopy(Struct, frozen=True):
    """An image that would be copied. old: what the target's tag names now; size: bytes of its blobs.

    digest and size are None where they are known only after a transform; to_compare: so that it may be what the target
    has already. reason: for the protocol."""

    source: str
    target: str
    digest: Digest | None
    old_digest: Digest | None
    size: int | None
    protocol: str = "v2"
    reason: str = ""
    to_compare: bool = False


class PlanSummary(Struct):
    """bytes_to_send: at most, since what targets hold under other tags is not asked for. anew: bundles that would be
    made anew, since what is there is incomplete."""

    changes: list[PlannedCopy] = field(default_factory=list)
    bundles_to_rebuild: list[str] = field(default_factory=list)
    up_to_date: int = 0
    failures: list[tuple[str, MirrorError]] = field(default_factory=list)
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_to_read: int = 0
    bytes_to_send: int = 0
    manifests: int = 0


class DryRun:
    """Implements planner.Findings: reads the manifests of what would be copied, and adds up."""

    def __init__(self, calls: Calls, manifests: ManifestCache, bases: BundleBases) -> None:
        self._calls = calls
        self._manifests = manifests
        self._bases = bases
        self._partial: defaultdict[str, list[PlanEntry]] = defaultdict(list)  # by source, which needs its base
        self._looks: asyncio.TaskGroup
        self._read: set[tuple[str, Digest]] = set()
        self._sent: set[tuple[str, Digest]] = set()
        self._got: set[tuple[str, Digest]] = set()
        self._bundles: set[str] = set()  # that have images; with those that lack blobs, and for which something failed
        self._lacking: set[str] = set()
        self._failing: set[str] = set()
        self.outlook = PlanSummary()

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, and look at what it finds."""
        async with task_group() as self._looks:
            await plan
            for source, plan_entries in self._partial.items():
                self._looks.create_task(self._measure_partial_source(source, plan_entries))

    # ---- planner.Findings

    def add_plan_entry(self, plan_entry: PlanEntry) -> None:
        target = plan_entry.target
        if is_bundle(target.repository.host):
            self._bundles.add(target.repository.host)
        if plan_entry.error is not None:
            self._record_failure(plan_entry.name, plan_entry.error, plan_entry.target)
        elif plan_entry.action is Action.SKIP:
            self.outlook.up_to_date += 1
            if is_bundle(target.repository.host) and target.store.partial:
                self._looks.create_task(self._check_bundle_blobs(plan_entry))
        elif plan_entry.reference.entry.source.partial and not is_bundle(plan_entry.target.repository.host):
            self._partial[plan_entry.reference.entry.source.host].append(plan_entry)
        else:
            self._looks.create_task(self._measure(plan_entry))

    def record_listing_failure(self, entry: MirrorEntry, error: MirrorError) -> None:
        self._record_failure(entry.name, error, *entry.targets)

    def record_invalid_name(self, entry: MirrorEntry, error: MirrorError) -> None:
        self._record_failure(entry.name, error, *entry.targets)

    def note_target_tag(self, repository: Repository, tag: str, digest: Digest) -> None:
        """A plan leaves no trace in the state."""

    def record_selection(self, entry: MirrorEntry, count: int, rejected: Mapping[str, int]) -> None:
        self._bases.allow_mounts(target.repository for target in entry.targets)
        if rejected:
            self.outlook.rejected[entry.name] = dict(rejected)

    # ---- adding up

    async def _measure_partial_source(self, source: str, plan_entries: Sequence[PlanEntry]) -> None:
        """Look at what a partial source brings, unless the targets lack its base: then a sync would copy nothing."""
        try:
            errors = await self._bases.find_missing(plan_entries)
        except MirrorError as error:
            errors = dict.fromkeys(plan_entries, error)
        shared = [error for error in dict.fromkeys(errors.values()) if isinstance(error, Refused)]
        if len(errors) == len(plan_entries) and len(shared) == 1:
            self._record_failure(source, shared[0], *(one.target for one in plan_entries))
            return
        for plan_entry, reason in errors.items():
            self._record_failure(plan_entry.name, reason, plan_entry.target)
        await run_group(self._measure(one) for one in plan_entries if one not in errors)

    def _record_failure(self, name: str, error: MirrorError, *targets: TargetEntry) -> None:
        self.outlook.failures.append((name, error))
        self._failing.update(target.repository.host for target in targets)

    def find_bundles_to_rebuild(self, targets: Mapping[str, Target]) -> None:
        """After all looks: note the bundles that a sync would make anew although all their images are there."""
        for host in sorted(self._bundles - self._failing):
            if targets[host].incomplete or host in self._lacking:
                self.outlook.bundles_to_rebuild.append(host)

    async def _check_bundle_blobs(self, plan_entry: PlanEntry) -> None:
        """Whether a bundle that has left out blobs has them by its base, as the one that a sync would make."""
        target = plan_entry.target
        try:
            graph = await self._manifests.read_graph(target.store, target.repository.path, plan_entry.reference.tag)
            whole = all(await run_group(self._bases.has_blob(target.repository, blob) for blob in graph.blobs))
        except MirrorError as error:
            if isinstance(error, Cancelled):
                raise
            whole = False
        if not whole:
            self._lacking.add(target.repository.host)

    async def _measure(self, plan_entry: PlanEntry) -> None:
        reference = plan_entry.reference
        entry = reference.entry
        try:
            version = reference.version
            if not isinstance(version, Version):
                version = await read_version(self._calls, reference)
            if version.transform is not None:
                change = PlannedCopy(
                    reference.name,
                    plan_entry.name,
                    None,
                    plan_entry.old_digest,
                    None,
                    version.protocol,
                    version.reason,
                    to_compare=version.needs_transform and plan_entry.old_digest is not None,
                )
                self.outlook.changes.append(change)
                return
            identifier = version.digest or reference.identifier
            graph = await self._manifests.read_graph(entry.source, entry.repository, identifier, version.manifest)
        except MirrorError as error:
            self._record_failure(plan_entry.name, error, plan_entry.target)
            return
        self._add_copy(plan_entry, graph)

    def _add_copy(self, plan_entry: PlanEntry, graph: ManifestGraph) -> None:
        outlook = self.outlook
        if graph.root.digest == plan_entry.old_digest:
            outlook.up_to_date += 1
            return
        source, target = plan_entry.reference.entry.source.host, plan_entry.target.repository.host
        for blob in graph.blobs:
            size = blob.size or 0
            if (source, blob.digest) not in self._read:
                self._read.add((source, blob.digest))
                outlook.bytes_to_read += size
            if (target, blob.digest) not in self._sent:
                self._sent.add((target, blob.digest))
                outlook.bytes_to_send += size
        for manifest in graph.manifests():
            # What is on disk has no quota.
            if is_registry(source) and (source, manifest.digest) not in self._got:
                self._got.add((source, manifest.digest))
                outlook.manifests += 1
        size = sum(blob.size or 0 for blob in graph.blobs)
        outlook.changes.append(
            PlannedCopy(plan_entry.reference.name, plan_entry.name, graph.root.digest, plan_entry.old_digest, size)
        )
