"""How a scripted registry differs from others: switches, each after something that a real registry does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.registries.exchange import Reply

V2_TYPES = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)


@dataclass(slots=True)
class Features:
    """May be changed at any time. The defaults are a strict, well-behaved registry; sizes in bytes."""

    api_version: bool = True  # sends Docker-Distribution-Api-Version
    content_digest: bool = True  # sends Docker-Content-Digest

    # listings
    page: int | None = None  # entries a page, also where the client asks for more
    link: bool = True  # says where the next page is; without it, `last` still works
    link_form: Callable[[str], str] | None = None  # path of the next page -> what Link says instead
    opaque_link: bool = False  # the next page is behind a token, `last` is not understood
    max_n: int | None = None  # a larger n is a 413
    empty_is_unknown: bool = True  # a repository without tags answers 404 to its listing

    # manifests
    checks_references: bool = True  # what a manifest names must be there
    sparse_indexes: bool = False  # but children of an index may be missing
    media_types: tuple[str, ...] | None = None  # those that are taken; None: all
    max_manifest: int = 4 << 20
    immutable_tags: bool = False  # a tag is written once
    schema1_for: str | None = None  # body of a schema 1 manifest for clients whose Accept lacks the v2 types
    tag_delete: bool = False
    referrers: bool = False  # the API; without it clients use tags

    # repositories
    needs_creation: bool = False  # uploads to a repository that was not created are NAME_UNKNOWN

    # uploads
    mounts: bool = True  # False: every mount is a 202 with a session
    mount_after_manifest: bool = False  # only what a manifest of the other repository refers to
    locations: Callable[[str], str] | None = None  # path -> the Location that is said; None: the path
    upload_prefix: str = ""  # sessions live under this path rather than below /v2/
    fresh_locations: bool = True  # each answer has a new Location, the old one is no longer good
    chunks: bool = True  # takes PATCH with Content-Range
    min_chunk: int = 0  # smaller chunks are a 400, but for the last; also said by OCI-Chunk-Min-Length
    max_chunk: int | None = None  # larger chunks are a 416
    max_body: int | None = None  # larger bodies get a 413 in HTML, from a proxy
    keeps_partial: bool = False  # what came of a PATCH that was cut stays in the session (distribution 3)
    empty_commit: bool = True  # False: a closing PUT without a body is a 500
    upload_status: int = 204  # what GET of a session answers: 204, 400, 404, 405

    # blobs
    ranges: bool = True  # honours Range
    blob_redirect: Callable[[str], str] | None = None  # digest -> URL of a 307

    # limits of use
    quota: int | None = None  # manifest GETs that are left; HEAD is free; then 429

    # authentication
    placeholder_scope: str = ""  # what challenges say rather than the scope that is needed
    expired: Reply | None = None  # the answer to an expired token, rather than a challenge
