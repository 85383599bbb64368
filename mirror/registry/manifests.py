"""Reads manifests from a registry, and resolves references to digests."""

from __future__ import annotations

import threading
from contextlib import nullcontext

from mirror.errors import AuthError, MirrorError, NotFound, RateLimited, Refused, RemoteError
from mirror.oci.digest import Digest
from mirror.oci.manifest import ACCEPTED, MAX_BYTES, Kind, Manifest, manifest_too_big_error, parse_manifest, plain_type
from mirror.registry.auth.authorizer import Scope
from mirror.registry.session import Response, Session, TooBig
from mirror.store import Version
from mirror.util.cancellation import Work

# Manifests larger than this are parsed one at a time, because parsing takes several times their size in memory. If such
# a manifest is read only for its digest, it is not kept in memory, and is read again when it is copied.
LARGE_MANIFEST = 64 << 10  # bytes
_parse_lock = threading.Lock()

# Registry 2.3 and 2.4 compare whole Accept lines, so each type has its own line.
_ACCEPT = tuple(("Accept", media_type) for media_type in ACCEPTED)


def manifest_name(session: Session, repository: str, reference: str) -> str:
    """Return the full name of a manifest for messages, such as `host/repository:tag` or `host/repository@digest`."""
    return f"{session.settings.host}/{repository}{'@' if ':' in reference else ':'}{reference}"


def resolve_reference(
    session: Session, repository: str, reference: str, scopes: tuple[Scope, ...], work: Work
) -> Version | MirrorError:
    """Return the version that a reference refers to, or an error that concerns only this reference.

    Sends a HEAD request and, if its response has no digest, a GET request. Errors that concern the whole repository or
    host are raised."""
    try:
        response = session.call(
            "HEAD",
            f"/v2/{repository}/manifests/{reference}",
            work,
            kind="manifest",
            scopes=scopes,
            headers=_ACCEPT,
            expect={200, 404, 405, 501},
        )
        if response.status == 404:
            return NotFound(f"{manifest_name(session, repository, reference)} does not exist", status=404)
        digest = content_digest(response)
        if response.status == 200 and digest is not None:
            return Version(digest, media_type=plain_type(response.headers.get("content-type") or ""))
        # The registry does not support HEAD, or sends no digest: compute the digest from the body.
        manifest = read_manifest(session, repository, reference, scopes, work)
        manifest_to_keep = manifest if manifest.size <= LARGE_MANIFEST else None
        return Version(manifest.digest, manifest_to_keep, media_type=manifest.media_type)
    except (NotFound, Refused) as error:
        return error
    except AuthError as error:
        if error.code == "auth_denied":
            return error
        raise
    except RemoteError as error:
        if error.status is None or isinstance(error, RateLimited):
            raise
        return error


def read_manifest(session: Session, repository: str, reference: str, scopes: tuple[Scope, ...], work: Work) -> Manifest:
    """Fetch a manifest and verify its digest.

    If the digest is wrong, the manifest is requested once more, in case a cache returned a damaged copy. Raises
    NotFound if the manifest does not exist, and Refused (digest_mismatch, manifest_invalid) if it is invalid."""
    try:
        return _get_manifest(session, repository, reference, scopes, work)
    except Refused as error:
        if error.code != "digest_mismatch":
            raise
        return _get_manifest(session, repository, reference, scopes, work)


def _get_manifest(session: Session, repository: str, reference: str, scopes: tuple[Scope, ...], work: Work) -> Manifest:
    """Request a manifest once, and verify its digest."""
    expected = Digest.parse(reference) if ":" in reference else None
    what = manifest_name(session, repository, reference)
    try:
        response = session.call(
            "GET",
            f"/v2/{repository}/manifests/{reference}",
            work,
            kind="manifest",
            scopes=scopes,
            headers=_ACCEPT,
            expect={200, 404},
            limit=MAX_BYTES,
        )
    except TooBig as error:
        raise manifest_too_big_error(what) from error
    if response.status == 404:
        raise NotFound(f"{what} does not exist", status=404)
    content_type = response.headers.get("content-type") or ""
    with _parse_lock if len(response.body) > LARGE_MANIFEST else nullcontext():
        manifest = parse_manifest(response.body, content_type, expected=expected, what=what)
    reported = content_digest(response)
    if reported is not None and reported.algorithm == manifest.digest.algorithm and reported != manifest.digest:
        text = f"{what}: the body has the digest {manifest.digest}, but Docker-Content-Digest is {reported}"
        is_resigned = manifest.kind is Kind.SCHEMA1 and reported == Digest.of(response.body)
        hint = "this registry does not support schema 1: push the image again as schema 2" if is_resigned else ""
        raise Refused(text, hint=hint, code="digest_mismatch")
    return manifest


def content_digest(response: Response) -> Digest | None:
    """Return the digest in the Docker-Content-Digest header, or None if it is missing or invalid."""
    reported = response.headers.get_all("docker-content-digest")
    try:
        return Digest.parse(reported[0]) if len(reported) == 1 else None
    except Refused:
        return None
