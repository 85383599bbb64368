"""What a sync would do: images, bytes after deduplication, requests that count against a quota. Reads only."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence

from mirror.errors import Cancelled, MirrorError, Refused
from mirror.oci.digest import Digest
from mirror.selection.locations import is_bundle, is_registry
from mirror.store import Target, Version
from mirror.sync.bundle_bases import Bases
from mirror.sync.image_reader import resolved
from mirror.sync.manifest_graph import Graph, Manifests
from mirror.sync.plan_model import Entry, Finding, TargetEntry, Verdict
from mirror.transfer.blob_locations import Place
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import Steps, run_group, task_group
from mirror.util.structs import Struct, field


class Change(Struct, frozen=True):
    """An image that would be copied. old: what the target's tag names now; size: bytes of its blobs.

    digest and size are None where they are known only after a transform; to_compare: so that it may be what the target
    has already. reason: for the protocol."""

    source: str
    target: str
    digest: Digest | None
    old: Digest | None
    size: int | None
    protocol: str = "v2"
    reason: str = ""
    to_compare: bool = False


class Outlook(Struct):
    """bytes_to_send: at most, since what targets hold under other tags is not asked for. anew: bundles that would be
    made anew, since what is there is incomplete."""

    changes: list[Change] = field(default_factory=list)
    anew: list[str] = field(default_factory=list)
    equal: int = 0
    failures: list[tuple[str, MirrorError]] = field(default_factory=list)
    rejected: dict[str, dict[str, int]] = field(default_factory=dict)
    bytes_to_read: int = 0
    bytes_to_send: int = 0
    manifests: int = 0


class Preview:
    """Implements planner.Findings: reads the manifests of what would be copied, and adds up."""

    def __init__(self, calls: Calls, manifests: Manifests, bases: Bases) -> None:
        self._calls = calls
        self._manifests = manifests
        self._bases = bases
        self._partial: defaultdict[str, list[Finding]] = defaultdict(list)  # by source, which needs its base
        self._looks: asyncio.TaskGroup
        self._read: set[tuple[str, Digest]] = set()
        self._sent: set[tuple[str, Digest]] = set()
        self._got: set[tuple[str, Digest]] = set()
        self._bundles: set[str] = set()  # that have images; with those that lack blobs, and for which something failed
        self._lacking: set[str] = set()
        self._failing: set[str] = set()
        self.outlook = Outlook()

    async def run(self, plan: Steps[None]) -> None:
        """Run the plan, and look at what it finds."""
        async with task_group() as self._looks:
            await plan
            for source, findings in self._partial.items():
                self._looks.create_task(self._with_base(source, findings))

    # ---- planner.Findings

    def found(self, finding: Finding) -> None:
        target = finding.target
        if is_bundle(target.place.host):
            self._bundles.add(target.place.host)
        if finding.error is not None:
            self._failed(finding.name, finding.error, finding.target)
        elif finding.verdict is Verdict.EQUAL:
            self.outlook.equal += 1
            if is_bundle(target.place.host) and target.store.partial:
                self._looks.create_task(self._look_for_blobs(finding))
        elif finding.reading.entry.source.partial and not is_bundle(finding.target.place.host):
            self._partial[finding.reading.entry.source.host].append(finding)
        else:
            self._looks.create_task(self._look(finding))

    def listing_failed(self, entry: Entry, error: MirrorError) -> None:
        self._failed(entry.name, error, *entry.targets)

    def refused_name(self, entry: Entry, error: MirrorError) -> None:
        self._failed(entry.name, error, *entry.targets)

    def saw_target(self, place: Place, tag: str, digest: Digest) -> None:
        """A plan leaves no trace in the state."""

    def selected(self, entry: Entry, count: int, rejected: Mapping[str, int]) -> None:
        self._bases.allow(target.place for target in entry.targets)
        if rejected:
            self.outlook.rejected[entry.name] = dict(rejected)

    # ---- adding up

    async def _with_base(self, source: str, findings: Sequence[Finding]) -> None:
        """Look at what a partial source brings, unless the targets lack its base: then a sync would copy nothing."""
        try:
            errors = await self._bases.missing(findings)
        except MirrorError as error:
            errors = dict.fromkeys(findings, error)
        shared = [error for error in dict.fromkeys(errors.values()) if isinstance(error, Refused)]
        if len(errors) == len(findings) and len(shared) == 1:
            self._failed(source, shared[0], *(one.target for one in findings))
            return
        for finding, reason in errors.items():
            self._failed(finding.name, reason, finding.target)
        await run_group(self._look(one) for one in findings if one not in errors)

    def _failed(self, name: str, error: MirrorError, *targets: TargetEntry) -> None:
        self.outlook.failures.append((name, error))
        self._failing.update(target.place.host for target in targets)

    def add_bundles(self, targets: Mapping[str, Target]) -> None:
        """After all looks: note the bundles that a sync would make anew although all their images are there."""
        for host in sorted(self._bundles - self._failing):
            if targets[host].incomplete or host in self._lacking:
                self.outlook.anew.append(host)

    async def _look_for_blobs(self, finding: Finding) -> None:
        """Whether a bundle that has left out blobs has them by its base, as the one that a sync would make."""
        target = finding.target
        try:
            graph = await self._manifests.graph(target.store, target.place.path, finding.reading.tag)
            whole = all(await run_group(self._bases.has(target.place, blob) for blob in graph.blobs))
        except MirrorError as error:
            if isinstance(error, Cancelled):
                raise
            whole = False
        if not whole:
            self._lacking.add(target.place.host)

    async def _look(self, finding: Finding) -> None:
        reading = finding.reading
        entry = reading.entry
        try:
            version = reading.version
            if not isinstance(version, Version):
                version = await resolved(self._calls, reading)
            if version.transform is not None:
                change = Change(
                    reading.name,
                    finding.name,
                    None,
                    finding.old,
                    None,
                    version.protocol,
                    version.reason,
                    to_compare=version.unmade and finding.old is not None,
                )
                self.outlook.changes.append(change)
                return
            reference = version.digest or reading.reference
            graph = await self._manifests.graph(entry.source, entry.repository, reference, version.manifest)
        except MirrorError as error:
            self._failed(finding.name, error, finding.target)
            return
        self._add(finding, graph)

    def _add(self, finding: Finding, graph: Graph) -> None:
        outlook = self.outlook
        if graph.root.digest == finding.old:
            outlook.equal += 1
            return
        source, target = finding.reading.entry.source.host, finding.target.place.host
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
        outlook.changes.append(Change(finding.reading.name, finding.name, graph.root.digest, finding.old, size))
