"""Parses and checks the responses of a v1 registry. This module does no I/O.

All input is untrusted. Image ids are not digests, so nothing proves that responses belong together. Sources: Docker's
registry API v1; docs/old-registries.md for the responses of the last v1 servers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mirror.errors import Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.strictjson import Object, Value
from mirror.registry.http.headers import WHITE_SPACE, Headers
from mirror.registry.session import Response
from mirror.util.structs import Struct

MAX_CHAIN = 127  # images in an ancestry; Docker's storage drivers support no more layers
MAX_TOKEN = 8 << 10  # characters

_ID = re.compile(r"[0-9a-f]{64}")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,19})-(\d{1,19})/(\d{1,19})")


class PingResponse(Struct, frozen=True):
    """The response to a v1 ping.

    standalone: whether the registry authorizes requests itself. Otherwise a separate index issues tokens."""

    standalone: bool


class ImageJson(Struct, frozen=True):
    """The JSON document of one v1 image, with the size and checksums that the registry declares for its layer.

    raw: the received bytes. size: the declared size of the stored layer in bytes; None if none was declared.
    checksums: sha256 values in hex, each over the raw JSON, a line feed and the stored layer. One of them must
    match."""

    id: str
    parent: str | None
    raw: bytes
    document: Object
    size: int | None
    checksums: tuple[str, ...]


def invalid_error(what: str, why: str, hint: str = "") -> Refused:
    """Return the error for a response that violates the v1 protocol (v1_invalid)."""
    return Refused(f"{what}: {why}", code="v1_invalid", hint=hint)


def check_id(text: object, what: str) -> str:
    """Return `text` if it is a valid image id, which is safe in URLs and paths. Raises Refused if it is not."""
    if isinstance(text, str) and _ID.fullmatch(text):
        return text
    raise invalid_error(what, f"{printable(text, 80)!r} is not an image id")


def parse_ping(response: Response) -> PingResponse | None:
    """Parse the response to a v1 ping. Return None if v1 registries do not send such a response.

    v1 registries respond with `true`, `{}`, `"pong"` or `pong`, with or without v1 headers. A web site that answers
    every request with a page is not a v1 registry."""
    headers = response.headers
    has_header = "x-docker-registry-version" in headers or "x-docker-registry-standalone" in headers
    body: Value = None
    try:
        body = strictjson.parse(response.body, what="a ping")
        is_known_body = body is True or isinstance(body, str | dict)
    except Refused:
        is_known_body = response.body.strip() == b"pong"
    if response.status != 200 or not (has_header or is_known_body):
        return None
    standalone_header = (headers.get("x-docker-registry-standalone") or "").lower()
    if standalone_header:
        return PingResponse(standalone_header in ("true", "1"))
    standalone = body.get("standalone") if isinstance(body, dict) else None
    return PingResponse(standalone if isinstance(standalone, bool) else True)


def is_index_response(response: Response) -> bool:
    """Return whether the body has the form that an index sends: a JSON list of objects that each have an `id`."""
    try:
        images = strictjson.parse(response.body, what="a list of images", fold=False)
    except Refused:
        return False
    return isinstance(images, list) and all(isinstance(item, dict) and "id" in item for item in images)


def parse_token(headers: Headers) -> str | None:
    """Return the token from the headers of an index response, or None if there is no valid token.

    The prefix `Token `, which some servers add, is removed."""
    token = (headers.get("x-docker-token") or "").removeprefix("Token ").strip(WHITE_SPACE)
    return token if token and len(token) <= MAX_TOKEN and token.isascii() and token.isprintable() else None


def parse_endpoints(headers: Headers) -> list[str]:
    """Return the hosts that serve a repository according to the index, in the order of the header."""
    hosts = (host.strip(WHITE_SPACE) for value in headers.get_all("x-docker-endpoints") for host in value.split(","))
    return [host for host in hosts if host]


def parse_tags(body: bytes, what: str) -> dict[str, Value]:
    """Return the image id for each tag in a tag list. Neither tags nor ids are validated.

    Raises Refused if the JSON is invalid or a tag is repeated, RemoteError if the JSON is not a map or list of tags."""
    document = strictjson.parse(body, what=what, code="v1_invalid", fold=False)
    if isinstance(document, dict):
        return document
    # Docker Hub's index returned a list of tags with truncated ids. Each of these ids is rejected later.
    if isinstance(document, list):
        pairs = [(item.get("name"), item.get("layer")) for item in document if isinstance(item, dict)]
        tags = {name: layer for name, layer in pairs if isinstance(name, str)}
        if len(tags) == len(document):
            return tags
        if len(pairs) == len(document):
            raise invalid_error(what, "a tag is not a string or is repeated")
    raise RemoteError(f"{what} is not a map of tags to image ids")


def parse_ancestry(body: bytes, image_id: str, what: str) -> tuple[str, ...]:
    """Return the ids of an image and its ancestors, with the base image last. Raises Refused if they are invalid."""
    document = strictjson.parse(body, what=what, code="v1_invalid")
    if not isinstance(document, list) or not document:
        raise invalid_error(what, "the response is not a list of image ids")
    if len(document) > MAX_CHAIN:
        raise invalid_error(what, f"the ancestry has {len(document)} images, more than the limit of {MAX_CHAIN}")
    chain = tuple(check_id(item, what) for item in document)
    if chain[0] != image_id:
        raise invalid_error(what, f"the ancestry begins with {chain[0]}, not with the image itself")
    if len(set(chain)) != len(chain):
        raise invalid_error(what, "an image is its own ancestor")
    return chain


def parse_image(response: Response, image_id: str, what: str) -> ImageJson:
    """Parse the JSON of an image, and check its id and parent. Raises Refused if they are invalid."""
    document = parse_image_json(response.body, what)
    if document.get("id") != image_id:
        text = f"the JSON has the id {printable(document.get('id'), 80)!r}, which is not the id of this image"
        raise invalid_error(what, text)
    size = response.headers.get("x-docker-size") or ""
    return ImageJson(
        image_id,
        parse_parent(document, what),
        response.body,
        document,
        int(size) if size.isascii() and size.isdigit() and len(size) < 19 else None,
        parse_checksums(response.headers),
    )


# Keys that identify an image. Some parsers ignore case, so a key that differs from these only in case is an error.
_IDENTITY_KEYS = frozenset({"id", "parent", "rootfs", "history"})


def parse_image_json(raw: bytes, what: str) -> Object:
    """Parse the JSON of an image. Raises Refused if it is not a JSON object, or is ambiguous."""
    document = strictjson.parse(raw, what=what, code="v1_invalid", fold=False)
    if not isinstance(document, dict):
        raise invalid_error(what, "the response is not a JSON object")
    strictjson.refuse_look_alikes(document, _IDENTITY_KEYS, where=what)
    return document


def parse_parent(document: Object, what: str) -> str | None:
    """Return the id of an image's parent, or None for a base image. Raises Refused if the id is invalid."""
    parent = document.get("parent")
    if parent in (None, ""):
        return None
    if parent == document.get("id"):
        raise invalid_error(what, "an image is its own parent")
    return check_id(parent, f"{what}: invalid parent")


def parse_checksums(headers: Headers) -> tuple[str, ...]:
    """Return the sha256 checksums that the headers declare, in hex. Other kinds, such as tarsum, are ignored."""
    words = [
        word.strip(WHITE_SPACE) for value in headers.get_all("x-docker-checksum-payload") for word in value.split(",")
    ]
    return tuple(match[1] for word in words if (match := _SHA256.fullmatch(word)))


def is_requested_range(headers: Headers, offset: int, size: int) -> bool:
    """Return whether a 206 response contains the requested range: from byte `offset` to the end of the layer.

    `size` is the size of the layer in bytes. docker-registry omits the unit `bytes` in Content-Range."""
    values: Sequence[str] = headers.get_all("content-range")
    match = _CONTENT_RANGE.fullmatch(values[0]) if len(values) == 1 else None
    return match is not None and (int(match[1]), int(match[2]), int(match[3])) == (offset, size - 1, size)
