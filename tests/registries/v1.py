"""The v1 protocol of the scripted registry: a standalone registry, or one with an index that issues tokens.

It answers like docker-registry 0.9.1, including its errors about ranges, statuses and empty layers
(docs/old-registries.md). `V1` has the options in which other servers differ.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.registries.exchange import Reply, Request, json_reply

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_ID = re.compile(r"[0-9a-f]{16}(?:[0-9a-f]{48})?")


@dataclass(slots=True)
class Image:
    """checksum: value of X-Docker-Checksum-Payload; None: not sent. size: value of X-Docker-Size."""

    json: bytes
    layer: bytes
    parent: str | None = None
    checksum: str | None = None
    size: int | None = None
    uploading: bool = False


@dataclass(slots=True)
class V1:
    """The content and the behaviour of the server; may be changed at any time."""

    images: dict[str, Image] = field(default_factory=dict)
    tags: dict[str, dict[str, Any]] = field(default_factory=dict)  # repository -> tag -> id
    standalone: bool = True
    users: dict[str, str] = field(default_factory=dict)  # name -> password
    tokens: bool = False  # the index issues tokens, which every request needs
    token_word: bool = False  # they are sent with the word `Token`, as docker-registry does
    endpoints: Sequence[str] = ()  # X-Docker-Endpoints
    cookie: str = ""  # set by the index, required by everything else
    ping: Reply = field(default_factory=lambda: json_reply(200, {}, ("X-Docker-Registry-Version", "0.9.1")))
    index: bool = True  # has the list of images of a repository
    unknown_is_empty: bool = False  # tags of an unknown repository: 200 {}, as the Go and Node servers answer
    library: bool = True  # `app` and `library/app` are one repository
    ranges: bool = True
    ancestries: dict[str, Any] = field(default_factory=dict)  # id -> a false value to send instead
    raw_tags: bytes | None = None  # sent instead of the list of tags

    # ---- filling it

    def image(
        self, layer: bytes = b"", parent: str | None = None, *, seed: str = "", checksum: bool = True, **more: Any
    ) -> str:
        """Add an image; return its id."""
        number = len(self.images)
        image_id = hashlib.sha256(f"{seed}/{number}/{parent}".encode()).hexdigest()
        document: dict[str, Any] = {
            "id": image_id,
            "created": f"2014-03-{number % 28 + 1:02}T10:00:00.123456789Z",
            "container_config": {"Cmd": ["/bin/sh", "-c", f"#(nop) ADD file {number}"]},
            "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
            "architecture": "amd64",
            "os": "linux",
            "docker_version": "1.5.0",
            "Size": 1234,
        }
        document |= {"parent": parent} if parent else {}
        raw = json.dumps({key: value for key, value in (document | more).items() if value is not ...}).encode()
        said = hashlib.sha256(raw + b"\n" + layer).hexdigest()
        self.images[image_id] = Image(raw, layer, parent, f"sha256:{said}" if checksum else None, len(layer))
        return image_id

    def chain(self, *layers: bytes, seed: str = "") -> list[str]:
        """Add images, each on top of the one before; return their ids, the base first."""
        ids: list[str] = []
        for layer in layers:
            ids.append(self.image(layer, ids[-1] if ids else None, seed=seed))
        return ids

    def tag(self, repository: str, **tags: str) -> None:
        self.tags.setdefault(repository, {}).update(tags)

    def token(self, repository: str) -> str:
        return f'signature={hashlib.sha256(repository.encode()).hexdigest()[:16]},repository="{repository}",access=read'

    # ---- answering

    def __call__(self, request: Request) -> Reply:
        parts = request.path.removeprefix("/v1/").split("/")
        if parts == ["_ping"]:
            return self.ping
        if parts[0] == "repositories" and parts[-1] == "images" and len(parts) in (3, 4):
            return self._images("/".join(parts[1:-1]), request)
        if refused := self._refused(request):
            return refused
        if parts[0] == "repositories" and parts[-1] == "tags" and len(parts) in (3, 4):
            return self._tags("/".join(parts[1:-1]))
        if parts[0] == "images" and len(parts) == 3:
            return self._image(parts[1], parts[2], request)
        return json_reply(200, "OK") if parts == ["users", ""] else _no_page()

    def _login(self, request: Request) -> bool:
        scheme, _, said = (request.header("Authorization") or "").partition(" ")
        if scheme != "Basic":
            return False
        name, _, password = base64.b64decode(said).decode().partition(":")
        return name in self.users and self.users[name] == password

    def _refused(self, request: Request) -> Reply | None:
        if self.cookie and self.cookie not in (request.header("Cookie") or "").split("; "):
            return _error(401, "Requires authorization", ("WWW-Authenticate", "Token"))
        if self.tokens:
            said = (request.header("Authorization") or "").removeprefix("Token ")
            good = {self.token(name) for name in self.tags}
            if said not in good:
                return _error(401, "Requires authorization", ("WWW-Authenticate", "Token"))
            return None
        if self.users and not self._login(request):
            return _error(401, "Requires authorization", ("WWW-Authenticate", 'Basic realm="v1"'))
        return None

    def _images(self, name: str, request: Request) -> Reply:
        if not self.index:
            return _no_page()
        if self.users and not self._login(request):
            return _error(401, "Requires authorization", ("WWW-Authenticate", 'Basic realm="v1"'))
        tags = self._named(name)
        if tags is None and not self.unknown_is_empty:
            return _error(404, "images not found")
        headers: list[tuple[str, str]] = []
        if request.header("X-Docker-Token") and self.tokens:
            token = self.token(name)
            headers.append(("X-Docker-Token", f"Token {token}" if self.token_word else token))
        if self.endpoints:
            headers.append(("X-Docker-Endpoints", ", ".join(self.endpoints)))
        if self.cookie:
            headers.append(("Set-Cookie", f"{self.cookie}; Path=/; HttpOnly"))
        return json_reply(200, [{"id": one} for one in dict.fromkeys(map(str, (tags or {}).values()))], *headers)

    def _named(self, name: str) -> Mapping[str, Any] | None:
        if name in self.tags or not self.library:
            return self.tags.get(name)
        return self.tags.get(name.removeprefix("library/"), self.tags.get(f"library/{name}"))

    def _tags(self, name: str) -> Reply:
        if self.raw_tags is not None:
            return Reply(200, (("Content-Type", "application/json"),), self.raw_tags)
        tags = self._named(name)
        if tags is None:
            return json_reply(200, {}) if self.unknown_is_empty else _error(404, "Repository not found")
        return json_reply(200, tags)

    def _image(self, image_id: str, part: str, request: Request) -> Reply:
        if not _ID.fullmatch(image_id):
            return _error(404, "Invalid image ID")
        image = self.images.get(image_id)
        if image is None:
            return _error(404, "Image not found")
        if image.uploading:
            return _error(400, "Image is being uploaded, retry later")
        if part == "ancestry":
            return json_reply(200, self.ancestries.get(image_id, self._ancestry(image_id)))
        if part == "json":
            headers = [("X-Docker-Size", str(image.size))] if image.size is not None else []
            headers += [("X-Docker-Checksum-Payload", image.checksum)] if image.checksum is not None else []
            return Reply(200, (("Content-Type", "application/json"), *headers), image.json)
        return self._layer(image.layer, request) if part == "layer" else _error(404, "Not found")

    def _ancestry(self, image_id: str) -> list[str]:
        chain = [image_id]
        while (image := self.images.get(chain[-1])) and image.parent:
            chain.append(image.parent)
        return chain

    def _layer(self, data: bytes, request: Request) -> Reply:
        headers: tuple[tuple[str, str], ...] = (("Content-Type", "application/octet-stream"),)
        if self.ranges:
            headers += (("Accept-Ranges", "bytes"),)
            if not data:
                return Reply(416, headers)  # a layer of no bytes, whatever range is requested
            asked = _RANGE.fullmatch(request.header("Range") or "")
            if asked:
                return self._ranged(data, int(asked[1]), asked[2], headers)
        return Reply(200, headers, data)

    @staticmethod
    def _ranged(data: bytes, first: int, last: str, headers: tuple[tuple[str, str], ...]) -> Reply:
        size = len(data)
        if first == size or (last and int(last) == first):
            return Reply(416, headers)
        if not last or int(last) >= size:  # a length that is one too large, and then the end
            end = size if not last else int(last)
            wrong = (("Content-Length", str(end - first + 1)), ("Connection", "close"))
            return Reply(206, headers + wrong + (("Content-Range", f"{first}-{end}/{size}"),), data[first:])
        said = f"{first}-{int(last)}/{size}"  # without its unit
        return Reply(206, (*headers, ("Content-Range", said)), data[first : int(last) + 1])


def _error(status: int, message: str, *headers: tuple[str, str]) -> Reply:
    return json_reply(status, {"error": message}, *headers)


def _no_page() -> Reply:
    return Reply(404, (("Content-Type", "text/html"),), b"<h1>Not Found</h1>")


def no_v2(request: Request) -> Reply | None:
    """A hook: a server that supports only v1 has no pages below /v2/."""
    if request.path.startswith("/v2/"):
        return Reply(404, (("Content-Type", "text/html"),), b"<title>404 Not Found</title>")
    return None


def tar(**files: bytes | str) -> bytes:
    """Return a tar of files. In names `__` stands for `/` and `WH` for whiteouts; a string is a link's target."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name.replace("__", "/").replace("WH", ".wh."))
            entry.mtime = 1400000000
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def gz(data: bytes, level: int = 6) -> bytes:
    return gzip.compress(data, level, mtime=0)
