"""Decides whether a tag of an attachment on a target may be overwritten.

A tag such as `sha256-….sig` contains all signatures of a manifest. Another tool, or a mirror of another source, may
have written signatures there that the source lacks, and overwriting the tag would lose them.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import Protocol

from mirror.errors import NotFound, Refused
from mirror.oci.descriptor import Descriptor
from mirror.oci.digest import Digest
from mirror.oci.manifest import Manifest
from mirror.oci.reference import Repository
from mirror.oci.referrers import contains_entries, kind_of_tag
from mirror.selection.locations import is_bundle
from mirror.store import DAMAGED, Source, Version
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, TargetEntry
from mirror.sync.planner_queries import may_be_damaged, resolve_all
from mirror.transfer.calls import Calls
from mirror.util.retry_policy import ONCE
from mirror.util.structs import Struct


class AttachmentTagStore(Protocol):
    """Stores the last known manifest of each tag of attachments on targets, and the source of the manifest."""

    def find(self, repository: str, tag: str) -> tuple[Digest, str] | None:
        """Return the last recorded manifest of a tag, and its source, or None. Reads the state file."""
        ...

    def record(self, repository: str, tag: str, digest: Digest, source: str) -> None:
        """Record the current manifest of a tag, and its source. The record is written later."""
        ...


class _Written(Struct, frozen=True):
    """A manifest that this run wrote under a tag of attachments. entry: the mirror that copied the manifest."""

    digest: Digest
    entry: MirrorEntry


class TagProtection:
    """Decides whether a tag of attachments on a target may be overwritten, by comparing it with the source.

    A tag may be overwritten if it does not exist, if it still has the manifest that was last written from the same
    source, or if the new manifest contains all entries of the old one. Otherwise, there is a conflict.

    manifests: reads manifests of sources and targets. records: the tags that earlier runs wrote. is_source: returns
    whether a repository, with its host, is a source of this configuration."""

    def __init__(
        self, calls: Calls, manifests: ManifestCache, records: AttachmentTagStore, is_source: Callable[[str], bool]
    ) -> None:
        self._calls = calls
        self._manifests = manifests
        self._records = records
        self._is_source = is_source
        self._written: dict[tuple[Repository, str], _Written] = {}
        self._locks: defaultdict[tuple[Repository, str], asyncio.Lock] = defaultdict(asyncio.Lock)

    def lock(self, repository: Repository, tag: str) -> asyncio.Lock:
        """Return the lock under which a tag is compared and written."""
        return self._locks[repository, tag]

    def record(self, entry: MirrorEntry, repository: Repository, tag: str, digest: Digest) -> None:
        """Record that a tag on a target refers to a manifest from the source of a mirror."""
        self._records.record(str(repository), tag, digest, entry.name)

    def record_written(self, entry: MirrorEntry, repository: Repository, tag: str, digest: Digest) -> None:
        """Record that this run wrote a manifest from the source of a mirror under a tag."""
        self._written[repository, tag] = _Written(digest, entry)
        self.record(entry, repository, tag, digest)

    def digest_in_run(self, repository: Repository, tag: str) -> Digest | None:
        """Return the digest that this run wrote under a tag, or None if this run has not written the tag."""
        written = self._written.get((repository, tag))
        return written.digest if written is not None else None

    async def read_digest(self, store: Source, repository: Repository, tag: str) -> Digest | None:
        """Return the digest of a tag on a target, or None if the tag does not exist or its manifest is damaged.

        Raises the errors of the target. An error that may be caused by a damaged manifest is not raised if `mirror`
        wrote the tag, so that the tag can be repaired."""
        (version,) = await self._calls.call_host(
            repository.host, lambda work: resolve_all(store, repository.path, [tag], work)
        )
        if isinstance(version, Version):
            return version.digest
        if isinstance(version, NotFound) or (isinstance(version, Refused) and version.code in DAMAGED):
            return None
        if may_be_damaged(version) and await self._find(repository, tag):
            return None
        raise version

    async def needs_write(
        self, entry: MirrorEntry, target: TargetEntry, tag: str, old: Digest, new: Manifest | Descriptor
    ) -> bool:
        """Return whether a tag must be written, because its manifest on the target lacks entries of the source.

        old: the digest of the tag on the target. new: the manifest at the source. Raises Refused (target_conflict) if
        a write would lose a part of the old manifest, and the errors of the stores."""
        if old == new.digest:
            return False
        written = self._written.get((target.repository, tag))
        if is_bundle(target.repository.host) and written is None:
            return True  # a bundle is written anew, and no other tool adds entries to it
        record = await self._find(target.repository, tag)
        source = record[1] if record is not None and record[0] == old else ""
        if source and (source == entry.name or not self._is_source(source)):
            return True
        theirs = await self._read_old(target, old, written)
        if theirs is None:
            return True
        ours = new
        if isinstance(ours, Descriptor):
            ours = await self._manifests.read(entry.source, entry.repository, ours.digest, ours.size)
        if await self._contains(ours, theirs):
            return True
        if await self._contains(theirs, ours):
            return False
        raise _conflict(entry, target.repository, tag, old, new.digest, source)

    async def check_overwrite(
        self, entry: MirrorEntry, target: TargetEntry, tag: str, old: Digest, new: Manifest
    ) -> None:
        """Raise Refused (target_conflict) if a tag of attachments, copied like other tags, must not be overwritten.

        The parameters are those of `needs_write`. Because such a tag must be equal to the tag at the source, it is also
        a conflict if the tag on the target contains more. The hint explains how to copy the tag as an attachment."""
        try:
            if await self.needs_write(entry, target, tag, old, new) or old == new.digest:
                return
            error = _conflict(entry, target.repository, tag, old, new.digest, "")
        except Refused as refused:
            if refused.code != "target_conflict":
                raise
            error = refused
        error.hint = (
            f"nothing was overwritten: delete {target.repository}:{tag} on the target to replace it, or exclude the "
            f"tag `{tag}` from this mirror, so that it is copied as an attachment of its image"
        )
        raise error

    async def _find(self, repository: Repository, tag: str) -> tuple[Digest, str] | None:
        """Return the digest that was last written under a tag, and its source, or None if these are unknown."""
        written = self._written.get((repository, tag))
        if written is not None:
            return written.digest, written.entry.name
        return await self._calls.call(lambda work: self._records.find(str(repository), tag), policy=ONCE)

    async def _read_old(self, target: TargetEntry, old: Digest, written: _Written | None) -> Manifest | None:
        """Return the manifest of a tag on a target, or None if it no longer exists or is damaged.

        written: the manifest that this run wrote under the tag, if any. In a bundle, which cannot be read before it is
        finished, the manifest is read from its source instead."""
        if written is not None and is_bundle(target.repository.host):
            return await self._manifests.read(written.entry.source, written.entry.repository, old)
        try:
            return await self._manifests.read(target.store, target.repository.path, old)
        except NotFound:
            return None
        except Refused as error:
            if error.code not in DAMAGED:
                raise
            return None

    async def _contains(self, one: Manifest, other: Manifest) -> bool:
        """Return whether a manifest contains all entries of another manifest. May read the bodies from files."""
        return await self._calls.call(lambda work: contains_entries(one, other), policy=ONCE)


def _conflict(entry: MirrorEntry, repository: Repository, tag: str, old: Digest, new: Digest, source: str) -> Refused:
    """Return the error for a tag of attachments that must not be overwritten.

    source: the source of the digest `old`; empty if unknown."""
    kind = kind_of_tag(tag)
    skip = f"`referrers: {{exclude: [{kind}]}}`" if kind else "`referrers: false`"
    if source:
        what = (
            f"{repository}:{tag} has {old}, which was copied from {source}. {entry.name} has {new}, which lacks some "
            "of its content"
        )
        hint = f"nothing was overwritten: copy the two sources to different repositories, or set {skip} for one of them"
    else:
        what = (
            f"{repository}:{tag} has {old}, and there is no record that mirror copied it. {entry.name} has {new}, "
            "which lacks some of its content"
        )
        hint = (
            f"nothing was overwritten: delete {repository}:{tag} on the target to replace it, or set {skip} for this "
            "mirror to keep it"
        )
    return Refused(what, hint=hint, code="target_conflict")
