"""The features of a scripted registry: switches for differences between real registries."""

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
    """May be changed at any time. The defaults are a strict, well-behaved registry. Sizes in bytes."""

    api_version: bool = True  # sends Docker-Distribution-Api-Version
    content_digest: bool = True  # sends Docker-Content-Digest

    # listings
    page: int | None = None  # maximum number of entries per page, whatever the client asks for
    link: bool = True  # sends a Link to the next page; without it, `last` still works
    link_form: Callable[[str], str] | None = None  # path of the next page -> value of Link
    opaque_link: bool = False  # the next page is identified by a token; `last` is ignored
    max_n: int | None = None  # a larger n gets 413
    empty_is_unknown: bool = True  # the tag listing of a repository without tags gets 404

    # manifests
    checks_references: bool = True  # everything that a manifest refers to must exist
    sparse_indexes: bool = False  # but children of an index may be missing
    media_types: tuple[str, ...] | None = None  # accepted media types; None: all
    max_manifest: int = 4 << 20
    immutable_tags: bool = False  # a tag can be written once
    schema1_for: str | None = None  # body of a schema 1 manifest for clients whose Accept lacks the v2 types
    tag_delete: bool = False
    referrers: bool = False  # the referrers API; without it clients use tags
    referrers_page: int | None = None  # maximum number of entries per page of the referrers API
    needs_subject: bool = False  # the subject of a manifest must exist

    # repositories
    needs_creation: bool = False  # uploads to a repository that was not created get NAME_UNKNOWN

    # uploads
    mounts: bool = True  # False: every mount gets 202 with an upload session
    mount_after_manifest: bool = False  # mounts only what a manifest of the other repository refers to
    locations: Callable[[str], str] | None = None  # path -> the Location to send; None: the path
    upload_prefix: str = ""  # upload sessions are under this path instead of below /v2/
    fresh_locations: bool = True  # each response has a new Location, and the old one becomes invalid
    chunks: bool = True  # accepts PATCH with Content-Range
    min_chunk: int = 0  # smaller chunks, except the last, get 400; also sent as OCI-Chunk-Min-Length
    max_chunk: int | None = None  # larger chunks get 416
    max_body: int | None = None  # larger bodies get a 413 in HTML, as from a proxy
    keeps_partial: bool = False  # the bytes of an interrupted PATCH stay in the session (distribution 3)
    empty_commit: bool = True  # False: a closing PUT without a body gets 500
    upload_status: int = 204  # status of GET for a session: 204, 400, 404, 405

    # blobs
    ranges: bool = True  # supports Range
    blob_redirect: Callable[[str], str] | None = None  # digest -> URL of a 307

    # limits of use
    quota: int | None = None  # remaining GETs of manifests (HEAD is not counted), then 429

    # authentication
    placeholder_scope: str = ""  # scope in challenges, instead of the one that is needed
    expired: Reply | None = None  # response to an expired token, instead of a challenge
