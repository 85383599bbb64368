"""What it means that a target refuses a mount or a manifest, in terms of what can be done about it."""

from __future__ import annotations

from mirror.errors import AuthError, MirrorError, RateLimited, Refused, RemoteError
from mirror.oci.manifest import Kind, Manifest
from mirror.store import Mount

_MISSING = {"MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_UNKNOWN"}


SCHEMA1 = "if the target does not know schema 1: set `schema1: convert` for this mirror"
_FOREIGN = (
    "if the target does not want layers that are to be had elsewhere: "
    "docker-registry allows their URLs by `validation.manifests.urls.allow`"
)
_TOO_BIG = "body too large"  # docker-registry's 400
_IMMUTABLE = ("immutable", "cannot be overwritten", "cannot overwrite tag")


# A mount is refused once for all: not implemented, or not for us. Harbor answers 401 for a project that it does not
# know, Docker Hub 400 for names of more than two parts (google/go-containerregistry#1741).
_NO_MOUNTS = frozenset({400, 401, 403, 404, 405, 410, 501})
_OF_THE_BLOB = frozenset(
    {"BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID"}
)


def refused_mount(error: RemoteError) -> Mount:
    """What an error that a retry does not help against says of a mount: of the blob, or of the two repositories."""
    about_both = error.status in _NO_MOUNTS and error.registry_code not in _OF_THE_BLOB
    return Mount.REFUSED if about_both else Mount.ABSENT


def refused_manifest(error: RemoteError, what: str, manifest: Manifest) -> MirrorError:
    """The refusal of a manifest, in terms of what can be done about it."""
    if error.status in (400, 404) and error.registry_code in _MISSING:
        return RemoteError(
            f"{what} was refused: the target lacks what it refers to: {error.what}",
            code="blob_missing",
            status=error.status,
            registry_code=error.registry_code,
        )
    if error.status == 400 and error.registry_code == "DIGEST_INVALID":
        # Ours are the right bytes: docker-registry reads a child that is being written (docs/compatibility.md).
        return RemoteError(
            f"{what}: the target says that other bytes arrived than were sent: {error.what}",
            hint="something between here and the target changes bytes, if that goes on",
            code=error.code,
            status=400,
            registry_code=error.registry_code,
            retryable=True,
        )
    said = error.what.partition(": ")[2].lower()  # without the URL: names may hold any word
    if error.status == 413 or (error.status == 400 and _TOO_BIG in said):
        return RemoteError(
            f"{what}: {manifest.size} bytes are too many for the target", code="manifest_too_big", status=error.status
        )
    # The detail of a server error may have a path, and so any name, in it.
    if (error.status or 0) < 500 and any(words in said for words in _IMMUTABLE):
        return Refused(
            f"{what} cannot be overwritten on the target: {error.what}",
            hint="the target keeps tags immutable",
            code="tag_immutable",
            status=error.status,
        )
    if error.status is not None and not isinstance(error, AuthError | RateLimited):
        if manifest.kind is Kind.SCHEMA1:
            error.hint = error.hint or SCHEMA1
        elif any(blob.foreign for blob in manifest.blobs):
            error.hint = error.hint or _FOREIGN
    return error.about(what)


def may_be_there(refusal: MirrorError) -> bool:
    """Whether a manifest may be on the target although the target refuses it: an earlier PUT of it was not answered.

    Not where the refusal is about credentials, a limit, a blob or the size, nor where another attempt may help."""
    if refusal.code in ("auth_failed", "rate_limited", "blob_missing", "manifest_too_big") or refusal.retryable:
        return False
    return refusal.status is not None and 400 <= refusal.status < 500
