"""Checks that a target has all attachments of an image that the source has, and lists them as referrers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from mirror.errors import Cancelled, MirrorError, NotFound, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.sync.attachment_search import AttachmentRef
from mirror.sync.attachments import AttachmentReader
from mirror.sync.manifest_graph import ManifestCache, ManifestGraph
from mirror.sync.plan_model import PlanEntry, TargetEntry
from mirror.sync.referrers_index import read_listed_referrers
from mirror.transfer.calls import Calls
from mirror.transfer.tasks import gather_results, run_group

CheckBlobs = Callable[[TargetEntry, Sequence[Descriptor]], Awaitable[list[MirrorError]]]
"""Checks blobs on a target, and returns the errors."""


class AttachmentVerifier:
    """Checks the attachments of images on targets.

    manifests: reads the manifests of targets. check_blobs: checks the blobs of an attachment. add_remedy: adds the
    command that repairs a problem to its error. checked: the number of attachments that were checked."""

    def __init__(
        self,
        calls: Calls,
        reader: AttachmentReader,
        manifests: ManifestCache,
        check_blobs: CheckBlobs,
        add_remedy: Callable[[MirrorError], MirrorError],
    ) -> None:
        self.checked = 0
        self._calls = calls
        self._reader = reader
        self._manifests = manifests
        self._check_blobs = check_blobs
        self._add_remedy = add_remedy

    async def find_problems(self, plan_entry: PlanEntry, graph: ManifestGraph) -> list[MirrorError]:
        """Return an error for each attachment that is missing, damaged or not listed on a target.

        graph: the image on the target. Raises the errors of the source, and Cancelled."""
        target = plan_entry.target
        refs = await self._reader.find_for_target(plan_entry, graph.root.digest, graph)
        self.checked += len(refs)
        results = await gather_results(self._check(plan_entry, ref) for ref in refs)
        problems = {ref: error for ref, error in zip(refs, results, strict=True) if error is not None}
        by_subject: dict[Digest, list[AttachmentRef]] = {}
        for ref in refs:
            if ref.is_listed_by_target and ref not in problems:
                by_subject.setdefault(ref.subject, []).append(ref)
        lists = await run_group(
            self._calls.call_host(
                target.repository.host, partial(read_listed_referrers, target.store, target.repository.path, subject)
            )
            for subject in by_subject
        )
        for listed, group in zip(lists, by_subject.values(), strict=True):
            problems |= {
                ref: NotFound(f"is not in the target's list of referrers of {ref.subject}")
                for ref in group
                if ref.descriptor.digest not in listed
            }
        for error in problems.values():
            if isinstance(error, Cancelled):
                raise error
        return [self._describe(ref, error) for ref, error in problems.items()]

    async def _check(self, plan_entry: PlanEntry, ref: AttachmentRef) -> None:
        """Read one attachment from the target, and check its manifests and blobs. Raises an error if it is incomplete.

        A tag may refer to a larger manifest that contains the attachment. Raises Refused (target_conflict) if the tag
        refers to a manifest that does not contain the attachment, and that must not be overwritten."""
        target = plan_entry.target
        graph = await self._manifests.read_graph(target.store, target.repository.path, ref.reference)
        entry, old = plan_entry.reference.entry, graph.root.digest
        if await self._reader.protection.needs_write(entry, target, ref.reference, old, ref.descriptor):
            raise NotFound(f"is missing: the tag {ref.tag} refers to {graph.root.digest}")
        errors = await self._check_blobs(target, graph.blobs)
        if errors:
            raise errors[0]

    def _describe(self, ref: AttachmentRef, error: MirrorError) -> MirrorError:
        """Return the error for an attachment, with its type, its digest, and the command that repairs it."""
        kind = (
            next((name for name in sorted(ref.names) if "/" in name), next(iter(sorted(ref.names)), "")) or "artifact"
        )
        if error.code == "target_conflict":
            return error.with_text(f"{kind} {ref.descriptor.digest} is missing: {error.what}")
        remedied = self._add_remedy(error)
        if isinstance(error, NotFound) and not error.what.startswith("is "):
            return RemoteError(
                f"{kind} {ref.descriptor.digest} is missing: {error.what}", hint=remedied.hint, code=error.code
            )
        what = error.what if error.what.startswith("is ") else f"is incomplete: {error.what}"
        return remedied.with_text(f"{kind} {ref.descriptor.digest} {what}")
