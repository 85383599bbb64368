"""Writes lists of referrers to targets without the referrers API: an index under a tag for each subject.

The index is read, the new referrers are added, and the index is written again (distribution-spec v1.1.1, "Pushing
Manifests with Subject"). Existing entries are kept. The specification defines no lock: if two tools write the index at
the same time, the last write wins. Therefore, the tag is resolved after each write. If it has changed, the referrers
are merged into the new index.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from mirror.errors import NotFound, Refused, RemoteError
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import OCI_INDEX, Kind, Manifest, parse_manifest
from mirror.oci.reference import Repository
from mirror.oci.referrers import merge_referrers, referrers_tag
from mirror.store import Source, Target
from mirror.sync.manifest_writer import ManifestWriter, manifest_descriptor
from mirror.transfer.blob_request import BlobRequest
from mirror.transfer.calls import Calls
from mirror.util.cancellation import Work
from mirror.util.structs import replace

MAX_MERGES = 5  # maximum number of attempts to write an index that another tool keeps changing


class ReferrersIndexes:
    """The indexes of referrers on targets. Within a run, each index is changed by one caller at a time.

    lock: returns the lock under which a tag is changed."""

    def __init__(self, calls: Calls, writer: ManifestWriter, lock: Callable[[Repository, str], asyncio.Lock]) -> None:
        self._lock = lock
        self._calls = calls
        self._writer = writer

    async def add(
        self,
        store: Target,
        repository: Repository,
        subject: Digest,
        referrers: Sequence[Manifest],
        request_for: Callable[[Descriptor], BlobRequest],
        before_write: Callable[[str], None],
        after_write: Callable[[str, Digest], None],
    ) -> set[Digest]:
        """Add referrers to the index of their subject. Return the referrers that the index did not list before.

        request_for: returns the request that describes the index in the log. before_write: called with the tag, on a
        thread, before each write. after_write: called with the tag and the digest of the index after each write. Raises
        Refused if the tag does not refer to an index, RemoteError (tag_moved) if another tool keeps changing the index,
        and the errors of the target."""
        tag, added = referrers_tag(subject), set[Digest]()
        async with self._lock(repository, tag):
            for _ in range(MAX_MERGES):
                run = partial(_merge, store, repository, tag, referrers)
                index, new = await self._calls.call_host(repository.host, run)
                added |= new
                if index is None:
                    return added
                # Another tool may have replaced an equal index that this run wrote, so it is always written.
                request = replace(request_for(manifest_descriptor(index)), lookup_first=True)
                await self._writer.put(request, tag, index, before=partial(before_write, tag))
                after_write(tag, index.digest)
                if await self._writer.is_tag_current(store, repository, tag, index):
                    return added
        raise RemoteError(
            f"{repository}:{tag}, the list of referrers of {subject}, was changed by another tool {MAX_MERGES} times "
            "while it was written",
            hint="run again when the other tool has finished",
            code="tag_moved",
        )


def read_listed_referrers(store: Source, repository: str, subject: Digest, work: Work) -> set[Digest]:
    """Return the referrers that a target lists for a manifest, in its API or in the index under a tag. Blocks."""
    listed = store.referrers(repository, subject, work)
    if listed is None:
        try:
            index = store.manifest(repository, referrers_tag(subject), work)
        except NotFound:
            return set()
        listed = index.children if index.kind is Kind.INDEX else ()
    return {one.digest for one in listed}


def _merge(
    store: Target, repository: Repository, tag: str, referrers: Sequence[Manifest], work: Work
) -> tuple[Manifest | None, set[Digest]]:
    """Merge referrers into the target's index. Return the new index, and the referrers that the old index lacks.

    The new index is None if the old index lists all of them. Raises Refused if the tag does not refer to an index."""
    what = f"{repository}:{tag}"
    try:
        old = store.manifest(repository.path, tag, work)
    except NotFound:
        old = None
    if old is not None and old.media_type != OCI_INDEX:
        raise Refused(
            f"{what} is a {old.media_type} on the target, but this tag must be an index that lists referrers",
            hint="remove this tag on the target, or set `referrers: false` for this mirror",
            code="type_mismatch",
        )
    listed = {child.digest for child in old.children} if old is not None else set()
    body = merge_referrers(old, referrers, what)
    new = {one.digest for one in referrers if one.digest not in listed}
    return parse_manifest(body, OCI_INDEX, what=what) if body is not None else None, new
