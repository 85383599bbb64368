"""Interprets errors from a target that rejects a mount or a manifest, and adds hints."""

from __future__ import annotations

from mirror.errors import AuthError, MirrorError, RateLimited, Refused, RemoteError, SparseRefused
from mirror.oci.manifest import Kind, Manifest
from mirror.store import Mount

_MISSING_CODES = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}


SPARSE_HINT = "set `index: rewrite` for this mirror, or copy all platforms"
_MAYBE_SPARSE_HINT = f"the target may require all manifests that an index lists: {SPARSE_HINT}"
SCHEMA1_HINT = "if the target does not support schema 1, set `schema1: convert` for this mirror"
_FOREIGN_HINT = (
    "the target may reject non-distributable layers: "
    "for docker-registry, allow their URLs in `validation.manifests.urls.allow`"
)
_TOO_BIG_PHRASE = "body too large"  # in the message that docker-registry sends with a 400
_IMMUTABLE_PHRASES = ("immutable", "cannot be overwritten", "cannot overwrite tag")


# Statuses that apply to all mounts between two repositories: not implemented, or not allowed. Harbor responds with
# 401 for an unknown project, Docker Hub with 400 for names of more than two parts (google/go-containerregistry#1741).
_NO_MOUNT_STATUSES = frozenset({400, 401, 403, 404, 405, 410, 501})
_BLOB_CODES = frozenset(
    {"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID"}
)


def classify_mount_error(error: RemoteError) -> Mount:
    """Return the outcome of a mount that failed with a permanent error.

    The outcome is REFUSED if the error concerns all mounts between the two repositories, and ABSENT if it concerns only
    this blob."""
    concerns_repositories = error.status in _NO_MOUNT_STATUSES and error.registry_code not in _BLOB_CODES
    return Mount.REFUSED if concerns_repositories else Mount.ABSENT


def explain_manifest_error(error: RemoteError, what: str, manifest: Manifest, *, sparse: bool = False) -> MirrorError:
    """Return the error to report for a rejected manifest, with a specific code and a hint.

    sparse: whether the manifest is an index of which some child manifests are left out of the target on purpose."""
    if error.status in (400, 404) and error.registry_code in _MISSING_CODES and sparse:
        return SparseRefused(
            f"{what}: the target rejects an index that lists manifests missing on the target: {error.what}",
            hint=SPARSE_HINT,
            status=error.status,
            registry_code=error.registry_code,
        )
    if error.status in (400, 404) and error.registry_code in _MISSING_CODES:
        return RemoteError(
            f"{what}: the target lacks a blob or manifest that the pushed manifest refers to: {error.what}",
            code="blob_missing",
            status=error.status,
            registry_code=error.registry_code,
        )
    if error.status == 400 and error.registry_code == "DIGEST_INVALID":
        # The right bytes were sent: docker-registry read a child manifest that was still being written
        # (docs/compatibility.md).
        return RemoteError(
            f"{what}: the target reports that the received bytes do not match the digest: {error.what}",
            hint="if this error persists, a proxy in front of the target may be modifying the data",
            code=error.code,
            status=400,
            registry_code=error.registry_code,
            retryable=True,
        )
    message = error.what.partition(": ")[2].lower()  # without the URL, because a name in it may contain any word
    if error.status == 413 or (error.status == 400 and _TOO_BIG_PHRASE in message):
        return RemoteError(
            f"{what}: the manifest of {manifest.size} bytes is too large for the target",
            code="manifest_too_big",
            status=error.status,
        )
    # The text of a server error may contain a path, in which a name may contain any word.
    if (error.status or 0) < 500 and any(words in message for words in _IMMUTABLE_PHRASES):
        return Refused(
            f"{what} cannot be overwritten on the target: {error.what}",
            hint="tags are immutable on the target: push under another tag, or allow the target to overwrite tags",
            code="tag_immutable",
            status=error.status,
        )
    if error.status is not None and not isinstance(error, AuthError | RateLimited):
        if manifest.kind is Kind.SCHEMA1:
            error.hint = error.hint or SCHEMA1_HINT
        elif sparse:
            error.hint = error.hint or _MAYBE_SPARSE_HINT
        elif any(blob.foreign for blob in manifest.blobs):
            error.hint = error.hint or _FOREIGN_HINT
    return error.with_subject(what)


def may_be_stored(refusal: MirrorError) -> bool:
    """Return whether a target that rejects a manifest may already have stored it.

    This happens if the response to an earlier PUT was lost. Return False if the manifest was rejected because of the
    credentials, a rate limit, a missing blob or its size, or if a retry may help."""
    if refusal.code in ("auth_failed", "rate_limited", "blob_missing", "manifest_too_big") or refusal.retryable:
        return False
    return refusal.status is not None and 400 <= refusal.status < 500
