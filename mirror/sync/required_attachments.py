"""Checks that images have the attachments that `referrers.require` names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from mirror.errors import Refused
from mirror.oci.digest import Digest
from mirror.oci.referrers import is_attachment_tag
from mirror.selection.attachment_rules import AttachmentRules
from mirror.signatures.discovery import has_image_layers
from mirror.store import Version
from mirror.sync.attachment_subjects import SubjectReader
from mirror.sync.image_lock import LockedAttachment
from mirror.sync.locked_attachments import read_locked_names
from mirror.sync.manifest_graph import ManifestCache
from mirror.sync.plan_model import MirrorEntry, SourceReference, selected_platforms
from mirror.transfer.calls import Calls
from mirror.util.retry_policy import ONCE


async def find_missing_locked(
    manifests: ManifestCache,
    entry: MirrorEntry,
    attachments: Iterable[LockedAttachment],
    root: Digest,
    read_subjects: SubjectReader,
) -> str:
    """Return the first name in `referrers.require` that no attachment of a locked image has, or an empty string.

    root: the root manifest that targets get. Raises the errors of the stores."""
    rules = entry.attachments or AttachmentRules()
    if not rules.require:
        return ""
    names: defaultdict[Digest, list[frozenset[str]]] = defaultdict(list)
    for one in attachments:
        names[one.subject].append(await read_locked_names(manifests, entry, one))
    if not rules.missing(names[root], []):
        return ""
    subjects = await read_subjects()
    return rules.missing(names[root], [names[digest] for digest in subjects.platforms])


async def check_required(
    calls: Calls, manifests: ManifestCache, reference: SourceReference, digest: Digest, missing: str
) -> None:
    """Raise Refused (not_found) if an image lacks a required attachment.

    digest: the root manifest that targets get. missing: a required name that no attachment has, or an empty string.
    Signatures and other documents that the rules for tags select need no attachments of their own."""
    if not missing or await _is_attachment(calls, manifests, reference, digest):
        return
    version, where = reference.version, "at the source"
    platforms = selected_platforms(reference.entry, version)
    hint = "attach it to the image, or to the image of each platform, or change `referrers.require`"
    if isinstance(version, Version) and version.transform is not None:
        hint = "an image that is converted gets no attachments: change `referrers.require` for this mirror"
    elif platforms is not None and not platforms.sparse:
        where = "for the platforms that are copied"
        hint = (
            "attach it to the image of each platform, because the mirror writes a smaller index, without the "
            "attachments of the index at the source; or set `index: sparse`, or change `referrers.require`"
        )
    what = f"{reference.name} has no {missing} {where}, but the configuration requires one"
    raise Refused(what, hint=hint, code="not_found")


async def _is_attachment(calls: Calls, manifests: ManifestCache, reference: SourceReference, digest: Digest) -> bool:
    """Return whether a reference that the rules for tags select is a signature or another document, not an image.

    The name of the tag is not sufficient, because `referrers.require` also applies to an image under such a tag."""
    if not is_attachment_tag(reference.tag):
        return False
    graph = await manifests.read_graph(reference.entry.source, reference.entry.repository, digest)
    return not await calls.call(lambda work: has_image_layers(graph.manifests()), policy=ONCE)
