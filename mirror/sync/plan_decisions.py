"""Decides which action is needed for one source reference on one target: copy, skip or fail."""

from __future__ import annotations

from mirror.errors import MirrorError, OtherPlatform, Refused
from mirror.oci.digest import Digest
from mirror.store import Version
from mirror.sync.plan_model import Action, PlanEntry, SourceReference, TargetEntry, wanted_platforms
from mirror.util.structs import replace


def plan_image(
    reference: SourceReference,
    target: TargetEntry,
    old: Digest | MirrorError | None,
    *,
    known_equal: Digest | None = None,
    may_have_blobs: bool = True,
    damaged: bool = False,
    repair: bool = False,
    damaged_digest: str | None = None,
    platforms: str | None = None,
) -> PlanEntry:
    """Decide which action is needed for one reference on one target, and return the plan entry.

    old: the result of looking up the tag on the target: its digest, None if the tag does not exist or may be
    overwritten, or an error.
    known_equal: the digest that an immutable tag had at the source and on the target in an earlier run. If the target
    still has this digest, the image is skipped, and `reference.version` may be None.
    may_have_blobs, damaged: see PlanEntry.
    repair: whether to copy a damaged immutable tag if the source still has the digest that the tag had on the target.
    damaged_digest: the digest that the damaged tag had, if it is known.
    platforms: if the image on the target is known to be sparse, its platforms, separated by commas."""
    version = reference.version
    if isinstance(version, Version) and version.other_platform:
        version = OtherPlatform(version.other_platform)
    if isinstance(old, MirrorError) and isinstance(version, OtherPlatform):
        old = None  # the image is not copied, so the target's error does not matter
    if isinstance(old, MirrorError):
        failed = PlanEntry(reference, target, Action.FAIL, error=old)
        repaired = _plan_repair(failed, old, damaged_digest, may_have_blobs=may_have_blobs)
        return repaired if damaged and repair else failed
    if old is not None and old == known_equal:
        return PlanEntry(reference, target, Action.SKIP, old)
    if isinstance(version, MirrorError):
        return PlanEntry(reference, target, Action.FAIL, old, error=version)
    if version is not None and old is not None and version.digest == old:
        complete = platforms in (None, wanted_platforms(reference.entry, version))
        return PlanEntry(reference, target, Action.SKIP if complete else Action.COPY, old, incomplete=not complete)
    is_unknown = isinstance(version, Version) and version.is_unknown
    if old is not None and not is_unknown and reference.entry.rules.is_immutable(target.tag_of(reference)):
        return PlanEntry(reference, target, Action.FAIL, old, error=immutable_conflict(version, old))
    return PlanEntry(reference, target, Action.COPY, old, may_have_blobs, damaged)


def _plan_repair(
    failed: PlanEntry, error: MirrorError, damaged_digest: str | None, *, may_have_blobs: bool
) -> PlanEntry:
    """Return the plan entry for a damaged immutable tag: a copy if the source has the digest that the tag had.

    Otherwise, return a failure. failed: the plan entry without a repair. error: the error of looking up the tag."""
    version = failed.reference.version
    if damaged_digest is not None and isinstance(version, Version) and version.digest == damaged_digest:
        return replace(failed, action=Action.COPY, may_have_blobs=may_have_blobs, damaged=True, error=None)
    reason = "the tag is immutable, and it is unknown whether it had the digest that the source has now"
    text = f"{error.what}; it is not replaced, because {reason}"
    conflict = error.with_text(text)
    conflict.hint = "delete the tag on the target, then run `mirror sync CONFIG`"
    return replace(failed, error=conflict)


def check_immutable(plan_entry: PlanEntry, digest: Digest) -> None:
    """Raise Refused (tag_immutable) if copying an image would change the digest of an immutable tag on the target.

    digest: the digest of the image to copy. It may have been unknown until the image was transformed."""
    old, reference = plan_entry.old_digest, plan_entry.reference
    if old is not None and old != digest and reference.entry.rules.is_immutable(plan_entry.tag):
        raise immutable_conflict(Version(digest), old)


def immutable_conflict(version: Version | None, old: Digest) -> Refused:
    """Return the error for an immutable tag whose digest at the source differs from `old`, its digest on the target."""
    source_digest = version.digest if version is not None and version.digest is not None else "a different digest"
    return Refused(
        f"the tag is immutable, but the target has {old} and the source has {source_digest}",
        hint="nothing was overwritten: find out why the tag has changed",
        code="tag_immutable",
    )
