"""What a v1 registry says: answers read and judged, without I/O.

Everything here is hostile input: ids are not content addresses, so nothing vouches for what hangs together. Sources:
docker's registry API v1; what the last servers of it really answer is in docs/old-registries.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from mirror.errors import Refused, RemoteError, printable
from mirror.oci import strictjson
from mirror.oci.strictjson import Object, Value
from mirror.registry.http.headers import WHITE_SPACE, Headers
from mirror.registry.session import Answer
from mirror.util.structs import Struct

MAX_CHAIN = 127  # images in an ancestry: what docker's storage drivers can stack
MAX_TOKEN = 8 << 10  # characters

_ID = re.compile(r"[0-9a-f]{64}")
_SHA256 = re.compile(r"sha256:([0-9a-f]{64})")
_CONTENT_RANGE = re.compile(r"(?:bytes )?(\d{1,19})-(\d{1,19})/(\d{1,19})")


class Ping(Struct, frozen=True):
    """standalone: it authorises by itself; else an index gives out tokens for it."""

    standalone: bool


class ImageJson(Struct, frozen=True):
    """The JSON of one image. raw: as it came. size: stored bytes of its layer, as announced; None: not announced.

    checksums: in hex, of the raw JSON, a line end and the stored layer; several: one of them has to fit."""

    id: str
    parent: str | None
    raw: bytes
    document: Object
    size: int | None
    checksums: tuple[str, ...]


def invalid(what: str, why: str, hint: str = "") -> Refused:
    return Refused(f"{what}: {why}", code="v1_invalid", hint=hint)


def check_id(text: object, what: str) -> str:
    """An image id, fit for URLs and paths. Raises Refused."""
    if isinstance(text, str) and _ID.fullmatch(text):
        return text
    raise invalid(what, f"not an image id: {printable(text, 80)!r}")


def ping_of(answer: Answer) -> Ping | None:
    """What a ping's answer says; None: this is not what a v1 registry answers.

    The registries answer `true`, `{}`, `"pong"` or `pong`, with or without headers of their own; a web site that
    answers everything with a page is none."""
    headers = answer.headers
    named = "x-docker-registry-version" in headers or "x-docker-registry-standalone" in headers
    body: Value = None
    try:
        body = strictjson.parse(answer.body, what="a ping")
        known = body is True or isinstance(body, str | dict)
    except Refused:
        known = answer.body.strip() == b"pong"
    if answer.status != 200 or not (named or known):
        return None
    said = (headers.get("x-docker-registry-standalone") or "").lower()
    if said:
        return Ping(said in ("true", "1"))
    standalone = body.get("standalone") if isinstance(body, dict) else None
    return Ping(standalone if isinstance(standalone, bool) else True)


def is_index(answer: Answer) -> bool:
    """Whether an answer to the list of a repository's images is one: a JSON list of objects with ids."""
    try:
        images = strictjson.parse(answer.body, what="a list of images", fold=False)
    except Refused:
        return False
    return isinstance(images, list) and all(isinstance(one, dict) and "id" in one for one in images)


def token_of(headers: Headers) -> str | None:
    """The token that was asked for. Some send it with the word that is to stand before it, most without."""
    token = (headers.get("x-docker-token") or "").removeprefix("Token ").strip(WHITE_SPACE)
    return token if token and len(token) <= MAX_TOKEN and token.isascii() and token.isprintable() else None


def endpoints_of(headers: Headers) -> list[str]:
    """Hosts, in the order in which they are to be asked."""
    hosts = (host.strip(WHITE_SPACE) for value in headers.all("x-docker-endpoints") for host in value.split(","))
    return [host for host in hosts if host]


def tags_of(body: bytes, what: str) -> dict[str, Value]:
    """Tag -> image id, both unchecked. Raises Refused, RemoteError (not a map of tags)."""
    document = strictjson.parse(body, what=what, code="v1_invalid", fold=False)
    if isinstance(document, dict):
        return document
    # The index of docker's own hub answered so, with ids cut short: those are refused one by one.
    if isinstance(document, list):
        pairs = [(one.get("name"), one.get("layer")) for one in document if isinstance(one, dict)]
        tags = {name: layer for name, layer in pairs if isinstance(name, str)}
        if len(tags) == len(document):
            return tags
        if len(pairs) == len(document):
            raise invalid(what, "a name that is no text, or stands there twice")
    raise RemoteError(f"{what} is no map of tags")


def chain_of(body: bytes, image_id: str, what: str) -> tuple[str, ...]:
    """The ancestry of an image: itself first, the base last. Raises Refused."""
    document = strictjson.parse(body, what=what, code="v1_invalid")
    if not isinstance(document, list) or not document:
        raise invalid(what, "want a list of image ids")
    if len(document) > MAX_CHAIN:
        raise invalid(what, f"{len(document)} images, more than {MAX_CHAIN}")
    chain = tuple(check_id(one, what) for one in document)
    if chain[0] != image_id:
        raise invalid(what, f"it begins with {chain[0]}, not with the image itself")
    if len(set(chain)) != len(chain):
        raise invalid(what, "an image is its own ancestor")
    return chain


def image_of(answer: Answer, image_id: str, what: str) -> ImageJson:
    """The JSON of an image, its id and parent checked. Raises Refused."""
    document = image_document(answer.body, what)
    if document.get("id") != image_id:
        raise invalid(what, f"it says that it is {printable(document.get('id'), 80)!r}")
    size = answer.headers.get("x-docker-size") or ""
    return ImageJson(
        image_id,
        parent_of(document, what),
        answer.body,
        document,
        int(size) if size.isascii() and size.isdigit() and len(size) < 19 else None,
        checksums_of(answer.headers),
    )


# Keys that decide what the image is: one that differs from them by case only is read as them by some.
_DECIDING = frozenset({"id", "parent", "rootfs", "history"})


def image_document(raw: bytes, what: str) -> Object:
    """The JSON of an image as an object. Raises Refused."""
    document = strictjson.parse(raw, what=what, code="v1_invalid", fold=False)
    if not isinstance(document, dict):
        raise invalid(what, "want an object")
    strictjson.refuse_look_alikes(document, _DECIDING, where=what)
    return document


def parent_of(document: Object, what: str) -> str | None:
    """None: it is a base. Raises Refused."""
    parent = document.get("parent")
    if parent in (None, ""):
        return None
    if parent == document.get("id"):
        raise invalid(what, "an image is its own parent")
    return check_id(parent, f"{what}: parent")


def checksums_of(headers: Headers) -> tuple[str, ...]:
    """Those of the form that covers JSON and layer as they are stored; tarsums and others are of no use here."""
    words = [word.strip(WHITE_SPACE) for value in headers.all("x-docker-checksum-payload") for word in value.split(",")]
    return tuple(found[1] for word in words if (found := _SHA256.fullmatch(word)))


def ranged(headers: Headers, offset: int, size: int) -> bool:
    """Whether a 206 is what was asked for: from `offset` to the last of `size` bytes.

    docker-registry leaves out the unit."""
    values: Sequence[str] = headers.all("content-range")
    found = _CONTENT_RANGE.fullmatch(values[0]) if len(values) == 1 else None
    return found is not None and (int(found[1]), int(found[2]), int(found[3])) == (offset, size - 1, size)
